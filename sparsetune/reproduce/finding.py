"""How a rule asks for the numbers that decide a claim."""

from __future__ import annotations

from sparsetune.reproduce.experiments import DENSENET, NAMES, WIDE, WRN
from sparsetune.reproduce.results import Results

Decided = tuple[bool, str]
"""Whether a claim holds, and the numbers that say so."""
BOTH = ("cifar10", "cifar100")
DENSE, WIDE4, WIDE10 = DENSENET["model"], WRN["model"], WIDE["model"]


class Missing(Exception):  # noqa: N818
    """A number that the rule needs was not run."""


class Found:
    """Accuracies of one experiment, in percent; asking for one that was not run raises :class:`Missing`."""

    def __init__(self, results: Results, experiment: str) -> None:
        self.results, self.experiment = results, experiment

    def __call__(self, key: str = "top1", **where: object) -> float:
        """Return the mean over seeds of the row with the given settings; of several the best."""
        size = {} if {"fraction", "filters"} & set(where) == set() else {"fraction": None, "filters": None}
        found = self.results.top1(self.experiment, key, **{**size, **where})
        if found is None:
            raise Missing
        return found

    def chance(self) -> float:
        """Return the accuracy of guessing, in percent."""
        return self.results.chance(self.results.points(self.experiment)[0])


def told(found: dict[str, float], digits: int = 1) -> str:
    """Say a number for each model."""
    return ", ".join(f"{NAMES[model]} {value:.{digits}f}" for model, value in found.items())
