"""Go through the jobs that are not done yet, by processes here or on a Ray cluster; how long it may take."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from sparsetune.errors import ConfigError
from sparsetune.host import reason
from sparsetune.studies.jobs import BASIS, DEFAULTS, KINDS, Job, in_order
from sparsetune.studies.sources import KNOWN, forward_work, here
from sparsetune.studies.store import Place, Row, Settings, Store
from sparsetune.studies.work import do

THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Event:
    """What happened to a job.

    Attributes:
        job: Its id.
        kind: ``step``, ``finished``, ``stopped`` (time was up), ``failed`` or ``lost`` (its worker died).
        value: What goes with it.
    """

    job: str
    kind: str
    value: dict[str, Any] = field(default_factory=dict)


class Processes:
    """Workers that are processes of this machine.

    Args:
        count: How many jobs are done at a time.
        place: Where.
    """

    def __init__(self, count: int, place: Place) -> None:
        self.count, self.place = count, place
        self.said: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()
        self.workers: list[_Worker] = []

    def idle(self) -> int:
        """Return how many more jobs can be given now."""
        return self.count - sum(worker.job is not None for worker in self.workers)

    def give(self, job: Job, budget: float | None) -> None:
        """Have a job done by an idle worker; one is started if there is none."""
        free = [worker for worker in self.workers if worker.job is None]
        worker = free[0] if free else _Worker(self)
        worker.job = job.id
        line = json.dumps({"id": job.id, "settings": job.settings, "budget": budget})
        with contextlib.suppress(BrokenPipeError):  # it died; its end of file says so
            worker.stdin.write(line + "\n")
            worker.stdin.flush()

    def events(self, seconds: float) -> list[Event]:
        """Wait so long for something to happen; return what did."""
        with contextlib.suppress(queue.Empty):
            worker, message = self.said.get(timeout=seconds)
            if message is None:
                self.workers.remove(worker)
                return [Event(worker.job, "lost")] if worker.job else []
            if message["kind"] != "ready" and worker.job:
                event = Event(worker.job, message["kind"], message)
                if event.kind != "step":
                    worker.job = None
                return [event]
        return []

    def close(self) -> None:
        """End all workers, at once."""
        for worker in self.workers:
            worker.process.kill()
        for worker in self.workers:
            worker.process.wait()


class _Worker:
    """A process, and the thread that reads what it says."""

    def __init__(self, crew: Processes) -> None:
        self.job: str | None = None
        threads = max(1, torch.get_num_threads() // crew.count)
        folder, sources = crew.place.folder, json.dumps(crew.place.sources)
        with (folder / "worker.log").open("a") as told:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sparsetune.studies.work", str(folder), sources],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=told,
                text=True,
                env={THREADS: str(threads), **os.environ},
            )
        self.stdin: Any = self.process.stdin
        crew.workers.append(self)
        threading.Thread(target=self._read, args=(crew, self.process.stdout), daemon=True).start()

    def _read(self, crew: Processes, lines: Any) -> None:
        for line in lines:
            crew.said.put((self, json.loads(line)))
        crew.said.put((self, None))


class Cluster:
    """Workers of a Ray cluster.

    Every node must see the folder of the results, and the data, under the same path.

    Args:
        address: As for ``ray.init``: ``auto``, or ``HOST:PORT``.
        count: How many jobs are done at a time; with 1, as many as the cluster has processors, or GPUs.
        place: Where.

    Raises:
        ConfigError: When Ray is not installed, or no cluster answers.
    """

    def __init__(self, address: str, count: int, place: Place) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError("Ray is not installed; pip install 'sparsetune[ray]'.") from error
        self.ray, self.place = ray, place
        try:
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"no Ray cluster answers at '{address}' ({reason(error)}); start one with `ray start --head`."
            ) from error
        has = ray.cluster_resources()
        gpus = has.get("GPU", 0.0)
        self.count = count if count > 1 else max(1, int(gpus or has.get("CPU", 1)))
        share = min(1.0, gpus / self.count) if gpus else 0
        share = math.floor(share * 100) / 100
        self.do = ray.remote(num_cpus=1, num_gpus=share, max_retries=0)(do)
        self.running: dict[Any, str] = {}

    def idle(self) -> int:
        """Return how many more jobs can be given now."""
        return self.count - len(self.running)

    def give(self, job: Job, budget: float | None) -> None:
        """Have a job done by some worker of the cluster."""
        self.running[self.do.remote(job.id, job.settings, self.place, budget)] = job.id

    def events(self, seconds: float) -> list[Event]:
        """Wait so long for something to happen; return what did."""
        done, _ = self.ray.wait([*self.running], timeout=seconds)
        return [self._came(task) for task in done]

    def close(self) -> None:
        """End all tasks, at once, and leave the cluster."""
        for task in self.running:
            self.ray.cancel(task, force=True)
        self.ray.shutdown()

    def _came(self, task: Any) -> Event:
        job = self.running.pop(task)
        try:
            value: dict[str, Any] = self.ray.get(task)
        except self.ray.exceptions.RayTaskError as error:
            return Event(job, "failed", {"reason": str(error.cause or error).splitlines()[-1]})
        except self.ray.exceptions.RayError:
            return Event(job, "lost")
        return Event(job, value["kind"], value)


Crew = Processes | Cluster
"""Whoever does jobs, ``count`` of them side by side."""


def _knock(address: str) -> None:
    """Raise at once where nobody listens; Ray itself waits for minutes."""
    host, sign, port = address.rpartition(":")
    if sign and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=5.0).close()


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


def take_over(jobs: Sequence[Job], rows: Iterable[Row], store: Store) -> None:
    """Keep results from elsewhere, but those of trainings whose files a job needs that is still to be done.

    Args:
        jobs: All that are wanted.
        rows: The results.
        store: Takes those that it does not hold.
    """
    own = {row.id for row in store.rows()}
    found = {row.id: row for row in rows if row.id not in own}
    waiting = [job for job in jobs if job.id not in own | found.keys()]
    needed = {each.id for job in waiting for each in in_order(job.needs)}
    for name, row in found.items():
        if name not in needed:
            store.add(row)


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


def deciding_first(jobs: Sequence[Job], questions: Iterable[Collection[str]]) -> list[Job]:
    """Return jobs in another order: question by question, whichever then takes the least work next.

    Args:
        jobs: All, each after those that it needs.
        questions: The ids of the jobs that answer each.
    """
    by_id = {job.id: job for job in jobs}
    wanted = [{each.id for name in names for each in in_order([by_id[name]])} for names in questions if names]
    done: dict[str, Job] = {}
    while wanted:
        least = min(wanted, key=lambda names: sum(work(by_id[name].settings) for name in names - done.keys()))
        wanted.remove(least)
        done |= {job.id: job for job in jobs if job.id in least and job.id not in done}
    return [*done.values(), *(job for job in jobs if job.id not in done)]


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
    total = sum(work(job.settings) * median(rates.get(job.settings["model"], [usual])) for job in jobs)
    return total / at_a_time


def work(settings: Settings) -> float:
    """Return the operations of a training, its tests included; other jobs count nothing."""
    if not KINDS[settings["kind"]].trains:
        return 0.0
    known = KNOWN[settings["data"]]
    train, test = settings["train_limit"] or known.train, settings["test_limit"] or known.test
    return float(forward_work(settings) * settings["epochs"] * (PASSES * train + test))
