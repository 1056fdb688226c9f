"""The error of a difference, against cases by hand and against what repeated draws scatter by."""

from __future__ import annotations

from math import isnan, sqrt

import numpy as np
import pytest

from sparsetune.comparison.crossed import difference_error


def matrix(*rows):
    return np.array([[value == "1" for value in row] for row in rows])


def test_one_seed_leaves_the_pictures():
    # gaps 1, 1, 0, 0: variance 1/3 over four pictures
    assert difference_error(matrix("1100"), matrix("0000")) == pytest.approx(sqrt(1 / 3 / 4))


def test_two_seeds_by_hand():
    """Gaps 1 1 and 1 0: means .5 and 1 by picture and by seed alike, rests of a quarter each."""
    by_either, within = 2 * 0.25**2 / 1, 4 * 0.25**2 / 1
    wanted = sqrt(by_either / 2 + by_either / 2 - within / 4)
    assert difference_error(matrix("11", "10"), matrix("00", "00")) == pytest.approx(wanted)


def test_the_same_has_none_and_one_picture_tells_nothing():
    same = matrix("1010", "0110")
    assert difference_error(same, same) == 0
    assert isnan(difference_error(matrix("1"), matrix("0")))


@pytest.mark.parametrize(("by_seed", "by_picture"), [(0.0, 0.0), (0.15, 0.0), (0.0, 0.2), (0.1, 0.15)])
def test_it_is_what_repeated_draws_scatter_by(by_seed, by_picture):
    generator = np.random.default_rng(0)
    seeds, pictures, draws = 6, 60, 1500
    gaps, errors = [], []
    for _ in range(draws):
        gain = by_seed * generator.standard_normal((seeds, 1)) + by_picture * generator.standard_normal(
            pictures
        )
        one = generator.random((seeds, pictures)) < 0.5 + gain
        other = generator.random((seeds, pictures)) < 0.5
        gaps.append(one.mean() - other.mean())
        errors.append(difference_error(one, other))
    found = sqrt(np.mean(np.square(errors)))
    assert found >= np.std(gaps) * 0.94
    assert found <= np.std(gaps) * 1.15  # never below the pictures' own, so a little above without any effect
