"""What was found: for each method and precision its bytes, accuracy and seconds over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsetune.data import count_steps
from sparsetune.studies.compare.methods import CHOSEN, Comparison, Entry
from sparsetune.studies.compare.training import DTYPES
from sparsetune.studies.intervals import unpacked
from sparsetune.studies.paper.results import Spread
from sparsetune.studies.sources import class_count
from sparsetune.studies.store import Row, from_lines, to_lines


@dataclass(frozen=True)
class Point:
    """A method in one precision.

    Attributes:
        benchmark: The benchmark's name.
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
        right: Whether each test picture is classified rightly, ``(seeds, pictures)``; ``None`` where a result
            is of a version that did not say.
    """

    benchmark: str
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
    right: NDArray[np.floating] | None = field(default=None, compare=False, repr=False)

    def scores(self, seeds: Sequence[int], whole: bool) -> NDArray[np.floating]:
        """Return the score of each picture, or, if not ``whole``, of all: ``(seeds, pictures or 1)``."""
        numbers = [self.seeds.index(seed) for seed in seeds]
        if whole and self.right is not None:
            return self.right[numbers]
        return np.array(self.top1.values)[numbers, None] / 100


def find(rows: Iterable[Row], comparison: Comparison) -> list[Point]:
    """Return the points of all methods that have results, in the comparison's order."""
    by_id = {row.id: row for row in rows}
    paces = [by_id[job.id] for job in comparison.paces.values() if job.id in by_id]
    steps = {step["id"]: step["ms"] / 1000 for row in paces for step in row.result["steps"]}
    found: list[Point] = []
    for entry in comparison.entries:
        mine = [by_id[job.id] for job in entry.jobs if job.id in by_id]
        if any("stored" in row.result for row in mine):
            rates, step = comparison.benchmarks[entry.benchmark].rates, steps.get(entry.jobs[0].id)
            found += [_point(entry, mine, number, rates, step) for number in range(len(DTYPES))]
    return found


def lines(rows: Sequence[Row], comparison: Comparison) -> str:
    """Return JSON lines: what was compared, then each row of it with machine, versions, date and commit."""
    wanted = {job.id for job in comparison.jobs}
    return to_lines({"comparison": comparison.to_json()}, (row for row in rows if row.id in wanted))


def read_lines(path: Path) -> tuple[list[Row], Comparison]:
    """Read what :func:`lines` gave.

    Raises:
        DataError: When the file is none of these.
    """
    return from_lines(path, "`sparsetune compare`", lambda first: Comparison.from_json(first["comparison"]))


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
        benchmark=entry.benchmark,
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
        right=_right(rows, number, chance / 100),
    )


def _right(rows: Sequence[Row], number: int, chance: float) -> NDArray[np.floating] | None:
    """Whether each picture is classified rightly, ``(seeds, pictures)``; what diverged does by chance."""
    done = [row.result for row in rows if "stored" in row.result]
    if not all("right" in result["stored"][number] for result in done):
        return None
    count = done[0]["test_pictures"]
    found = np.full((len(rows), count), chance, np.float32)
    for each, row in zip(found, rows, strict=True):
        if "stored" in row.result:
            each[:] = unpacked(row.result["stored"][number]["right"], count)
    return found


def _seconds(entry: Entry, result: Mapping[str, Any], step: float) -> float:
    """Time of choosing and of all steps."""
    config = entry.jobs[0].settings
    count = config["epochs"] * count_steps(result["train_pictures"], config["batch_size"], 1)
    return float(count * step + result.get("choosing_seconds", 0.0))
