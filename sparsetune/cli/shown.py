"""What ``sparsetune reproduce`` and ``sparsetune compare`` show while they run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.live import Live
from rich.table import Table

from sparsetune.cli import console
from sparsetune.reproduce.crew import Event
from sparsetune.reproduce.estimate import estimate
from sparsetune.reproduce.jobs import Job
from sparsetune.reproduce.runner import Progress
from sparsetune.reproduce.store import Row
from sparsetune.words import duration


class Shown:
    """A live table on stderr; where that is no terminal, a line for each finished job.

    Args:
        groups: What stands in a row of the table -> its jobs.
        jobs: All that are to be done.
        rows: All results so far.
    """

    def __init__(self, groups: Mapping[str, list[Job]], jobs: list[Job], rows: list[Row]) -> None:
        self.jobs = {job.id: job for job in jobs}
        self.groups = groups
        self.started, self.rows = time.monotonic(), rows
        self.live = Live(console=console.err, auto_refresh=False, transient=True)
        self.moving = console.err.is_terminal and not console.silent

    def __enter__(self) -> Shown:
        if self.moving:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.moving:
            self.live.stop()

    def __call__(self, progress: Progress, event: Event | None) -> None:
        """Show where the work stands, and what happened to a job."""
        if event is not None and event.kind not in ("step", "stopped"):
            self._line(progress, event)
        if self.moving:
            self.live.update(self._table(progress), refresh=True)

    def _line(self, progress: Progress, event: Event) -> None:
        name = self.jobs[event.job].name
        if event.kind == "finished":
            result = event.value["result"]
            said = (
                "diverged"
                if "diverged" in result
                else f"{result['top1']:.2%}"
                if "top1" in result
                else "done"
            )
            console.err.print(f"{len(progress.finished):>4}  {event.job}  {name}  {said}")
        elif event.kind == "lost":
            console.err.print(f"a worker died at {event.job}  {name}; it goes on from its last checkpoint.")
        else:
            console.err.print(f"failed  {event.job}  {name}: {event.value['reason']}")

    def _table(self, progress: Progress) -> Table:
        table = Table(box=None, pad_edge=False)
        for column in ("", "finished", "of", "now"):
            table.add_column(column, justify="left" if column in ("", "now") else "right")
        for name, jobs in self.groups.items():
            done = sum(job.id in progress.finished for job in jobs)
            now = [job for job in jobs if job.id in progress.running]
            words = "; ".join(f"{job.name} {progress.running[job.id]:.0%}" for job in now[:2])
            table.add_row(name, str(done), str(len(jobs)), words)
        waiting = [job for job in self.jobs.values() if job.id not in progress.finished]
        seconds = estimate(waiting, [*self.rows, *progress.added], max(1, len(progress.running)))
        spent = duration(time.monotonic() - self.started)
        left = "" if seconds is None else f"; about {duration(seconds)} left"
        table.add_row("all", str(len(self.jobs) - len(waiting)), str(len(self.jobs)), f"{spent}{left}")
        return table
