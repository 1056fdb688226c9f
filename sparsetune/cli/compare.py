"""``sparsetune compare``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsetune.cli import console, options
from sparsetune.errors import ConfigError
from sparsetune.host import describe_machine, write_text

if TYPE_CHECKING:
    from sparsetune.studies import Row, Store
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
    from sparsetune.cli.batch import Options, deadline_of, go_through, seeds_from
    from sparsetune.studies import VERSION
    from sparsetune.studies.compare import Comparison

    given = Options(data or (), jobs, deadline_of(time_budget), out, dry_run, as_json)
    here = describe_machine()
    comparison = Comparison(
        preset=preset,
        only=tuple(only.split(",")) if only else None,
        seeds=seeds_from(seeds),
        version=VERSION,
        machine=str(here["accelerator"] or here["processor"]),
    )
    if not is_installed():
        comparison = _without_peft(comparison)

    def end(store: Store, comparison: Comparison) -> dict[str, str]:
        return _write(store.rows(), comparison, out, as_json)

    go_through(comparison, given, ("comparison", "group"), lambda *_: None, end)


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
