"""Go through the jobs that are not done yet, until all are or the time is up; and how long that may take."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from sparsetune.studies.crew import Crew, Event
from sparsetune.studies.jobs import BASIS, DEFAULTS, KINDS, Job
from sparsetune.studies.sources import KNOWN, forward_work, here
from sparsetune.studies.store import Row, Settings, Store

TRIES = 3
"""How often a job is begun again whose worker died without a word."""
PATIENCE = 0.5


@dataclass
class Progress:
    """Where a call of :func:`go` stands.

    Attributes:
        finished: Ids of all jobs in the store.
        running: Id -> share done, from 0 to 1.
        failed: Id -> why.
        added: Rows of this call.
    """

    finished: set[str]
    running: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    added: list[Row] = field(default_factory=list)


def go(
    jobs: Sequence[Job],
    store: Store,
    crew: Crew,
    *,
    time_budget: float | None = None,
    watch: Callable[[Progress, Event | None], Any] | None = None,
) -> Progress:
    """Do all jobs that the store does not hold, each after those that it needs.

    Args:
        jobs: In the order in which they are to be done.
        store: Takes each result at once.
        crew: Whoever does them.
        time_budget: Seconds after which those that run are saved and stopped.
        watch: Called with the progress after each event, and now and then.

    Returns:
        The progress at the end. A job that failed is not tried again, nor are those that need it.
    """
    end = None if time_budget is None else time.monotonic() + time_budget
    progress = Progress({row.id for row in store.rows()})
    waiting = [job for job in jobs if job.id not in progress.finished]
    running: dict[str, Job] = {}
    lost: dict[str, int] = {}
    try:
        while waiting or running:
            left = None if end is None else end - time.monotonic()
            while waiting and crew.idle() and (left is None or left > 0):
                ready = next(
                    (job for job in waiting if {each.id for each in job.needs} <= progress.finished), None
                )
                if ready is None:
                    break
                waiting.remove(ready)
                running[ready.id], progress.running[ready.id] = ready, 0.0
                crew.give(ready, left)
            if not running:
                break
            for event in crew.events(PATIENCE):
                job = running[event.job]
                if event.kind == "step":
                    progress.running[job.id] = event.value["done"]
                else:
                    del running[job.id], progress.running[job.id]
                if event.kind == "finished":
                    about = {**event.value["about"], "jobs": crew.count}
                    row = Row(job.id, job.settings, event.value["result"], about)
                    store.add(row)
                    progress.added.append(row)
                    progress.finished.add(job.id)
                elif event.kind == "failed":
                    progress.failed[job.id] = event.value["reason"]
                elif event.kind == "lost":
                    lost[job.id] = lost.get(job.id, 0) + 1
                    if lost[job.id] < TRIES:
                        waiting.insert(0, job)
                    else:
                        progress.failed[job.id] = f"its process died {TRIES} times; see worker.log."
                if watch:
                    watch(progress, event)
            if watch:
                watch(progress, None)
    finally:
        crew.close()
    return progress


def unused(jobs: Sequence[Job], rows: Sequence[Row]) -> list[Row]:
    """Return results that differ from those of open jobs in nothing but what they rest on.

    Args:
        jobs: With digests of their data and a version.
        rows: All results so far.
    """
    finished = {row.id for row in rows}
    waiting = {_asked(job.settings): job.settings for job in jobs if job.id not in finished}
    own = {job.id for job in jobs}

    def is_for_other(settings: Settings) -> bool:
        job = waiting.get(_asked(settings))
        return job is not None and any(settings[name] != job[name] for name in BASIS)

    return [row for row in rows if row.id not in own and is_for_other({**DEFAULTS, **row.settings})]


def _asked(settings: Settings) -> str:
    """Settings without what a result rests on, and without the names of other jobs, which contain that."""
    left = {name: value for name, value in settings.items() if name not in (*BASIS, "of")}
    return json.dumps(left, sort_keys=True)


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
    machine = here()
    rates: dict[str, list[float]] = {}
    for row in rows:
        same = all(row.about.get(name) == machine[name] for name in ("processor", "accelerator"))
        seconds = row.result.get("seconds")
        if same and seconds and KINDS[row.settings["kind"]].trains:
            rates.setdefault(row.settings["model"], []).append(seconds / work(row.settings))
    if not rates:
        return None
    usual = median(rate for found in rates.values() for rate in found)
    total = sum(
        work(job.settings) * median(rates.get(job.settings["model"], [usual]))
        for job in jobs
        if KINDS[job.settings["kind"]].trains
    )
    return total / at_a_time


def work(settings: Settings) -> float:
    """Return the operations of a training, its tests included."""
    known = KNOWN[settings["data"]]
    train, test = settings["train_limit"] or known.train, settings["test_limit"] or known.test
    return float(forward_work(settings) * settings["epochs"] * (PASSES * train + test))
