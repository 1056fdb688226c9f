from __future__ import annotations

import gc
import pickle
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparsetune.data.data import Data, open_data
from sparsetune.data.folder import read
from sparsetune.data.loading import loader
from sparsetune.data.preprocessing import Augment, Preprocessing
from sparsetune.data.splits import Split
from sparsetune.errors import ConfigError, DataError

PLAIN = Preprocessing((3, 32, 32), (0.5,) * 3, (0.25,) * 3)
Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def digits() -> Data:
    return open_data("digits", train_limit=150, test_limit=50)


def epoch(data: Data, *, batch_size: int = 32, seed: int = 3, number: int = 1, **more: int) -> Batches:
    assert data.train is not None
    augment = Augment(pad=2, flip=True)
    options = {"batch_size": batch_size, "train": True, "augment": augment, "seed": seed, "epoch": number}
    return list(loader(data.train, data.preprocessing, **options, **more))


def same(one: Batches, other: Batches) -> bool:
    return len(one) == len(other) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(one, other, strict=True)
    )


def test_shapes_types_and_the_small_last_batch(digits: Data) -> None:
    batches = epoch(digits)
    assert [tuple(x.shape) for x, _ in batches] == [(32, 3, 8, 8)] * 4 + [(22, 3, 8, 8)]
    assert {(x.dtype, y.dtype) for x, y in batches} == {(torch.float32, torch.int64)}
    labels = torch.cat([y for _, y in batches])
    assert labels.bincount().tolist() == [15] * 10
    assert not torch.equal(labels, digits.train.labels)


def test_test_batches_are_apply_of_each_picture_in_order(digits: Data) -> None:
    batches = list(loader(digits.test, digits.preprocessing, batch_size=16))
    expected = torch.stack([digits.preprocessing.apply(image) for image, _ in digits.test])
    assert torch.equal(torch.cat([x for x, _ in batches]), expected)
    assert torch.equal(torch.cat([y for _, y in batches]), digits.test.labels)


def test_augment_is_for_training_only(digits: Data) -> None:
    plain = list(loader(digits.test, digits.preprocessing, batch_size=16))
    asked = list(loader(digits.test, digits.preprocessing, batch_size=16, augment=Augment(2, True)))
    assert same(plain, asked)


def test_a_picture_is_another_in_each_epoch(digits: Data) -> None:
    one = replace(digits, train=digits.train.take(np.array([0])))
    assert len({epoch(one, number=number)[0][0].numpy().tobytes() for number in range(10)}) > 3


def test_an_epoch_depends_on_seed_and_number_only(digits: Data) -> None:
    first = epoch(digits)
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    assert same(first, epoch(digits))
    assert not same(first, epoch(digits, number=2))
    assert not same(first, epoch(digits, seed=4))


def test_the_number_of_workers_changes_nothing(digits: Data) -> None:
    assert same(epoch(digits), epoch(digits, workers=2))


def test_a_sample_s_augmentation_does_not_depend_on_its_batch(digits: Data) -> None:
    small, large = (torch.cat([x for x, _ in epoch(digits, batch_size=size)]) for size in (7, 150))
    assert torch.equal(small, large)


def test_a_sample_s_augmentation_does_not_depend_on_the_others(digits: Data) -> None:
    def pictures(split: Split) -> set[bytes]:
        options = {"batch_size": 50, "train": True, "augment": Augment(2), "seed": 3}
        return {
            x.numpy().tobytes() for batch, _ in loader(split, digits.preprocessing, **options) for x in batch
        }

    whole, half = digits.train, digits.train.take(np.arange(75))
    assert len(pictures(half)) == 75
    assert pictures(half) <= pictures(whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_global_random_state_is_left_alone(digits: Data, workers: int) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    epoch(digits, workers=workers)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


def test_a_loader_can_be_walked_twice(digits: Data) -> None:
    batches = loader(digits.train, digits.preprocessing, batch_size=32, train=True)
    assert len(batches) == 5
    assert same(list(batches), list(batches))


@pytest.fixture
def damaged(make: Any, tmp_path: Path) -> Path:
    good = make.encoded(0, "JPEG")
    make.parquet(tmp_path / "test.parquet", [good, good, good[:200], good, good, good], [0] * 6, names="ab")
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_picture_is_one_sentence_with_file_and_row(damaged: Path, workers: int) -> None:
    data = read(damaged, split_seed=0).test
    with pytest.raises(DataError) as error:
        list(loader(data, PLAIN, batch_size=2, workers=workers))
    assert str(error.value).startswith(
        f"image in row 2 of {str(damaged / 'test.parquet')!r} cannot be decoded ("
    )
    assert str(error.value).endswith("); replace it or take it out.")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch_size 0 is too small; expected 1 or more"),
        ({"workers": -2}, "workers -2 is too small; expected 0 or more"),
    ],
)
def test_impossible_settings(digits: Data, wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loader(digits.test, digits.preprocessing, **{"batch_size": 4, **wrong})


def test_a_split_pickles_to_about_the_size_of_its_pictures(make: Any, tmp_path: Path) -> None:
    split = open_data(str(make.digits(tmp_path, train=100))).train
    encoded = sum(len(make.encoded(i)) for i in range(100))
    frozen = pickle.dumps(split)
    assert len(frozen) < encoded + 100 * 50
    thawed = pickle.loads(frozen)
    assert [label for _, label in thawed] == split.labels.tolist()
    assert thawed[7][0].tobytes() == split[7][0].tobytes()


def test_workers_that_were_never_made_end_in_silence(monkeypatch, capfd):
    """Ctrl-C may come while they are made; torch would print a traceback from its destructor."""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("torch.utils.data.dataloader._BaseDataLoaderIter.__init__", interrupted)
    data = open_data("digits", train_limit=20, test_limit=10)
    with pytest.raises(KeyboardInterrupt):
        list(loader(data.test, data.preprocessing, batch_size=5, workers=1))
    gc.collect()
    assert capfd.readouterr().err == ""
