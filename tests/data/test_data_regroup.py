from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sparsetune.data.data import open_data
from sparsetune.errors import ConfigError, UnknownNameError

DATA = open_data("digits", train_limit=100, test_limit=50)


def test_each_picture_gets_the_group_of_its_class() -> None:
    data = DATA.regroup("shape", {"round": list("069"), "straight": list("14")})
    assert (data.name, data.classes) == ("shape", ("round", "straight"))
    assert (data.preprocessing, data.augment) == (DATA.preprocessing, DATA.augment)
    for new, old in ((data.train, DATA.train), (data.test, DATA.test)):
        expected = [
            (picture, 0 if label in (0, 6, 9) else 1) for picture, label in old if label in (0, 1, 4, 6, 9)
        ]
        assert len(new) == len(expected)
        for (picture, label), (true_picture, true_label) in zip(new, expected, strict=True):
            assert label == true_label
            assert np.array_equal(picture, true_picture)


def test_groups_may_be_grouped_again_and_the_old_data_stays() -> None:
    before = DATA.test.labels.clone()
    high = DATA.regroup("high", {"7": ["7"], "8": ["8"], "9": ["9"]})
    odd = high.regroup("odd", {"even": ["8"], "odd": ["7", "9"]})
    assert odd.test.labels.bincount().tolist() == [5, 10]
    assert DATA.test.labels.equal(before)


def test_a_name_that_two_classes_share_takes_in_both() -> None:
    data = replace(DATA, classes=("crane", "crane", *DATA.classes[2:]))
    assert len(data.regroup("birds", {"crane": ["crane"]}).test) == 10


def test_test_pictures_alone_are_enough() -> None:
    assert replace(DATA, train=None).regroup("ones", {"1": ["1"]}).train is None


def test_what_cannot_be_grouped_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="class 'ten' is unknown; known: 0, 1, 2"):
        DATA.regroup("x", {"a": ["ten"]})
    with pytest.raises(ConfigError, match="class '3' is in two groups of x; leave it in one"):
        DATA.regroup("x", {"a": ["3"], "b": ["4", "3"]})
    with pytest.raises(ConfigError, match="the groups of x leave no training pictures"):
        DATA.regroup("x", {})
    with pytest.raises(ConfigError, match="the groups of x leave no test pictures"):
        replace(DATA, train=None).regroup("x", {"a": []})
