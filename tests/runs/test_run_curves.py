from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sparsetune.errors import StorageError
from sparsetune.runs.run import draw_curves
from sparsetune.train.fit import Epoch


def history(epochs: int) -> list[Epoch]:
    return [
        Epoch(
            epoch=i + 1,
            lr=0.1,
            train_loss=2.3 / (i + 1),
            train_top1=1 - 0.9 / (i + 1),
            test_loss=2.4 / (i + 1),
            test_top1=1 - 0.95 / (i + 1),
            test_top5=1.0,
            seconds=1.0,
        )
        for i in range(epochs)
    ]


@pytest.mark.parametrize("epochs", [1, 2, 10, 300])
def test_draws_a_picture_with_something_on_it(tmp_path, epochs):
    path = tmp_path / "c.png"
    draw_curves(history(epochs), "wrn28_4 on digits, fraction 0.1", path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width > image.height > 400
        pixels = np.asarray(image.convert("RGB")).astype(int)
    blue = (pixels[..., 2] - pixels[..., 0] > 60).sum()
    assert blue > 50  # the curves of the test pictures, and the last figure
    assert (pixels == 255).all(2).mean() > 0.7
    assert [p.name for p in tmp_path.iterdir()] == ["c.png"]


def test_the_edges_are_free(tmp_path):
    draw_curves(history(10), "a" * 40, tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as image:
        pixels = np.asarray(image.convert("L"))
    edges = (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:])
    assert all((edge == 255).all() for edge in edges)  # no text is cut off


def test_what_was_watched_is_drawn(tmp_path):
    """The same figures as test or as validation differ in the word alone: the curves are there."""
    watched = [
        Epoch(**{name.replace("test", "validation"): value for name, value in record.to_json().items()})
        for record in history(3)
    ]
    pictures = []
    for number, records in enumerate((history(3), watched)):
        draw_curves(records, "", tmp_path / f"{number}.png")
        with Image.open(tmp_path / f"{number}.png") as image:
            pictures.append(np.asarray(image.convert("RGB")).astype(int))
    blue = [(pixels[..., 2] - pixels[..., 0] > 60).sum() for pixels in pictures]
    assert abs(blue[0] - blue[1]) < 0.2 * blue[0]


def test_perfect_from_the_start_can_be_drawn(tmp_path):
    one = Epoch(1, 0.1, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0)
    draw_curves([one], "", tmp_path / "c.png")


def test_an_impossible_place_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*c\.png"):
        draw_curves(history(1), "", tmp_path / "file" / "c.png")
