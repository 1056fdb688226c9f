"""Which side is higher, from accuracies made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sparsetune.studies.compare.results import Point
from sparsetune.studies.compare.shown import budgets, chosen
from sparsetune.studies.compare.verdicts import BUDGETS, choices, verdicts
from sparsetune.studies.paper.results import Spread


def point(family, name, count, shares, seconds=None, budget=None, dtype="float32", right=None):
    return Point(
        benchmark="random",
        family=family,
        name=name,
        budget=budget,
        dtype=dtype,
        bytes=count,
        seeds=tuple(range(len(shares))),
        top1=Spread(tuple(100 * share for share in shares)),
        seconds=seconds,
        rate=0.1,
        at_edge=False,
        right=None if right is None else np.array(right, np.float32),
    )


def at(found, budget):
    return found[BUDGETS.index(budget)]


def test_each_side_is_chosen_on_every_other_seed_and_judged_on_the_rest():
    points = [
        point("rank", "rank 1", 30_000, (0.9, 0.5, 0.9, 0.5)),  # chosen by the even seeds, judged on odd ones
        point("rank", "rank 2", 30_000, (0.6, 0.8, 0.6, 0.8)),  # and the other way round
        point("lora", "LoRA 1", 30_000, (0.7, 0.7, 0.7, 0.7)),
        point("everything", "everything", 30_000, (0.99, 0.99, 0.99, 0.99)),
    ]
    verdict = at(verdicts(points), 40_000)
    assert verdict.ours.name == "rank 2, float32 / rank 1, float32"
    assert (verdict.ours.top1, verdict.theirs.top1) == pytest.approx((55, 70))  # seeds have .6, .5, .6, .5
    assert verdict.gap == pytest.approx(-15)
    spread = np.std([-10, -20, -10, -20], ddof=1) / 2
    assert verdict.reach == pytest.approx(3.182446 * spread, rel=2e-3)
    assert (verdict.holds, verdict.said, verdict.whole) == (False, "lower", False)


def test_both_sides_are_judged_alike():
    points = [
        point("rank", "rank 1", 30_000, (0.80, 0.84, 0.82)),
        point("rank", "rank 2", 30_000, (0.82, 0.80, 0.84)),
        point("lora", "LoRA 1", 30_000, (0.70, 0.71, 0.69)),
    ]
    swapped = [replace(each, family={"rank": "lora", "lora": "rank"}[each.family]) for each in points]
    one, other = (at(verdicts(each), 40_000) for each in (points, swapped))
    assert (one.said, other.said) == ("higher", "lower")
    assert (one.ours, one.theirs, one.gap, one.reach) == (
        other.theirs,
        other.ours,
        pytest.approx(-other.gap),
        pytest.approx(other.reach),
    )


def test_the_pictures_are_halved_too_where_they_are_told():
    """A method that is right on the even pictures alone is chosen by these and judged on the odd ones."""
    even, odd = [[1, 0] * 10] * 2, [[0, 1] * 10] * 2
    points = [
        point("rank", "even", 30_000, (0.5, 0.5), right=even),
        point("rank", "odd", 30_000, (0.5, 0.5), right=odd),
        point("lora", "LoRA 1", 30_000, (0.0, 0.0), right=np.zeros((2, 20))),
    ]
    verdict = at(verdicts(points), 40_000)
    assert (verdict.ours.top1, verdict.gap, verdict.whole, verdict.said) == (
        0,
        0,
        True,
        "no difference seen",
    )
    untold = at(verdicts([replace(points[0], right=None), *points[1:]]), 40_000)
    assert (untold.ours.top1, untold.whole) == (50, False)


def test_what_is_too_large_or_missing_is_not_judged():
    points = [
        point("norm", "norm and head", 15_000, (0.6, 0.6)),
        point("rank", "rank 1", 30_000, (0.8, 0.8)),
        point("lora", "LoRA 1", 70_000, (0.9, 0.9)),
    ]
    found = verdicts(points)
    assert at(found, 10_000).ours is at(found, 10_000).theirs is None
    small = at(found, 40_000)
    assert (small.ours.name, small.theirs, small.gap, small.holds, small.said) == (
        "rank 1, float32",
        None,
        None,
        None,
        "",
    )
    assert at(found, 80_000).said == "lower"
    header, cells = budgets(found)
    assert len(cells) == sum(budget >= 15_000 for budget in BUDGETS)
    assert {len(row) for row in cells} == {len(header)}


def test_one_seed_is_too_few():
    points = [point("rank", "rank 1", 30_000, (0.99,)), point("lora", "LoRA 1", 30_000, (0.2,))]
    verdict = at(verdicts(points), 40_000)
    assert (verdict.holds, verdict.reach, verdict.said) == (None, None, "too few seeds to tell")
    _, cells = budgets([verdict])
    assert cells[0][5:7] == ["", "too few seeds to tell"]


def test_where_methods_have_other_seeds_those_of_most_trainings_judge():
    points = [
        point("rank", "rank 1", 30_000, (0.8, 0.8, 0.8, 0.8)),
        point("rank", "rank 2", 30_000, (0.9, 0.9)),
        point("rank", "rank 4", 30_000, (0.7, 0.7)),
        point("lora", "LoRA 1", 30_000, (0.7, 0.7, 0.7)),
    ]
    assert at(verdicts(points), 40_000).ours.name == "rank 2, float32"  # eight trainings; of three seeds six
    assert at(verdicts([*points[:2], points[3]]), 40_000).ours.name == "rank 2, float32"
    assert at(verdicts([points[0], points[3]]), 40_000).theirs.top1 == pytest.approx(70)


def test_the_fastest_is_chosen_among_the_as_accurate_and_judged_on_other_seeds():
    points = [
        point("norm", "norm and head", 30_000, (0.60, 0.61), 2.0),
        point("rank", "rank 1", 30_000, (0.78, 0.70), 5.0),  # as accurate on the even seed
        point("rank", "rank 2", 30_000, (0.90, 0.91), 9.0),
        point("lora", "LoRA 1", 30_000, (0.75, 0.75), 10.0),
    ]
    verdict = at(verdicts(points), 40_000)
    assert (verdict.ours.name, verdict.time_ratio) == ("rank 2, float32", pytest.approx(0.9))
    fast = verdict.fastest
    assert fast.ours.name == "rank 2, float32 / rank 1, float32"
    assert fast.ours.top1 == pytest.approx((90 + 70) / 2)
    assert fast.time_ratio == pytest.approx((9 + 5) / 2 / 10)
    _, cells = budgets([verdict])
    assert cells[0][8].startswith("rank 2, float32 / rank 1, float32: 0.70")
    untimed = at(verdicts([replace(each, seconds=None) for each in points]), 40_000)
    assert (untimed.time_ratio, untimed.fastest) == (None, None)


def test_a_choice_is_judged_by_fixed_methods_of_ours_that_fit():
    points = [
        point("rank", "rank 1", 150_000, (0.75, 0.74, 0.76, 0.75)),
        point("rank", "rank 2", 700_000, (0.90, 0.91, 0.90, 0.92)),
        point("lora", "LoRA 1", 150_000, (0.99, 0.99, 0.99, 0.99)),
        point("budget", "budget 160 KB: low rank", 159_000, (0.2, 0.3, 0.2, 0.3), None, 160_000, "int8"),
        point("budget", "budget 160 KB: low rank", 620_000, (0.9, 0.9, 0.9, 0.9), None, 160_000, "float32"),
        point("budget", "budget 800 KB: low rank", 799_000, (0.90, 0.92, 0.90, 0.91), None, 800_000, "int8"),
    ]
    one, other = choices(points)
    assert (one.budget, one.ours.name, one.theirs.name) == (
        160_000,
        "budget 160 KB: low rank, int8",
        "rank 1, float32",
    )
    assert one.said == "lower"
    assert (other.theirs.name, other.gap, other.said) == (
        "rank 2, float32",
        pytest.approx(0),
        "no difference seen",
    )
    header, cells = chosen([one, other])
    assert [row[6] for row in cells] == ["lower", "no difference seen"]
    assert {len(row) for row in cells} == {len(header)}
