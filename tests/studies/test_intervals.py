"""How sure a difference is, against cases by hand and scipy."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from scipy.stats import t as student_t

from sparsetune.studies.intervals import (
    Evidence,
    Measured,
    Verdict,
    average,
    judge,
    packed,
    reach,
    seed_by_seed,
    student,
    unpacked,
)


@given(some.lists(some.booleans(), min_size=1, max_size=40))
def test_what_is_right_is_read_back(right):
    text = packed(torch.tensor(right))
    assert len(text) == 2 * -(-len(right) // 8)
    assert unpacked(text, len(right)).tolist() == right


def test_the_reach_by_hand():
    gaps = np.array([[1.0, 1.0], [1.0, 0.0]])  # means 1 and .5, by seed and by picture alike: variance 1/8
    total = 2 * (1 / 8) / 2
    assert reach(gaps) == pytest.approx(student_t.ppf(0.975, 2) * sqrt(total))  # two of one degree each
    alone = np.array([[0.1], [0.2], [0.6]])
    wanted = student_t.ppf(0.975, 2) * np.std(alone, ddof=1) / sqrt(3)
    assert reach(alone) == pytest.approx(wanted)
    assert reach(np.zeros((1, 9))) is None
    assert reach(np.full((2, 9), 0.25)) == 0


@pytest.mark.parametrize(("freedom", "within"), [(1, 1e-9), (2, 1e-9), (3, 2e-3), (4, 5e-4), (30, 1e-6)])
def test_students_quantile(freedom, within):
    assert student(freedom + 0.9) == student(freedom) == pytest.approx(student_t.ppf(0.975, freedom), within)


def margin(mean, half):
    """A margin of two seeds, whose interval reaches so far to either side."""
    apart = half / student(1)
    return Measured({0: np.array([mean - apart]), 1: np.array([mean + apart])})


@pytest.mark.parametrize(
    ("margins", "needed", "mark", "deciding"),
    [
        ([(3, 1), (2, 1)], None, "holds", "2.0 ± 1.0"),
        ([(3, 1), (9, 8.5)], None, "holds", "9.0 ± 8.5"),
        ([(3, 1), (2, 2.5)], None, "too close to tell", "2.0 ± 2.5"),
        ([(3, 1), (-2, 2.5)], None, "too close to tell", "-2.0 ± 2.5"),
        ([(3, 1), (-2, 1), (-3, 9)], None, "does not", "-2.0 ± 1.0"),
        ([(3, 1), (-2, 1)], 1, "holds", "3.0 ± 1.0"),
        ([(3, 1), (-2, 1), (1, 1.5)], 2, "too close to tell", "1.0 ± 1.5"),
        ([(-3, 1), (-2, 1), (1, 1.5)], 2, "does not", "-2.0 ± 1.0"),
    ],
)
def test_a_claim_by_its_margins(margins, needed, mark, deciding):
    verdict = judge(Evidence([margin(*each) for each in margins], "said", needed))
    assert verdict == Verdict(mark, "said", deciding, 2)


def test_margins_are_of_the_seeds_that_both_have_and_of_pictures_where_both_tell_them():
    one = Measured({0: np.array([1.0, 0.0]), 1: np.array([1.0, 1.0]), 2: np.array([0.0, 0.0])})
    two = Measured({1: np.array([0.0, 1.0]), 0: np.array([0.25]), 5: np.array([9.0])})
    gap = 2 * (one - two) - 1
    assert {seed: value.tolist() for seed, value in gap.by_seed.items()} == {0: [-0.5], 1: [1.0, -1.0]}
    assert gap.mean == -0.25
    assert average([one, one - 1]).mean == pytest.approx(one.mean - 0.5)
    assert judge(Evidence([one - Measured({7: np.array([1.0])})], "")) == Verdict("not run")
    ratio = seed_by_seed(lambda a, b: a / b, one, two)
    assert {seed: value.tolist() for seed, value in ratio.by_seed.items()} == {0: [2.0], 1: [2.0]}
