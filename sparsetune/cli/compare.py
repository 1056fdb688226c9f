"""``sparsetune compare``."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsetune.cli import console, options
from sparsetune.errors import ConfigError, DataError
from sparsetune.host import describe_machine, seconds_from, write_text

if TYPE_CHECKING:
    from sparsetune.studies import Row
    from sparsetune.studies.compare import Comparison, Table

RESULTS, PICTURE = "results.jsonl", "comparison.png"


def compare(
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            help="smoke: does it work; digits; small: six grounds, for a CPU; full: for a GPU.",
        ),
    ] = "digits",
    only: Annotated[
        str | None,
        typer.Option("--only", help="Families of methods, such as rank,lora; all of them by default."),
    ] = None,
    seeds: Annotated[str, typer.Option("--seeds", help="Train each method once with each.")] = "0,1,2",
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", help="NAME=FOLDER reads cifar10 or tiny-imagenet from there; may be repeated."
        ),
    ] = None,
    jobs: options.Jobs = 1,
    time_budget: options.TimeBudget = None,
    out: Annotated[
        Path, typer.Option("--out", help="Folder of the results, the trainings and the picture.")
    ] = Path("runs/compare"),
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Compare accuracy a byte and a second: slices, low rank, all, PEFT LoRA.

    Example: sparsetune compare --preset digits --time-budget 9m

    Each method's learning rate is tuned on held-out pictures; at the end a step of each is timed, in
    turn. What is finished is kept; the same command goes on. Ends in results.jsonl and comparison.png.
    """
    from sparsetune.bench import is_installed
    from sparsetune.cli.batch import (
        absent_data,
        crew_of,
        digests_in,
        names_of,
        possible,
        seeds_from,
        stored_in,
        tell_done,
        tell_open,
        work_through,
    )
    from sparsetune.studies import VERSION, Place, open_store, sources_from
    from sparsetune.studies.compare import Comparison

    deadline = None if time_budget is None else time.monotonic() + seconds_from(time_budget)
    families = tuple(only.split(",")) if only else None
    here = describe_machine()
    machine = str(here["accelerator"] or here["processor"])
    comparison = Comparison(
        preset=preset, only=families, seeds=seeds_from(seeds), version=VERSION, machine=machine
    )
    sources = sources_from(data or ())
    if not is_installed():
        comparison = _without_peft(comparison)
    names = names_of(comparison.jobs)
    if dry_run:
        rows, digests = stored_in(out, names, sources)
        comparison = replace(comparison, digests=digests)
        tell_open("group", comparison.groups, comparison.jobs, rows, jobs, as_json)
        return
    absent = absent_data(comparison.jobs, sources)
    if not possible(comparison.jobs, absent):
        raise DataError("no comparison has its data here; say where it is with --data NAME=FOLDER.")
    with open_store(out, write=True) as store:
        comparison = replace(comparison, digests=digests_in(store, names.difference(absent), sources))
        chosen = possible(comparison.jobs, absent)
        crew = crew_of(None, jobs, Place(out.absolute(), sources))
        progress = work_through(chosen, comparison.groups, store, crew, deadline)
        files = _write(store.rows(), comparison, out, as_json)
    tell_done(progress, chosen, files, as_json)


def _without_peft(comparison: Comparison) -> Comparison:
    """Leave out, with a word, what needs PEFT."""
    from sparsetune.studies.compare import FAMILIES, THEIRS

    families = comparison.only or tuple(FAMILIES)
    left = tuple(name for name in families if name not in THEIRS)
    if left == families:
        return comparison
    if not left:
        raise ConfigError("nothing is left to compare; install PEFT, or choose other families with --only.")
    console.err.print("left out: PEFT is not installed; pip install 'sparsetune[peft]'.")
    return replace(comparison, only=left)


def _write(rows: list[Row], comparison: Comparison, out: Path, as_json: bool) -> dict[str, str]:
    """Write results and picture, print the tables; return the files."""
    from sparsetune.studies.compare import budgets, choices, chosen, draw, find, lines, methods, verdicts

    write_text(out / RESULTS, lines(rows, comparison))
    files = {"results": str(out / RESULTS)}
    points = find(rows, comparison)
    if not points:
        return files
    titles = {name: ground.title for name, ground in comparison.grounds.items()}
    draw(points, titles, out / PICTURE)
    if not as_json:
        for name, title in titles.items():
            here = [point for point in points if point.ground == name]
            console.out.print(f"{title}:")
            for table in (methods(here), budgets(verdicts(here)), chosen(choices(here))):
                _print(table)
    return {**files, "picture": str(out / PICTURE)}


def _print(table: Table) -> None:
    if table[1]:
        console.print_table(*table)
        console.out.print()
