"""Whoever does the jobs: processes here, of which one that dies is replaced, or a Ray cluster."""

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
from dataclasses import dataclass, field
from typing import Any

import torch

from sparsetune.errors import ConfigError
from sparsetune.host import reason
from sparsetune.studies.jobs import Job
from sparsetune.studies.store import Place
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
