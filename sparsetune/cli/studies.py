"""``sparsetune compare`` and ``sparsetune reproduce``: what they read, do and say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsetune.cli import console, options
from sparsetune.errors import ConfigError
from sparsetune.host import describe_machine, write_text

if TYPE_CHECKING:
    from sparsetune.studies import Job, Row, Store
    from sparsetune.studies.compare import Comparison, Table
    from sparsetune.studies.paper import Selection

RESULTS, PICTURE = "results.jsonl", "comparison.png"


def compare(
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            help="smoke: does it work; digits; small: six benchmarks, for a CPU; full: for a GPU.",
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
    titles = {name: benchmark.title for name, benchmark in comparison.benchmarks.items()}
    draw(points, titles, out / PICTURE)
    if not as_json:
        for name, title in titles.items():
            here = [point for point in points if point.benchmark == name]
            console.out.print(f"{title}:")
            for table in (methods(here), budgets(verdicts(here)), chosen(choices(here))):
                _print(table)
    return {**files, "picture": str(out / PICTURE)}


def _print(table: Table) -> None:
    if table[1]:
        console.print_table(*table)
        console.out.print()


SELECTION = "selection"
REPORT = "report"


def paper(
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            help="smoke: all ten on digits; laptop: all ten, smaller, on real data, and one of ours on text; "
            "short: the paper's 1- and 10-epoch experiments; full: all.",
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
    jobs: options.Jobs = 1,
    ray: Annotated[
        str | None,
        typer.Option("--ray", help="Address of a Ray cluster that does them; needs sparsetune[ray]."),
    ] = None,
    time_budget: options.TimeBudget = None,
    results: Annotated[
        Path | None,
        typer.Option(
            "--results", help="Take finished results from this results.jsonl, and add each new one to it."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", help="Folder of the results, the trainings and the report.")
    ] = Path("runs/paper"),
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Run the experiments of the paper, and show ours beside theirs.

    Example: sparsetune reproduce paper --preset smoke --jobs 2

    What is finished is kept, whatever happens; the same command goes on. Ends in report/index.html.
    """
    from sparsetune.cli.batch import Options, deadline_of, go_through, seeds_from
    from sparsetune.studies import VERSION, deciding_first, take_over
    from sparsetune.studies.paper import Selection, questions, read_results, write_report, write_results

    given = Options(data or (), jobs, deadline_of(time_budget), out, dry_run, as_json, ray)
    selection = Selection(
        preset=preset,
        only=tuple(only.split(",")) if only else None,
        seeds=seeds_from(seeds),
        epochs=epochs,
        train_limit=train_limit,
        test_limit=test_limit,
        version=VERSION,
    )

    before = {row.id: row for row in read_results(results)[0]} if results and results.is_file() else {}

    def begin(store: Store, selection: Selection, absent: list[str]) -> None:
        store.note(SELECTION, {**selection.to_json(), "absent": absent})
        take_over(selection.jobs(), before.values(), store)

    def each(store: Store) -> None:
        if results:
            rows = before | {row.id: row for row in store.rows()}
            write_results(rows.values(), store.noted(SELECTION), results)

    def end(store: Store, _: Selection) -> dict[str, str]:
        console.err.print("writing the report ...")
        return {"report": str(write_report(store.rows(), store.noted(SELECTION), out / REPORT))}

    def order(selection: Selection, jobs: list[Job]) -> list[Job]:
        here = {job.id for job in jobs}
        return deciding_first(jobs, [names for names in questions(selection) if names <= here])

    go_through(selection, given, ("experiment", "experiment"), begin, end, each, order)


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
    from sparsetune.studies import open_store
    from sparsetune.studies.paper import read_results, write_report

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
