from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sparsetune.data import loading as feed
from sparsetune.data.data import Data, open_data
from sparsetune.data.loading import Feed, loader
from sparsetune.data.preprocessing import Augment
from sparsetune.data.splits import Split
from sparsetune.errors import DataError

AUGMENT = Augment(pad=2, flip=True)
CPU = torch.device("cpu")


class Counting:
    """Pictures that know how often each was decoded."""

    def __init__(self, images) -> None:
        self.images, self.counts = images, np.zeros(len(images), int)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Image.Image:
        self.counts[index] += 1
        return self.images[index]


@pytest.fixture
def digits() -> Data:
    return open_data("digits", train_limit=150, test_limit=50)


@pytest.fixture
def counted(digits: Data) -> Split:
    return replace(digits.train, images=Counting(digits.train.images))


def decoded(split: Split) -> list[int]:
    return split.images.counts[split.rows].tolist()


def make(split: Split, data: Data, **options) -> Feed:
    return Feed(split, data.preprocessing, CPU, **{"batch_size": 32, "augment": AUGMENT, **options})


def same(one, other) -> bool:
    one, other = list(one), list(other)
    return len(one) == len(other) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(one, other, strict=True)
    )


def expected(split: Split, data: Data, **options):
    options = {"batch_size": 32, "augment": AUGMENT, "train": True, **options}
    return list(loader(split, data.preprocessing, **options))


@pytest.mark.parametrize("room", [0.25, 0])
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_the_loader_s(digits, room, workers, monkeypatch):
    monkeypatch.setattr(feed, "SHARE", room)
    found = make(digits.train, digits, workers=workers)
    for number, skip in ((0, 2), (0, 0), (1, 0), (2, 4), (2, 9)):
        wanted = expected(digits.train, digits, seed=5, epoch=number)[skip:]
        assert same(found.epoch(5, number, skip), wanted)
    assert same(found.epoch(), expected(digits.train, digits, train=False))
    assert not same(found.epoch(5, 1), found.epoch(6, 1))


def test_a_process_gets_its_share(digits):
    for index in range(2):
        found = make(digits.train, digits, share=(index, 2))
        for seed, number in ((1, 0), (1, 1), (None, 0)):
            wanted = expected(digits.train, digits, train=seed is not None, seed=seed or 0, epoch=number)
            assert same(found.epoch(seed, number), [(x[index::2], y[index::2]) for x, y in wanted])


def test_each_picture_is_decoded_once_and_when_it_is_needed(digits, counted):
    found = make(counted, digits)
    assert sum(decoded(counted)) == 0
    next(found.epoch(1, 0))
    assert sum(decoded(counted)) == 32
    list(found.epoch(1, 0, skip=4))
    assert sum(decoded(counted)) == 32 + 22
    for number in range(3):
        list(found.epoch(1, number))
    assert decoded(counted) == [1] * 150


def test_what_does_not_fit_is_decoded_each_time(digits, counted, monkeypatch):
    monkeypatch.setattr(feed, "free_bytes", lambda _: 4 * 150 * 8 * 8 * 3 - 1)
    found = make(counted, digits)
    list(found.epoch(1, 0)), list(found.epoch(1, 1))
    assert decoded(counted) == [2] * 150
    monkeypatch.setattr(feed, "free_bytes", lambda _: 4 * 150 * 8 * 8 * 3)
    found = make(counted, digits)
    list(found.epoch(1, 0)), list(found.epoch(1, 1))
    assert decoded(counted) == [3] * 150


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_is_one_sentence_and_the_others_stay(digits, counted, workers):
    class Damaged(Counting):
        def __getitem__(self, index: int) -> Image.Image:
            if index == counted.rows[149]:
                raise DataError("image 149 cannot be decoded (it is cut off); replace it or take it out.")
            return super().__getitem__(index)

    split = replace(counted, images=Damaged(digits.train.images))
    found = make(split, digits, workers=workers)
    for _ in range(2):
        with pytest.raises(DataError, match=r"^image 149 cannot be decoded .*; replace it or take it out\.$"):
            list(found.epoch())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_batches_are_made_on_a_gpu_alike(digits):
    found = Feed(digits.train, digits.preprocessing, torch.device("cuda"), batch_size=32, augment=AUGMENT)
    for number in range(2):
        batches = list(found.epoch(5, number))
        assert {x.device.type for x, _ in batches} == {"cuda"}
        assert same(((x.cpu(), y) for x, y in batches), expected(digits.train, digits, seed=5, epoch=number))
