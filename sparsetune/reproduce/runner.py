"""Go through the jobs that are not done yet, until all are or the time is up."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sparsetune.reproduce.crew import Crew, Event
from sparsetune.reproduce.jobs import BASIS, DEFAULTS, Job, Settings
from sparsetune.reproduce.store import Row, Store

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
                ready = next((job for job in waiting if _is_ready(job, progress)), None)
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
    found = []
    for row in rows:
        settings = {**DEFAULTS, **row.settings}
        job = waiting.get(_asked(settings))
        if job and row.id not in own and any(settings[name] != job[name] for name in BASIS):
            found.append(row)
    return found


def _asked(settings: Settings) -> str:
    """Settings without what a result rests on, and without the names of other jobs, which contain that."""
    left = {name: value for name, value in settings.items() if name not in (*BASIS, "of")}
    return json.dumps(left, sort_keys=True)


def _is_ready(job: Job, progress: Progress) -> bool:
    return all(needed.id in progress.finished for needed in job.needs)
