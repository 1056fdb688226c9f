from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from sparsetune.data.data import open_data
from sparsetune.data.loading import loader
from sparsetune.data.preprocessing import Augment


def test_every_digit_is_in_exactly_one_split() -> None:
    data = open_data("digits")
    assert (len(data.train), len(data.test)) == (1438, 359)
    assert data.classes == tuple("0123456789")
    images, labels = load_digits(return_X_y=True)
    rows = np.concatenate([data.train.rows, data.test.rows])
    assert sorted(rows) == list(range(1797))
    assert torch.cat([data.train.labels, data.test.labels]).tolist() == labels[rows].tolist()
    share = data.test.labels.bincount() / torch.tensor(labels).bincount()
    assert ((share - 0.2).abs() < 0.005).all()
    image, label = data.test[17]
    row = data.test.rows[17]
    assert label == labels[row]
    back = np.asarray(image, dtype=float) * 16 / 255
    assert np.abs(back - images[row].reshape(8, 8, 1)).max() < 0.04


def test_preprocessing_makes_the_training_split_standard() -> None:
    data = open_data("digits")
    assert data.preprocessing.size == (3, 8, 8)
    assert data.augment == Augment(pad=1, flip=False)
    (x, _), *rest = loader(data.train, data.preprocessing, batch_size=2000)
    assert not rest
    torch.testing.assert_close(x.mean(dim=(0, 2, 3)), torch.zeros(3), rtol=0, atol=2e-4)
    torch.testing.assert_close(x.std(dim=(0, 2, 3)), torch.ones(3), rtol=0, atol=2e-4)


def test_the_split_does_not_follow_split_seed() -> None:
    first, other = (open_data("digits", split_seed=seed).test.rows for seed in (0, 1))
    assert first.tolist() == other.tolist()


def test_a_larger_size() -> None:
    data = open_data("digits", size=16)
    assert data.preprocessing.size == (3, 16, 16)
    assert data.augment.pad == 2
    assert data.preprocessing.apply(data.train[0][0]).shape == (3, 16, 16)
