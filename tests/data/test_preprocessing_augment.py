from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional as tv

from sparsetune.data.preprocessing import Augment
from sparsetune.data.splits import draws
from sparsetune.errors import ConfigError


def random(*numbers: int) -> NDArray[np.uint64]:
    return np.array(numbers, dtype=np.uint64)


PIXELS = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


@given(pad=some.integers(0, 12), flip=some.booleans(), half=some.booleans(), rest=some.integers(0, 2**63 - 1))
def test_is_torchvision_s_pad_crop_and_flip(pad: int, flip: bool, half: bool, rest: int) -> None:
    draw = half * 2**63 + rest
    x = tv.pad(torch.from_numpy(PIXELS).permute(2, 0, 1), [pad])
    x = tv.crop(x, draw % 2**32 % (2 * pad + 1), draw // 2**32 % 2**31 % (2 * pad + 1), 9, 7)
    x = tv.horizontal_flip(x) if flip and draw >= 2**63 else x
    other = torch.from_numpy(PIXELS).flip(0)
    out = Augment(pad, flip).apply(torch.stack([other, torch.from_numpy(PIXELS)]), random(5, draw))
    assert out.dtype == torch.uint8
    assert torch.equal(out[1], x.permute(1, 2, 0))


def test_every_crop_and_flip_is_equally_likely() -> None:
    pixels = torch.arange(1, 17, dtype=torch.uint8).reshape(1, 4, 4, 1).expand(18_000, -1, -1, -1)
    outcomes = Augment(1, True).apply(pixels, draws(18_000, "test")).flatten(1)
    counts = np.unique(outcomes.numpy(), axis=0, return_counts=True)[1]
    assert len(counts) == 3 * 3 * 2
    assert ((counts - 1000) ** 2 / 1000).sum() < 40.8  # the 0.1 % point of chi-square with 17 degrees


def test_nothing_is_the_default() -> None:
    pixels = torch.from_numpy(PIXELS)[None]
    assert Augment().apply(pixels, random(2**64 - 1)) is pixels


def test_a_negative_pad_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^pad -1 is negative; give the pixels to pad with, or 0 for none"):
        Augment(pad=-1)
