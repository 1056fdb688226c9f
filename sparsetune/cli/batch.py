"""What commands share that go through many jobs: their options, what is still to be done, progress."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from rich.live import Live
from rich.table import Table

from sparsetune.cli import console
from sparsetune.errors import ConfigError, DataError
from sparsetune.host import duration, seconds_from
from sparsetune.studies import (
    Cluster,
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
    in_order,
    look,
    missing,
    open_store,
    sources_from,
    unused,
)
from sparsetune.studies.compare import Comparison
from sparsetune.studies.paper import Selection

Study = TypeVar("Study", Comparison, Selection)


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


@dataclass(frozen=True)
class Options:
    """What is said to every command that goes through many jobs.

    Attributes:
        data: Words ``NAME=FOLDER``.
        jobs: How many jobs are done side by side.
        deadline: Of ``time.monotonic``, for a clean stop; ``None`` for none.
        out: Folder of the results.
        dry_run: Only say what there is to do.
        as_json: Print JSON.
        ray: Address of a cluster that does them; ``None`` for processes here.
    """

    data: Sequence[str]
    jobs: int
    deadline: float | None
    out: Path
    dry_run: bool
    as_json: bool
    ray: str | None = None


def deadline_of(time_budget: str | None) -> float | None:
    """Return when the time of ``--time-budget`` is up, by ``time.monotonic``."""
    return None if time_budget is None else time.monotonic() + seconds_from(time_budget)


def go_through(
    study: Study,
    options: Options,
    words: tuple[str, str],
    begin: Callable[[Store, Study, list[str]], None],
    end: Callable[[Store, Study], Mapping[str, str]],
    each: Callable[[Store], None] = lambda _: None,
    order: Callable[[Study, list[Job]], list[Job]] = lambda _, jobs: jobs,
) -> None:
    """Do what a study has left to do, and say how far it came; with ``--dry-run`` only say what that is.

    Args:
        study: Without digests of its data.
        options: How.
        words: What the study, and what a group of its jobs, is called.
        begin: Called before the first job, with the names of the data that is not here.
        end: Called after the last; returns what the files are called that it wrote.
        each: Called after each finished job.
        order: Returns jobs in the order in which they are to be done.

    Raises:
        DataError: When no data is here.
        ConfigError: When jobs failed.
    """
    sources = sources_from(options.data)
    names = set[str]().union(*(job.data for job in _jobs(study)))
    if options.dry_run:
        rows: list[Row] = []
        noted: Noted = {}
        with contextlib.suppress(OSError), open_store(options.out, write=False) as store:
            rows, noted = store.rows(), store.noted(DATA) or {}
        study = _resting_on(study, glance(names, sources, noted))  # without a download
        tell_open(words[1], study.groups, rows, options.jobs, options.as_json)
        return
    absent = missing(_jobs(study), sources)
    for name, reason in absent.items():
        console.err.print(f"left out, with --data {name}=FOLDER it is run: {reason}")
    if not any(job.data.isdisjoint(absent) for job in _jobs(study)):
        raise DataError(f"no {words[0]} has its data here; say where it is with --data NAME=FOLDER.")
    with open_store(options.out, write=True) as store:
        noted = {**(store.noted(DATA) or {}), **look(names.difference(absent), sources)}
        store.note(DATA, noted)
        study = _resting_on(study, noted)
        begin(store, study, sorted(absent))
        chosen = order(study, [job for job in _jobs(study) if job.data.isdisjoint(absent)])
        place = Place(options.out.absolute(), sources)
        crew = (
            Processes(options.jobs, place)
            if options.ray is None
            else Cluster(options.ray, options.jobs, place)
        )
        left = None if options.deadline is None else max(0.0, options.deadline - time.monotonic())
        _tell_unused(chosen, store.rows())
        with Shown(study.groups, chosen, store.rows()) as shown:

            def watch(progress: Progress, event: Event | None) -> None:
                shown(progress, event)
                if event is not None and event.kind == "finished":
                    each(store)

            progress = go(chosen, store, crew, time_budget=left, watch=watch)
        files = end(store, study)
    tell_done(progress, chosen, files, options.as_json)


def _resting_on(study: Study, noted: Noted) -> Study:
    return replace(study, digests={name: value["digest"] for name, value in noted.items()})


def _jobs(study: Study) -> list[Job]:
    """Every job once, each after those that it needs."""
    return [*in_order(job for jobs in study.groups.values() for job in jobs)]


def tell_open(
    what: str,
    groups: Mapping[str, Sequence[Job]],
    rows: list[Row],
    at_a_time: int,
    as_json: bool,
) -> None:
    """Say what is still to be done, and how long it may take.

    Args:
        what: A group is called.
        groups: Name -> jobs; groups may share some.
        rows: All results so far.
        at_a_time: How many jobs are done side by side.
        as_json: Print JSON.
    """
    finished = {row.id for row in rows}

    def told(jobs: Sequence[Job]) -> dict[str, Any]:
        waiting = [job for job in jobs if job.id not in finished]
        return {"jobs": len(jobs), "open": len(waiting), "seconds": estimate(waiting, rows, at_a_time)}

    wanted = [*in_order(job for jobs in groups.values() for job in jobs)]
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
