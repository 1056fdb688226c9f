"""How long open trainings will take, from what this machine did so far."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from statistics import median

from sparsetune.machine import describe_machine
from sparsetune.reproduce.counts import forward_work
from sparsetune.reproduce.jobs import TRAININGS, Job, Settings
from sparsetune.reproduce.sources import KNOWN
from sparsetune.reproduce.store import Row

PASSES = 3
"""A training step's work over a forward pass'."""


def estimate(jobs: Iterable[Job], rows: Sequence[Row], at_a_time: int = 1) -> float | None:
    """Estimate the seconds that trainings will take.

    A model that was trained here gives its own seconds for each operation; for one that was not, the median
    of all models stands in. Evaluations are not counted.

    Args:
        jobs: Those still to be done.
        rows: All results so far; those of other machines are left out.
        at_a_time: How many are done side by side.

    Returns:
        Seconds, or ``None`` when nothing was trained on this machine yet.
    """
    here = _here()
    rates: dict[str, list[float]] = {}
    for row in rows:
        same = all(row.about.get(name) == here[name] for name in ("processor", "accelerator"))
        seconds = row.result.get("seconds")
        if same and seconds and row.settings["kind"] in TRAININGS:
            rates.setdefault(row.settings["model"], []).append(seconds / work(row.settings))
    if not rates:
        return None
    usual = median(rate for found in rates.values() for rate in found)
    total = sum(
        work(job.settings) * median(rates.get(job.settings["model"], [usual]))
        for job in jobs
        if job.settings["kind"] in TRAININGS
    )
    return total / at_a_time


def work(settings: Settings) -> float:
    """Return the operations of a training, its tests included."""
    known = KNOWN[settings["data"]]
    train, test = settings["train_limit"] or known.train, settings["test_limit"] or known.test
    return float(forward_work(settings) * settings["epochs"] * (PASSES * train + test))


@functools.cache
def _here() -> dict[str, object]:
    return describe_machine()
