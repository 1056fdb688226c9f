from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torchvision.transforms.v2 import functional as tv

from sparsetune.data import Augment
from sparsetune.data.draws import draws
from sparsetune.errors import ConfigError

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


@given(pad=some.integers(0, 12), flip=some.booleans(), draw=some.integers(0, 2**64 - 1))
def test_is_torchvision_s_pad_crop_and_flip(pad: int, flip: bool, draw: int) -> None:
    x = tv.pad(torch.from_numpy(PIXELS).permute(2, 0, 1), [pad])
    x = tv.crop(x, draw % 2**32 % (2 * pad + 1), draw // 2**32 % 2**31 % (2 * pad + 1), 9, 7)
    x = tv.horizontal_flip(x) if flip and draw >= 2**63 else x
    out = Augment(pad, flip).apply(PIXELS, draw)
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out, x.permute(1, 2, 0).numpy())


def test_every_crop_and_flip_is_equally_likely() -> None:
    pixels = np.arange(1, 17, dtype=np.uint8).reshape(4, 4, 1)
    outcomes = [Augment(1, True).apply(pixels, int(draw)).tobytes() for draw in draws(18_000, "test")]
    counts = np.unique(outcomes, return_counts=True)[1]
    assert len(counts) == 3 * 3 * 2
    assert ((counts - 1000) ** 2 / 1000).sum() < 40.8  # the 0.1 % point of chi-square with 17 degrees


def test_nothing_is_the_default() -> None:
    assert Augment().apply(PIXELS, 2**64 - 1) is PIXELS


def test_a_negative_pad_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^pad -1 is negative; give the pixels to pad with, or 0 for none"):
        Augment(pad=-1)
