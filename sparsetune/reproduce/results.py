"""What was found, looked up by the paper's settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from sparsetune.reproduce.experiments import EXPERIMENTS
from sparsetune.reproduce.jobs import Settings, based
from sparsetune.reproduce.selection import Selection
from sparsetune.reproduce.sources import KNOWN
from sparsetune.reproduce.store import Row


@dataclass(frozen=True)
class Spread:
    """Accuracies of one row over seeds, in percent.

    Attributes:
        values: One a seed; a training that did not converge counts as chance.
        diverged: How many did not.
    """

    values: tuple[float, ...]
    diverged: int = 0

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds; ``None`` for a single one."""
        return stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        shown = f"{self.mean:.2f}"
        return shown if self.deviation is None else f"{shown} ± {self.deviation:.2f}"


class Results:
    """Results of one selection.

    Args:
        rows: Of any selection; those of others, of other data and of other versions are left aside.
        selection: Which settings stand for the paper's. Its seeds are all those that ``rows`` hold.
    """

    def __init__(self, rows: Sequence[Row], selection: Selection) -> None:
        self.selection = selection
        self.by_id = {row.id: row for row in rows if self._is_of(row.settings)}
        seeds = {row.settings["seed"] for row in rows if row.settings["init_from"] is None}
        self.seeds = sorted(seeds | set(selection.seeds))

    def _is_of(self, settings: Settings) -> bool:
        """Whether a result is of the selection's data and version."""
        wanted = based(settings, self.selection.digests, self.selection.version)
        return all(settings.get(name) == wanted[name] for name in ("digest", "version"))

    def rows(self, settings: Settings) -> list[Row]:
        """Return the results that stand for the paper's ``settings``, one a seed."""
        found = (self.by_id.get(self.selection.job(settings, seed).id) for seed in self.seeds)
        return [row for row in found if row is not None]

    def spread(self, settings: Settings, key: str = "top1") -> Spread | None:
        """Return accuracies over seeds, or ``None`` where nothing was run."""
        chance = self.chance(settings)
        rows = self.rows(settings)
        values = tuple(100 * row.result[key] if key in row.result else chance for row in rows)
        return Spread(values, sum("diverged" in row.result for row in rows)) if values else None

    def chance(self, settings: Settings) -> float:
        """Accuracy of guessing, in percent."""
        return 100 / KNOWN[self.selection.adjusted(settings)["data"]].classes

    def points(self, experiment: str, **where: Any) -> list[Settings]:
        """Return an experiment's rows, as in the paper, whose settings have the given values."""
        return [
            point
            for point in EXPERIMENTS[experiment].points
            if all(point[name] == value for name, value in where.items())
        ]

    def top1(self, experiment: str, key: str = "top1", **where: Any) -> float | None:
        """Return the mean accuracy of the one row with the given values, in percent; of several the best."""
        found = [self.spread(point, key) for point in self.points(experiment, **where)]
        return max((spread.mean for spread in found if spread), default=None)

    def best(self, points: Sequence[Settings]) -> tuple[Settings, Spread] | None:
        """Return the row of highest accuracy, and that."""
        found = [(point, spread) for point in points if (spread := self.spread(point))]
        return max(found, key=lambda each: each[1].mean, default=None)

    def finished(self, experiment: str) -> tuple[int, int]:
        """Return how many of an experiment's rows have results, and how many there are."""
        points = EXPERIMENTS[experiment].points
        return sum(bool(self.rows(point)) for point in points), len(points)

    @property
    def as_in_paper(self) -> bool:
        """Whether data and lengths of all trainings are the paper's own."""
        points = (point for each in EXPERIMENTS.values() for point in each.points)
        return all(self.selection.adjusted(point) == point for point in points)
