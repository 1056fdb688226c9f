from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import sparsetune as st
from sparsetune.runs.run import _what, draw_curves
from sparsetune.runs.settings import Run
from sparsetune.train.loop import Epoch


def history(epochs: int, watched: str = "test") -> list[Epoch]:
    return [
        Epoch(
            epoch=i + 1,
            lr=0.1,
            train_loss=2.3 / (i + 1),
            train_top1=1 - 0.9 / (i + 1),
            **{f"{watched}_loss": 2.4 / (i + 1), f"{watched}_top1": 1 - 0.95 / (i + 1)},
        )
        for i in range(epochs)
    ]


@pytest.mark.parametrize("watched", ["test", "validation"])
@pytest.mark.parametrize("epochs", [1, 2, 300])
def test_the_curves_are_the_records(epochs, watched):
    loss, top1 = draw_curves(history(epochs, watched), "a title").axes
    for panel, starts, ends in ((loss, (2.3, 2.4), (0, 0)), (top1, (10, 5), (100, 100))):
        for line, start, end in zip(panel.lines, starts, ends, strict=True):
            assert [*line.get_xdata()] == [*range(1, epochs + 1)]
            wanted = [end + (start - end) / epoch for epoch in range(1, epochs + 1)]
            assert line.get_ydata() == pytest.approx(wanted)
            (left, right), (low, high) = panel.get_xlim(), panel.get_ylim()
            assert left < 1 <= epochs < right
            assert low <= min(wanted) <= max(wanted) < high
        assert [line.get_label() for line in panel.lines] == ["training", watched]
    assert top1.texts[0].get_text() == f"{100 - 95 / epochs:.1f}"


def test_no_text_is_cut_off(tmp_path):
    draw_curves(history(10), "a" * 40).savefig(tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as image:
        pixels = np.asarray(image.convert("L"))
    edges = (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:])
    assert all((edge == 255).all() for edge in edges)


def test_perfect_from_the_start_can_be_drawn(tmp_path):
    draw_curves([Epoch(1, 0.1, 0.0, 1.0, 0.0, 1.0)], "").savefig(tmp_path / "c.png")


@pytest.mark.parametrize(
    ("learn", "budget", "said"),
    [
        (st.Learn(rank={f"blocks.{n}": 1 for n in range(9)}), None, "rank by layer"),
        (st.Learn(rank={f"blocks.{n}": 1 for n in range(9)}), 60_000, "a budget of 58.6 KiB"),
        (st.Learn(filters=0), None, "normalisation and classifier"),
        (st.Learn(filters=0, norm=False), None, "classifier"),
        (st.Learn(filters=2), None, "2 filters a layer"),
        (st.Learn(fraction=0.1), None, "fraction 0.1"),
    ],
)
def test_a_title_says_what_is_learned_in_few_words(learn, budget, said):
    assert _what(Run(model="x", learn=learn, config=st.FitConfig(), budget=budget)) == said
