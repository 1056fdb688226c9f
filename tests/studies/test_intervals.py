"""How sure a difference is, against cases by hand and scipy."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from scipy.stats import t as student_t

from sparsetune.studies.intervals import packed, reach, student, unpacked


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
