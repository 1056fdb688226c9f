from __future__ import annotations

import copy

import numpy as np
import pytest
from PIL import Image

import sparsetune as st
from sparsetune.bench.bench import CONTESTANTS, Row, amount, describe, draw_bench
from sparsetune.bench.timing import Figure
from sparsetune.errors import StorageError


def measured(*names: str) -> dict:
    """What the command prints, with a step that takes 1, 2, 3 … times as long as full training's."""
    rows = []
    for number, name in enumerate(names, 1):
        figures = {"step": Figure(10.0 * number, 9, 50, float(number)), "peak": Figure(2e6, 2e6, 2e6, 1.0)}
        if name != "full":
            figures["switch"] = Figure(0.2, 0.1, 0.3, None)
        rows.append(Row(name, 100, figures).to_json())
    return {
        "model": "wrn28_4",
        "learn": {"fraction": 0.1, "filters": None, "head": True},
        **{"batch_size": 2, "size": 32, "device": "cpu", "processor": "abacus", "threads": 1},
        "rows": rows,
    }


def pixels_of(path, name: str) -> np.ndarray:
    """Where a picture, of which nothing is cut off, has a contestant's colour."""
    colour = [int(CONTESTANTS[name].colour[i : i + 2], 16) for i in (1, 3, 5)]
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).astype(int)
    edges = (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:])
    assert all((edge == 255).all() for edge in edges)
    return (pixels == colour).all(2)


def test_bars_are_as_long_as_their_values(tmp_path):
    found = measured("full", "ours", "masked", "lora")
    for row in found["rows"]:  # only the step is left to be drawn
        for key in [key for key in row if key.startswith(("peak", "switch"))]:
            del row[key]
    draw_bench([found], tmp_path / "b.png")
    lengths = [pixels_of(tmp_path / "b.png", name).sum(1).max() for name in CONTESTANTS]
    assert lengths[0] > 50
    assert lengths == pytest.approx([lengths[-1] / 4 * steps for steps in (1, 2, 3, 4)], abs=3)


def test_several_models_in_one_picture(tmp_path):
    one, other = measured("full", "ours", "masked", "lora"), measured("full", "ours")
    draw_bench([one, other], tmp_path / "b.png")
    ours, lora = (pixels_of(tmp_path / "b.png", name).sum() for name in ("ours", "lora"))
    assert ours > lora / 2 > 0
    assert [p.name for p in tmp_path.iterdir()] == ["b.png"]


def test_what_was_measured_in_words():
    found = measured("full")
    assert describe(found) == "wrn28_4, fraction 0.1"
    other = copy.deepcopy(found)
    other["learn"] = {"fraction": None, "filters": 0, "head": False}
    assert describe(other) == "wrn28_4, filters 0, no head"
    other["learn"] = st.Learn(rank=4).to_json()
    assert describe(other) == "wrn28_4, rank 4"
    assert [amount(value, "ms") for value in (1234.5, 12.345, 0.21)] == ["1,234 ms", "12.3 ms", "0.21 ms"]
    assert amount(2048, "bytes") == "2.0 KiB"


def test_an_impossible_place_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*b\.png"):
        draw_bench([measured("full")], tmp_path / "file" / "b.png")
