"""The middle of a picture, against timm's own transform."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from sparsetune.data.preprocessing import Augment, Preprocessing
from sparsetune.data.splits import draws
from sparsetune.errors import ConfigError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.95, 1.0])
@pytest.mark.parametrize("size", [(320, 200), (200, 320), (500, 333), (64, 64), (33, 90)])
def test_it_is_timms(size, crop_pct, interpolation):
    ours = Preprocessing((3, 96, 96), MEAN, STD, interpolation, crop_pct, "center")
    theirs = create_transform(
        (3, 96, 96), crop_pct=crop_pct, crop_mode="center", interpolation=interpolation, mean=MEAN, std=STD
    )
    assert torch.allclose(ours.apply(picture(*size)), theirs(picture(*size)), atol=1e-5)


@pytest.mark.parametrize(("mode", "size"), [("squash", (96, 96)), ("center", (96, 64)), ("border", (96, 96))])
def test_other_modes_are_timms(mode, size):
    method = "bilinear"  # in timm 1.0.21 "center" takes that, whatever is asked, for what is no square
    ours = Preprocessing((3, *size), MEAN, STD, method, 0.9, mode)
    theirs = create_transform(
        (3, *size), crop_pct=0.9, crop_mode=mode, interpolation=method, mean=MEAN, std=STD
    )
    for shape in ((320, 200), (150, 260)):
        assert torch.allclose(ours.apply(picture(*shape)), theirs(picture(*shape)), atol=0.02)


def test_what_a_file_says_comes_back():
    crop = Preprocessing((3, 96, 96), MEAN, STD, "bicubic", 0.875, "center")
    assert Preprocessing.from_json(crop.to_json()) == crop
    assert {*Preprocessing((3, 96, 96), MEAN, STD).to_json()} == {"size", "mean", "std", "interpolation"}
    for wrong in ({"crop_pct": 0.0}, {"crop_pct": 7}, {"crop_mode": "zoom"}, {"crop_mode": ["center"]}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Preprocessing.from_json({**crop.to_json(), **wrong})


def test_a_random_crop_keeps_the_aspect_ratio_of_the_picture():
    """Of a picture three times as wide as high, whose left third is black, windows are near squares of it."""
    pixels = np.full((100, 300, 3), 255, np.uint8)
    pixels[:, :100] = 0
    stored = Preprocessing((3, 64, 64), MEAN, STD).uncropped.pixels(Image.fromarray(pixels))
    many = torch.from_numpy(np.stack([stored] * 400))
    augment = Augment(scale=0.3)
    seen = augment.resized_crop(many, draws(400, "a"), np.full(400, 3.0), (64, 64))
    assert seen.shape == (400, 64, 64, 3)
    dark = (seen[..., 0] < 128).float().mean((1, 2))
    assert ((dark > 0.02) & (dark < 0.98)).any(), "some windows cut the edge"
    assert (dark < 0.02).any(), "some are beyond it"
    assert 0.15 < dark.mean() < 0.5


def test_a_random_crop_of_everything_is_the_picture():
    stored = Preprocessing((3, 32, 32), MEAN, STD).pixels(picture(32, 32))
    one = torch.from_numpy(stored.copy())[None]
    middle = np.array([(2**14) << 16], np.uint64)  # the ratio between the two
    seen = Augment(scale=1.0).resized_crop(one, middle, np.ones(1), (32, 32))
    assert (seen.int() - one.int()).abs().max() <= 1


def test_flips_mirror():
    stored = torch.from_numpy(Preprocessing((3, 32, 32), MEAN, STD).pixels(picture(32, 32)).copy())[None]
    plain, flipped = (np.array([(2**14) << 16 | bit << 63], np.uint64) for bit in (0, 1))
    cut = [
        Augment(flip=True, scale=1.0).resized_crop(stored, d, np.ones(1), (32, 32)) for d in (plain, flipped)
    ]
    assert (cut[0].flip(2).int() - cut[1].int()).abs().max() <= 1


@pytest.mark.parametrize("scale", [0.0, -1.0, 1.5])
def test_a_scale_is_a_share(scale):
    with pytest.raises(ConfigError, match="scale"):
        Augment(scale=scale)
