"""timm's policies and random erasing, each picture by its own draw."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform
from timm.data.random_erasing import RandomErasing

from sparsetune.data.data import Data, open_data
from sparsetune.data.loading import Feed, loader
from sparsetune.data.preprocessing import Augment, _posterize
from sparsetune.data.splits import draws

PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 24, 32, 3), dtype=np.uint8))
DRAWS = draws(6, "test")
MEAN = (0.5, 0.25, 0.1)
KNOWN = {"translate_const": 10, "img_mean": (128, 64, 26)}  # 45 % of the shorter side, 24; 255 times the mean
AUGMENT = Augment(pad=1, flip=True, aa="rand-m9-mstd0.5-inc1", reprob=0.5)


@pytest.fixture(scope="module")
def digits() -> Data:
    return open_data("digits", train_limit=60, test_limit=20, size=16)


def seed(number: int) -> None:
    random.seed(number)
    np.random.seed([number & 0xFFFFFFFF, number >> 32])
    torch.manual_seed(number)


@pytest.mark.parametrize(
    ("policy", "transform"),
    [
        ("rand-m7-mstd0.5-inc1", rand_augment_transform("rand-m7-mstd0.5-inc1", dict(KNOWN))),
        ("rand-n3-p1-tweights", rand_augment_transform("rand-n3-p1-tweights", dict(KNOWN))),
        (
            "augmix-m5-w4-d2",
            augment_and_mix_transform("augmix-m5-w4-d2", {**KNOWN, "translate_pct": 0.3}),
        ),
        ("original-mstd0.5", auto_augment_transform("original-mstd0.5", dict(KNOWN))),
        ("3a", auto_augment_transform("3a", dict(KNOWN))),
    ],
    ids=["rand", "weights", "augmix", "original", "3a"],
)
def test_a_policy_is_timm_s(policy, transform):
    found = Augment(aa=policy).recolour(PIXELS, DRAWS, MEAN)
    assert found.dtype == torch.uint8
    assert not torch.equal(found, PIXELS)
    for picture, draw, made in zip(PIXELS.numpy(), DRAWS.tolist(), found.numpy(), strict=True):
        seed(draw)
        assert np.array_equal(made, np.asarray(transform(Image.fromarray(picture))))


@pytest.mark.parametrize("policy", ["rand-m10-n9-p1-inc1", "rand-m0-n9-p1", "augmix-m10", "v0"])
def test_extremes_of_a_policy_are_taken(policy):
    """timm asks for no bits at all, which Pillow 13 refuses and others make a black picture of."""
    pixels = torch.linspace(0, 255, 32).byte().view(1, 1, 32, 1).expand(300, 8, 32, 3)
    found = Augment(aa=policy).recolour(pixels, draws(300, "extremes"), MEAN)
    assert found.shape == pixels.shape


def test_posterize_keeps_a_bit():
    picture = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    assert {bits: len(np.unique(_posterize(picture, bits))) for bits in (-4, 0, 1, 3, 8, 9)} == {
        -4: 2,
        0: 2,
        1: 2,
        3: 8,
        8: 256,
        9: 256,
    }


def test_grey_pictures_stay_so():
    grey = PIXELS[..., :1]
    found = Augment(aa="rand-m9-p1").recolour(grey, DRAWS, (0.5,))
    whole = Augment(aa="rand-m9-p1").recolour(grey.expand(-1, -1, -1, 3), DRAWS, (0.5, 0.5, 0.5))
    assert found.shape == grey.shape
    assert torch.equal(found[..., 0], whole[..., 0])


def test_erasing_is_timm_s_and_of_so_many():
    x = torch.zeros(2000, 3, 12, 16)
    many = draws(2000, "many")
    found = Augment(reprob=0.3).erase_(x.clone(), many)
    erased = (found != 0).flatten(1).any(1)
    assert abs(erased.double().mean() - 0.3) < 0.04
    share = (found[erased] != 0).double().mean()
    assert 0.1 < share < 0.25  # uniform from 2 to 33 %, less what does not fit
    erase = RandomErasing(0.3, mode="pixel", device="cpu")
    for number in range(10):
        seed(2**64 - 1 - int(many[number]))
        assert torch.equal(found[number], erase(x[number].clone()))


def batches(data: Data, workers: int = 0, epoch: int = 1, size: int = 16, augment: Augment = AUGMENT):
    options = {"batch_size": size, "train": True, "augment": augment, "seed": 3, "epoch": epoch}
    return list(loader(data.train, data.preprocessing, workers=workers, **options))


def same(one, other) -> bool:
    one, other = list(one), list(other)
    return len(one) == len(other) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("scale", [None, 0.5])
def test_neither_workers_nor_batches_nor_what_came_before_change_a_picture(digits, scale):
    augment = replace(AUGMENT, scale=scale)
    expected = batches(digits, augment=augment)
    assert same(batches(digits, workers=2, augment=augment), expected)
    for workers in (0, 2):
        feed = Feed(
            digits.train,
            digits.preprocessing,
            torch.device("cpu"),
            batch_size=16,
            augment=augment,
            workers=workers,
        )
        list(feed.epoch(3, 0, 2))
        assert same(feed.epoch(3, 1), expected)
        assert same(feed.epoch(3, 1, skip=2), expected[2:])
    small = torch.cat([x for x, _ in batches(digits, size=7, augment=augment)])
    assert torch.equal(small, torch.cat([x for x, _ in expected]))


def test_epochs_differ_and_the_process_random_states_are_left_alone(digits):
    torch.manual_seed(4), np.random.seed(4), random.seed(4)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    assert not same(batches(digits), batches(digits, epoch=2))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_test_pictures_stay_as_they_are(digits):
    plain = list(loader(digits.test, digits.preprocessing, batch_size=16))
    assert same(list(loader(digits.test, digits.preprocessing, batch_size=16, augment=AUGMENT)), plain)
