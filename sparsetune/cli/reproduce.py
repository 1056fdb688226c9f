"""``sparsetune reproduce``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsetune.cli import console, options
from sparsetune.cli.shown import Shown
from sparsetune.durations import seconds_from
from sparsetune.errors import ConfigError, DataError
from sparsetune.reproduce.crew import Crew, Processes
from sparsetune.reproduce.estimate import estimate
from sparsetune.reproduce.jobs import Job
from sparsetune.reproduce.report import read_results, write_report
from sparsetune.reproduce.runner import Progress, go
from sparsetune.reproduce.selection import Selection
from sparsetune.reproduce.sources import missing, sources_from
from sparsetune.reproduce.store import Row, open_store
from sparsetune.reproduce.place import Place
from sparsetune.words import duration

SELECTION = "selection"
REPORT = "report"


def paper(
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            help="smoke: all ten on digits; short: the paper's 1- and 10-epoch experiments; full: all.",
        ),
    ] = "short",
    only: Annotated[
        str | None, typer.Option("--only", help="Experiments, such as table1,fig2; all of the preset's.")
    ] = None,
    seeds: Annotated[str, typer.Option("--seeds", help="Do everything once with each, such as 0,1,2.")] = "0",
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            help="NAME=FOLDER reads cifar10, cifar100 or tiny-imagenet from there; may be repeated.",
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="At most so many for each training; the report says so.")
    ] = None,
    train_limit: Annotated[
        int | None, typer.Option("--train-limit", help="Use so many training pictures, balanced; likewise.")
    ] = None,
    test_limit: Annotated[
        int | None, typer.Option("--test-limit", help="Use so many test pictures, balanced; likewise.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Trainings side by side.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option("--ray", help="Address of a Ray cluster that does them; needs sparsetune[ray]."),
    ] = None,
    time_budget: Annotated[
        str | None,
        typer.Option(
            "--time-budget", help="Stop cleanly after this long, such as 9m; the same command goes on."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", help="Folder of the results, the trainings and the report.")
    ] = Path("runs/paper"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what there is to do, and how long it may take.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Run the experiments of the paper, and show ours beside theirs.

    Example: sparsetune reproduce paper --preset smoke --jobs 2

    What is finished is kept, whatever happens; the same command goes on. Ends in report/index.html.
    """
    started = time.monotonic()
    budget = None if time_budget is None else seconds_from(time_budget)
    selection = Selection(
        preset=preset,
        only=tuple(only.split(",")) if only else None,
        seeds=_seeds(seeds),
        epochs=epochs,
        train_limit=train_limit,
        test_limit=test_limit,
    )
    sources = sources_from(data or ())
    wanted = selection.jobs()
    if dry_run:
        _tell_open(selection, wanted, _rows(out), jobs, as_json)
        return
    absent = missing(wanted, sources)
    chosen = [job for job in wanted if job.settings["data"] not in absent]
    for name, reason in absent.items():
        console.err.print(f"left out, with --data {name}=FOLDER it is run: {reason}")
    if not chosen:
        raise DataError("no experiment has its data here; say where it is with --data NAME=FOLDER.")
    with open_store(out, write=True) as store:
        store.note(SELECTION, {**selection.to_json(), "absent": sorted(absent)})
        crew = _crew(ray, jobs, Place(out.absolute(), sources))
        left = None if budget is None else max(0.0, budget - (time.monotonic() - started))
        with Shown(selection, chosen, store.rows()) as shown:
            progress = go(chosen, store, crew, time_budget=left, watch=shown)
        console.err.print("writing the report ...")
        page = write_report(store.rows(), store.noted(SELECTION), out / REPORT)
    _tell(progress, chosen, page, as_json)


def report(
    source: Annotated[Path, typer.Argument(help="A folder of `reproduce paper`, or a results.jsonl.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write to; by default SOURCE's own report.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Write the report again from the results that there are.

    Example: sparsetune reproduce report runs/paper
    """
    if source.is_dir():
        with open_store(source, write=False) as store:
            rows, selection = store.rows(), store.noted(SELECTION)
        page = write_report(rows, selection, out or source / REPORT)
    else:
        page = write_report(*read_results(source), out or source.parent)
    if as_json:
        console.print_json({"report": str(page)})
    else:
        console.out.print(str(page))


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"seeds '{text}' are not whole numbers with commas between, such as 0,1,2."
        ) from error


def _crew(address: str | None, jobs: int, place: Place) -> Crew:
    if address is None:
        return Processes(jobs, place)
    from sparsetune.reproduce.ray import Cluster

    return Cluster(address, jobs, place)


def _rows(out: Path) -> list[Row]:
    try:
        with open_store(out, write=False) as store:
            return store.rows()
    except OSError:
        return []


def _tell_open(
    selection: Selection, wanted: list[Job], rows: list[Row], at_a_time: int, as_json: bool
) -> None:
    """Say what is still to be done."""
    finished = {row.id for row in rows}
    table: list[dict[str, Any]] = []
    for experiment in selection.experiments:
        jobs = selection.jobs(experiment)
        waiting = [job for job in jobs if job.id not in finished]
        table.append(
            {
                "experiment": experiment.id,
                "jobs": len(jobs),
                "open": len(waiting),
                "seconds": estimate(waiting, rows, at_a_time),
            }
        )
    waiting = [job for job in wanted if job.id not in finished]
    seconds = estimate(waiting, rows, at_a_time)
    if as_json:
        value = {"experiments": table, "jobs": len(wanted), "open": len(waiting), "seconds": seconds}
        console.print_json(value)
        return
    cells = [
        [str(row["experiment"]), str(row["jobs"]), str(row["open"]), _time(row["seconds"])] for row in table
    ]
    cells.append(["all, shared ones once", str(len(wanted)), str(len(waiting)), _time(seconds)])
    console.print_table(["experiment", "jobs", "open", "time"], cells)
    if seconds is None:
        console.err.print("no estimate: nothing was trained on this machine yet.")


def _time(seconds: float | None) -> str:
    return "?" if seconds is None else f"about {duration(seconds)}" if seconds else "-"


def _tell(progress: Progress, wanted: list[Job], page: Path, as_json: bool) -> None:
    done = sum(job.id in progress.finished for job in wanted)
    if as_json:
        console.print_json(
            {
                "jobs": len(wanted),
                "finished": done,
                "added": len(progress.added),
                "failed": progress.failed,
                "report": str(page),
            }
        )
    else:
        console.print_fields([("finished", f"{done} of {len(wanted)} jobs"), ("report", str(page))])
    if done < len(wanted) and not progress.failed:
        console.err.print("what is finished is kept; the same command goes on.")
    ConfigError.collect(f"job {name}: {reason}" for name, reason in progress.failed.items())
