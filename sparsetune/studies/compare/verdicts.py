"""What the points say: ours beside PEFT's at equal bytes, and what ``--budget`` chose beside fixed methods.

Each side's representative is chosen on some seeds and test pictures and judged on others, both sides alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from sparsetune.studies.compare.methods import CHOSEN, THEIRS, WHOLE
from sparsetune.studies.compare.results import Point
from sparsetune.studies.compare.training import KEPT
from sparsetune.studies.intervals import Scores, reach


def chances(scores: Scores) -> Scores:
    """Return each method's mean where it may be chosen, for each part to judge: ``(parts, methods)``.

    Args:
        scores: Whether a picture is classified rightly, ``(methods, seeds, pictures)``; where no more is
            known, the share of all as that of one picture.
    """
    return np.stack([scores[:, seeds, pictures].mean((1, 2)) for (seeds, pictures), _ in _parts(scores)])


def judged(scores: Scores, picks: NDArray[np.integer]) -> Scores:
    """Return what was chosen for each part, there, ``(seeds, pictures)``.

    Args:
        scores: Of all methods.
        picks: The number of the method that was chosen for each part, by :func:`chances`.
    """
    found = np.empty(scores.shape[1:])
    for (_, part), pick in zip(_parts(scores), picks, strict=True):
        found[part] = scores[pick][part]
    return found


Part = tuple[slice, slice]


def _parts(scores: Scores) -> list[tuple[Part, Part]]:
    """Where a method is chosen, and where it is then judged: other seeds, and other pictures.

    Every seed and picture is judged once. A single one of either both chooses and judges.
    """
    _, seeds, pictures = scores.shape
    return [
        ((chosen, some), (judge, other))
        for (chosen, judge), (some, other) in product(_halves(seeds), _halves(pictures))
    ]


def _halves(count: int) -> list[tuple[slice, slice]]:
    even, odd = slice(0, None, 2), slice(1, None, 2)
    return [(odd, even), (even, odd)] if count > 1 else [(slice(None), slice(None))]


BUDGETS = (5_000, 10_000, 20_000, 40_000, 80_000, 160_000, 320_000, 640_000, 1_250_000, 2_500_000)
"""Bytes at which ours and PEFT's are compared."""

Picks = NDArray[np.integer]

FEW, SAME = "too few seeds to tell", "no difference seen"


@dataclass(frozen=True)
class Side:
    """What stands for one side.

    Attributes:
        name: Of the method and precision that was chosen; several, the most frequent first, where the parts
            of seeds and pictures that choose do not agree.
        top1: Mean accuracy where each was judged, in percent.
        seconds: Time of a training, in the mean over those that were chosen; ``None`` where it was not taken.
    """

    name: str
    top1: float
    seconds: float | None


@dataclass(frozen=True)
class Verdict:
    """Ours and another at equal bytes.

    Attributes:
        budget: Bytes that neither may exceed.
        ours: What stands for ours; ``None`` where there is none of at most that size.
        theirs: The other's.
        reach: How far the true difference may be from that of the two, in percent points, to either side,
            95 % sure; ``None`` without one of the two, or with a single seed.
        whole: Whether that covers other test pictures, beside other seeds; results of before each picture
            was told do not allow it.
        fastest: The same for whichever of ours is trained in the least time among those that are as accurate
            as theirs where they are chosen; ``None`` where no times are known.
    """

    budget: int
    ours: Side | None
    theirs: Side | None
    reach: float | None = None
    whole: bool = True
    fastest: Verdict | None = None

    @property
    def gap(self) -> float | None:
        """Our accuracy less theirs, in percent points; ``None`` without one of the two."""
        return None if self.ours is None or self.theirs is None else self.ours.top1 - self.theirs.top1

    @property
    def holds(self) -> bool | None:
        """Whether ours is higher (``True``) or lower (``False``); ``None`` where neither can be told."""
        if self.gap is None or self.reach is None or abs(self.gap) <= self.reach:
            return None
        return self.gap > 0

    @property
    def said(self) -> str:
        """How ours is beside the other, in words; none without one of the two."""
        if self.gap is None:
            return ""
        if self.reach is None:
            return FEW
        return {True: "higher", False: "lower", None: SAME}[self.holds]

    @property
    def time_ratio(self) -> float | None:
        """Our training time over theirs."""
        if self.ours is None or self.theirs is None or not self.ours.seconds or not self.theirs.seconds:
            return None
        return self.ours.seconds / self.theirs.seconds


def verdicts(points: Sequence[Point]) -> list[Verdict]:
    """Compare ours and PEFT's at every budget.

    Args:
        points: Of one benchmark.
    """
    ours = [point for point in points if point.family not in (*THEIRS, WHOLE)]
    theirs = [point for point in points if point.family in THEIRS]
    return [_verdict(ours, theirs, budget) for budget in BUDGETS]


def choices(points: Sequence[Point]) -> list[Verdict]:
    """Compare what ``--budget`` chose, as it keeps it, with the best fixed method of ours that fits.

    Args:
        points: Of one benchmark.
    """
    fixed = [point for point in points if point.family not in (CHOSEN, *THEIRS)]
    return [
        _verdict([point], fixed, point.budget) for point in points if point.budget and point.dtype == KEPT
    ]


@dataclass(frozen=True)
class _Candidates:
    """Methods of one side that all have the same seeds."""

    points: list[Point]
    scores: Scores

    def best(self) -> Picks:
        """The most accurate, for each part, where it may be chosen."""
        picks: Picks = chances(self.scores).argmax(1)
        return picks

    def fastest(self, bars: Scores) -> Picks:
        """The one trained in the least time of those that reach the bar there; where none does, the best."""
        seconds = np.array([point.seconds or np.inf for point in self.points])
        found = chances(self.scores)
        reaching = np.where(found >= bars[:, None], seconds, np.inf)
        picks: Picks = np.where(np.isfinite(reaching).any(1), reaching.argmin(1), found.argmax(1))
        return picks

    def side(self, picks: Picks) -> Side:
        """What these come to where they are judged."""
        chosen = [self.points[pick] for pick in picks]
        names = Counter(f"{point.name}, {point.dtype}" for point in chosen)
        times = [point.seconds for point in chosen if point.seconds is not None]
        seconds = fmean(times) if len(times) == len(chosen) else None
        top1 = float(judged(self.scores, picks).mean())
        return Side(" / ".join(name for name, _ in names.most_common()), 100 * top1, seconds)


def _verdict(ours: Sequence[Point], theirs: Sequence[Point], budget: int) -> Verdict:
    """Judge two sides, by those methods and seeds of which there are most trainings, each with each."""
    fitting = [[point for point in side if point.bytes <= budget] for side in (ours, theirs)]

    def having(seeds: tuple[int, ...]) -> list[list[Point]]:
        return [[point for point in side if {*seeds} <= {*point.seeds}] for side in fitting]

    def trainings(seeds: tuple[int, ...]) -> tuple[int, int]:
        sides = having(seeds)
        return sum(map(bool, sides)), len(seeds) * sum(map(len, sides))

    seeds = max((point.seeds for side in fitting for point in side), key=trainings, default=())
    if not seeds:
        return Verdict(budget, None, None)
    sides = having(seeds)
    whole = all(point.right is not None for side in sides for point in side)
    one, other = (
        _Candidates(side, np.stack([point.scores(seeds, whole) for point in side])) if side else None
        for side in sides
    )
    if one is None or other is None:
        mine, its = (None if each is None else each.side(each.best()) for each in (one, other))
        return Verdict(budget, mine, its, whole=whole)
    theirs_best = other.best()
    standard = judged(other.scores, theirs_best)

    def found(picks: Picks, fastest: Verdict | None = None) -> Verdict:
        span = reach(judged(one.scores, picks) - standard)
        return Verdict(
            budget,
            one.side(picks),
            other.side(theirs_best),
            None if span is None else 100 * span,
            whole,
            fastest,
        )

    timed = any(point.seconds for point in one.points)
    bars = chances(other.scores).max(1)
    return found(one.best(), found(one.fastest(bars)) if timed else None)
