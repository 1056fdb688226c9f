"""What commands share that go through many jobs: seeds, workers, what is still to be done, progress."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.live import Live
from rich.table import Table

from sparsetune.cli import console
from sparsetune.errors import ConfigError
from sparsetune.host import duration
from sparsetune.studies import (
    Crew,
    Event,
    Job,
    Noted,
    Place,
    Processes,
    Progress,
    Row,
    Store,
    estimate,
    glance,
    go,
    look,
    missing,
    open_store,
    unused,
)


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


DATA = "data"


def seeds_from(text: str) -> tuple[int, ...]:
    """Read seeds such as ``0,1,2``.

    Raises:
        ConfigError: When they are not whole numbers.
    """
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"seeds '{text}' are not whole numbers with commas between, such as 0,1,2."
        ) from error


def crew_of(address: str | None, jobs: int, place: Place) -> Crew:
    """Return workers: processes here, or those of a Ray cluster."""
    if address is None:
        return Processes(jobs, place)
    from sparsetune.studies import Cluster

    return Cluster(address, jobs, place)


def absent_data(wanted: Sequence[Job], sources: Mapping[str, str]) -> list[str]:
    """Return the names of the data that is not here; what needs it is left out with a word."""
    absent = missing(wanted, sources)
    for name, reason in absent.items():
        console.err.print(f"left out, with --data {name}=FOLDER it is run: {reason}")
    return sorted(absent)


def possible(wanted: Sequence[Job], absent: Sequence[str]) -> list[Job]:
    """Return the jobs that need none of the absent data."""
    return [job for job in wanted if not job.data & {*absent}]


def names_of(jobs: Sequence[Job]) -> set[str]:
    """Return the names of all data that jobs take."""
    return set().union(*(job.data for job in jobs))


def digests_in(store: Store, names: set[str], sources: Mapping[str, str]) -> dict[str, str]:
    """Look at the data sets of these names and note it; of others there is what was noted before."""
    noted = {**(store.noted(DATA) or {}), **look(names, sources)}
    store.note(DATA, noted)
    return _digests(noted)


def stored_in(folder: Path, names: set[str], sources: Mapping[str, str]) -> tuple[list[Row], dict[str, str]]:
    """Return all results in a folder and the digests of the data, without a download, writing nothing."""
    rows: list[Row] = []
    noted: Noted = {}
    with contextlib.suppress(OSError), open_store(folder, write=False) as store:
        rows, noted = store.rows(), store.noted(DATA) or {}
    return rows, _digests(glance(names, sources, noted))


def _digests(noted: Noted) -> dict[str, str]:
    return {name: value["digest"] for name, value in noted.items()}


def work_through(
    chosen: list[Job], groups: Mapping[str, list[Job]], store: Store, crew: Crew, deadline: float | None
) -> Progress:
    """Do the jobs, and show how far they are.

    Args:
        chosen: Those that are not in ``store`` are done.
        groups: What stands in a row of the table -> its jobs.
        store: Takes the results.
        crew: Does the jobs.
        deadline: Of ``time.monotonic``, for a clean stop.
    """
    left = None if deadline is None else max(0.0, deadline - time.monotonic())
    _tell_unused(chosen, store.rows())
    with Shown(groups, chosen, store.rows()) as shown:
        return go(chosen, store, crew, time_budget=left, watch=shown)


def tell_open(
    what: str,
    groups: Mapping[str, Sequence[Job]],
    wanted: Sequence[Job],
    rows: list[Row],
    at_a_time: int,
    as_json: bool,
) -> None:
    """Say what is still to be done, and how long it may take.

    Args:
        what: A group is called.
        groups: Name -> jobs; groups may share some.
        wanted: All of them, once each.
        rows: All results so far.
        at_a_time: How many jobs are done side by side.
        as_json: Print JSON.
    """
    finished = {row.id for row in rows}

    def told(jobs: Sequence[Job]) -> dict[str, Any]:
        waiting = [job for job in jobs if job.id not in finished]
        return {"jobs": len(jobs), "open": len(waiting), "seconds": estimate(waiting, rows, at_a_time)}

    table = {name: told(jobs) for name, jobs in groups.items()}
    total = told(wanted)
    _tell_unused(wanted, rows)
    if as_json:
        console.print_json({f"{what}s": [{what: name, **row} for name, row in table.items()], **total})
        return
    cells = [
        [name, str(row["jobs"]), str(row["open"]), _time(row["seconds"])]
        for name, row in [*table.items(), ("all, shared ones once", total)]
    ]
    console.print_table([what, "jobs", "open", "time"], cells)
    if total["seconds"] is None:
        console.err.print("no estimate: nothing was trained on this machine yet.")


def tell_done(progress: Progress, wanted: Sequence[Job], files: Mapping[str, str], as_json: bool) -> None:
    """Say how far it came and which files show it.

    Raises:
        ConfigError: When jobs failed.
    """
    done = sum(job.id in progress.finished for job in wanted)
    if as_json:
        console.print_json(
            {
                "jobs": len(wanted),
                "finished": done,
                "added": len(progress.added),
                "failed": progress.failed,
                **files,
            }
        )
    else:
        console.print_fields([("finished", f"{done} of {len(wanted)} jobs"), *files.items()])
    if done < len(wanted) and not progress.failed:
        console.err.print("what is finished is kept; the same command goes on.")
    ConfigError.collect(f"job {name}: {reason}" for name, reason in progress.failed.items())


def _tell_unused(wanted: Sequence[Job], rows: Sequence[Row]) -> None:
    """Say how many results would stand for jobs to be done if they were of this data and version."""
    if count := len(unused(wanted, rows)):
        are = "result is" if count == 1 else "results are"
        console.err.print(f"{count} stored {are} of other data or another version: kept, and not used.")


def _time(seconds: float | None) -> str:
    return "?" if seconds is None else f"about {duration(seconds)}" if seconds else "-"
