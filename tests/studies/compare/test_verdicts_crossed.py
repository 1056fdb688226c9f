"""Choosing and judging apart, against cases by hand and what repeated draws come to."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest

from sparsetune.studies.compare.verdicts import chances, judged
from sparsetune.studies.intervals import reach


def test_each_quarter_is_judged_by_what_the_opposite_one_chose():
    """Two seeds by two pictures: of four methods each is the best in one quarter alone, and .5 elsewhere."""
    scores = np.full((4, 2, 2), 0.5)
    for method, (seed, picture) in enumerate(np.ndindex(2, 2)):
        scores[method, seed, picture] = 1.0
    picks = chances(scores).argmax(1)
    assert sorted(picks) == [0, 1, 2, 3]
    assert judged(scores, picks).tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert np.max(scores, 0).tolist() == [[1.0, 1.0], [1.0, 1.0]]  # where chosen and judged alike


def test_one_seed_is_halved_by_pictures_and_one_share_not_at_all():
    scores = np.array([[[1, 1, 0, 0]], [[0, 0, 1, 1]], [[1, 0, 1, 0]]], float)
    assert chances(scores).tolist() == [[0.5, 0.5, 0.0], [0.5, 0.5, 1.0]]
    shares = np.array([[[0.3]], [[0.7]]])
    assert judged(shares, chances(shares).argmax(1)).tolist() == [[0.7]]


@pytest.mark.parametrize("seeds", [3, 6])
@pytest.mark.parametrize(("by_seed", "by_picture"), [(0.0, 0.0), (0.4, 0.0), (0.0, 1.0), (0.3, 0.5)])
def test_the_best_of_many_and_the_best_of_few_are_told_apart_by_chance_no_more_often_than_said(
    seeds, by_seed, by_picture
):
    """41 methods against 15 without a true difference: each side is higher 2.5 times in 100, as said."""
    generator, draws, pictures = np.random.default_rng(0), 200, 100
    higher = lower = before = 0
    for _ in range(draws):
        ours, theirs = (_draw(generator, count, seeds, pictures, by_seed, by_picture) for count in (41, 15))
        gaps = judged(ours, chances(ours).argmax(1)) - judged(theirs, chances(theirs).argmax(1))
        higher += gaps.mean() > reach(gaps)
        lower += gaps.mean() < -reach(gaps)
        means = theirs.mean((1, 2))
        error = theirs[means.argmax()].mean(1).std(ddof=1) / sqrt(seeds)
        before += ours.mean((1, 2)).max() >= means.max() - error
    assert higher <= 0.05 * draws + 4  # four: less than two standard deviations of such a count
    assert lower <= 0.05 * draws + 4
    assert before >= 0.85 * draws  # what was called a win


def test_a_difference_of_three_points_is_seen_with_twelve_seeds():
    generator, draws = np.random.default_rng(0), 60
    seen = 0
    for _ in range(draws):
        ours, theirs = (
            _draw(generator, count, 12, 360, 0.1, 0.3, gain) for count, gain in ((41, 0.3), (15, 0.0))
        )
        gaps = judged(ours, chances(ours).argmax(1)) - judged(theirs, chances(theirs).argmax(1))
        seen += gaps.mean() > reach(gaps)
    assert seen >= 0.8 * draws


def _draw(generator, methods, seeds, pictures, by_seed, by_picture, gain=0.0):
    """Rights and wrongs; over all seeds and pictures that could have been every method is as good."""
    hard = np.random.default_rng(7).normal(1.5, 2.0, pictures)
    logits = hard + gain + by_seed * generator.standard_normal((methods, seeds, 1))
    logits = logits + by_picture * generator.standard_normal((methods, 1, pictures))
    return (generator.random((methods, seeds, pictures)) < 1 / (1 + np.exp(-logits))).astype(float)
