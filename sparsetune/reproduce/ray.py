"""A Ray cluster as a crew: each job is a task; one whose worker dies goes on from its checkpoint."""

from __future__ import annotations

import logging
import math
import socket
from typing import Any

from sparsetune.errors import ConfigError
from sparsetune.reproduce.crew import Event
from sparsetune.reproduce.jobs import Job
from sparsetune.reproduce.place import Place
from sparsetune.reproduce.worker import do


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
            reason = " ".join(str(error).split())[:200].rstrip(".")
            raise ConfigError(
                f"no Ray cluster answers at '{address}' ({reason}); start one with `ray start --head`."
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


def _knock(address: str) -> None:
    """Raise at once where nobody listens; Ray itself waits for minutes."""
    host, sign, port = address.rpartition(":")
    if sign and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=5.0).close()
