"""What was found: for each method and precision its bytes, accuracy and seconds over seeds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import hypot, isclose, sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from sparsetune.budget import KEPT
from sparsetune.comparison.comparison import Comparison, Entry
from sparsetune.comparison.crossed import difference_error
from sparsetune.comparison.methods import CHOSEN, THEIRS, WHOLE
from sparsetune.data import count_steps
from sparsetune.errors import DataError
from sparsetune.reproduce.contest import FEWER_BITS
from sparsetune.reproduce.results import Spread
from sparsetune.reproduce.sources import class_count
from sparsetune.reproduce.store import Row

DTYPES = ("float32", *FEWER_BITS)
BUDGETS = (5_000, 10_000, 20_000, 40_000, 80_000, 160_000, 320_000, 640_000, 1_250_000, 2_500_000)
"""Bytes at which ours and PEFT's are compared."""


@dataclass(frozen=True)
class Point:
    """A method in one precision.

    Attributes:
        ground: The ground's name.
        family: The method's family.
        name: The method's; with what its budget was spent on, where it has one.
        budget: The bytes that ``--budget`` was given; ``None`` for another method.
        dtype: How its values are stored.
        bytes: How many they take; of several seeds the most.
        seeds: Those of its trainings.
        top1: Accuracies, one for each of these, in percent; one that did not converge counts as chance.
        seconds: Time of its training steps, each as long as the median of those that were taken in turn with
            the other methods', and of choosing; ``None`` where it was not taken.
        rate: The learning rate that was chosen.
        at_edge: Whether that is the smallest or largest that was tried.
        right: For each seed whether each test picture is classified rightly; ``None`` where one did not
            converge or is of a version that did not say.
    """

    ground: str
    family: str
    name: str
    budget: int | None
    dtype: str
    bytes: int
    seeds: tuple[int, ...]
    top1: Spread
    seconds: float | None
    rate: float
    at_edge: bool
    right: tuple[tuple[bool, ...], ...] | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What it is among those of its ground, whatever its seeds."""
        return self.name, self.dtype

    @property
    def error(self) -> float:
        """Standard error of the mean accuracy, in percent points; 0 for a single seed."""
        return (self.top1.deviation or 0.0) / sqrt(len(self.top1.values))

    def only(self, seeds: Iterable[int]) -> Point | None:
        """Return the point of some seeds alone; ``None`` where it has none of them."""
        kept = [self.seeds.index(seed) for seed in seeds if seed in self.seeds]
        if not kept:
            return None
        top1 = Spread(tuple(self.top1.values[i] for i in kept))
        right = self.right and tuple(self.right[i] for i in kept)
        return replace(self, seeds=tuple(self.seeds[i] for i in kept), top1=top1, right=right)

    def difference_error(self, other: Point) -> float:
        """Return the standard error of the difference to another with the same seeds, in percent points.

        Over seeds and test pictures; over seeds alone where it is not known which pictures were right.
        """
        if self.right is None or other.right is None or self.seeds != other.seeds:
            return hypot(self.error, other.error)
        return 100 * difference_error(np.array(self.right), np.array(other.right))


@dataclass(frozen=True)
class Verdict:
    """Ours and another at equal bytes.

    Attributes:
        budget: Bytes that neither may exceed.
        ours: Our best of at most that size; ``None`` where there is none.
        theirs: The other's.
        slack: By how much our mean may be lower and still hold, in percent points.
        fastest: Of ours that fit and hold, the one trained in the least time; ``None`` where none is known.
    """

    budget: int
    ours: Point | None
    theirs: Point | None
    slack: float = 0.0
    fastest: Point | None = None

    @property
    def holds(self) -> bool | None:
        """Whether our mean is at least theirs less the slack; ``None`` without one of the two."""
        if self.ours is None or self.theirs is None:
            return None
        gap = self.theirs.top1.mean - self.ours.top1.mean
        return gap <= self.slack or isclose(gap, self.slack)

    @property
    def time_ratio(self) -> float | None:
        """Our training time over theirs."""
        return _ratio(self.ours, self.theirs)

    @property
    def fastest_ratio(self) -> float | None:
        """The fastest's training time over theirs."""
        return _ratio(self.fastest, self.theirs)


def find(rows: Iterable[Row], comparison: Comparison) -> list[Point]:
    """Return the points of all methods that have results, in the comparison's order."""
    by_id = {row.id: row for row in rows}
    paces = [by_id[job.id] for job in comparison.paces.values() if job.id in by_id]
    steps = {step["id"]: step["ms"] / 1000 for row in paces for step in row.result["steps"]}
    found: list[Point] = []
    for entry in comparison.entries:
        mine = [by_id[job.id] for job in entry.jobs if job.id in by_id]
        if any("stored" in row.result for row in mine):
            rates, step = comparison.grounds[entry.ground].rates, steps.get(entry.jobs[0].id)
            found += [_point(entry, mine, number, rates, step) for number in range(len(DTYPES))]
    return found


def verdicts(points: Sequence[Point]) -> list[Verdict]:
    """Compare the best of each side at every budget; the slack is the standard error of PEFT's mean.

    Args:
        points: Of one ground.
    """
    ours = [point for point in points if point.family not in (*THEIRS, WHOLE)]
    theirs = [point for point in points if point.family in THEIRS]
    found = []
    for budget in BUDGETS:
        best, other = _best(ours, budget), _best(theirs, budget)
        slack = other.error if other else 0.0
        good = [p for p in ours if p.bytes <= budget and other and p.top1.mean >= other.top1.mean - slack]
        timed = [(point.seconds, number) for number, point in enumerate(good) if point.seconds is not None]
        found.append(Verdict(budget, best, other, slack, good[min(timed)[1]] if timed else None))
    return found


def choices(points: Sequence[Point]) -> list[Verdict]:
    """Compare what ``--budget`` chose, as it keeps it, with the best fixed method of ours that fits.

    Which one is best is told by the first half of the seeds, and the two are compared on the others: the best
    of many that differ by noise alone would look better than it is on the seeds that chose it. The slack is
    the standard error of the difference of the two means, over seeds and test pictures.

    Args:
        points: Of one ground.
    """
    fixed = [point for point in points if point.family not in (CHOSEN, *THEIRS)]
    found = []
    for point in points:
        if point.budget and point.dtype == KEPT:
            half = len(point.seeds) // 2
            first, rest = point.seeds[:half] or point.seeds, point.seeds[half:]
            told = _best([each for one in fixed if (each := one.only(first))], point.budget)
            other = next((one.only(rest) for one in fixed if told and one.key == told.key), None)
            ours = point.only(other.seeds if other else rest)
            slack = ours.difference_error(other) if ours and other else 0.0
            found.append(Verdict(point.budget, ours, other, slack))
    return found


def lines(rows: Sequence[Row], comparison: Comparison) -> str:
    """Return JSON lines: what was compared, then each row of it with machine, versions, date and commit."""
    wanted = {job.id for job in comparison.jobs}
    values = [{"comparison": comparison.to_json()}, *(row.to_json() for row in rows if row.id in wanted)]
    return "".join(json.dumps(value) + "\n" for value in values)


def read_lines(path: Path) -> tuple[list[Row], Comparison]:
    """Read what :func:`lines` gave.

    Raises:
        DataError: When the file is none of these.
    """
    try:
        first, *rest = map(json.loads, path.read_text().splitlines())
        return [Row(**line) for line in rest], Comparison.from_json(first["comparison"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not a results.jsonl of `sparsetune compare` ({error}); name one."
        ) from error


def _point(
    entry: Entry, rows: Sequence[Row], number: int, rates: Sequence[float], step: float | None
) -> Point:
    done = [row.result for row in rows if "stored" in row.result]
    chance = 100 / class_count(rows[0].settings)
    values = tuple(
        100 * row.result["stored"][number]["top1"] if "stored" in row.result else chance for row in rows
    )
    rate = done[0]["lr"]
    chosen = dict.fromkeys(result["choice"]["name"] for result in done if "choice" in result)
    return Point(
        ground=entry.ground,
        family=entry.family,
        name=f"{entry.name}: {' / '.join(chosen)}" if chosen else entry.name,
        budget=entry.jobs[0].settings["budget"] if entry.family == CHOSEN else None,
        dtype=DTYPES[number],
        bytes=max(result["stored"][number]["bytes"] for result in done),
        seeds=tuple(row.settings["seed"] for row in rows),
        top1=Spread(values, len(rows) - len(done)),
        seconds=None if step is None else fmean(_seconds(entry, result, step) for result in done),
        rate=rate,
        at_edge=len(rates) > 1 and rate in (min(rates), max(rates)),
        right=_right(rows, number),
    )


def _right(rows: Sequence[Row], number: int) -> tuple[tuple[bool, ...], ...] | None:
    """Whether each test picture is classified rightly, of each seed."""
    if not all("right" in stored for row in rows for stored in row.result.get("stored", [{}])):
        return None
    bits = [np.frombuffer(bytes.fromhex(row.result["stored"][number]["right"]), np.uint8) for row in rows]
    counts = [row.result["test_pictures"] for row in rows]
    return tuple(
        tuple(np.unpackbits(each, count=count).astype(bool).tolist())
        for each, count in zip(bits, counts, strict=True)
    )


def _seconds(entry: Entry, result: Mapping[str, Any], step: float) -> float:
    """Time of choosing and of all steps."""
    config = entry.jobs[0].settings
    count = config["epochs"] * count_steps(result["train_pictures"], config["batch_size"], 1)
    return float(count * step + result.get("choosing_seconds", 0.0))


def _best(points: Iterable[Point], budget: int) -> Point | None:
    fitting = [point for point in points if point.bytes <= budget]
    return max(fitting, key=lambda point: point.top1.mean, default=None)


def _ratio(one: Point | None, other: Point | None) -> float | None:
    if one is None or other is None or not one.seconds or not other.seconds:
        return None
    return one.seconds / other.seconds
