"""``sparsetune reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsetune.cli import console, options

if TYPE_CHECKING:
    from sparsetune.studies import Store
    from sparsetune.studies.paper import Selection

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
    jobs: options.Jobs = 1,
    ray: Annotated[
        str | None,
        typer.Option("--ray", help="Address of a Ray cluster that does them; needs sparsetune[ray]."),
    ] = None,
    time_budget: options.TimeBudget = None,
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
    from sparsetune.studies import VERSION
    from sparsetune.studies.paper import Selection, write_report

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

    def begin(store: Store, selection: Selection, absent: list[str]) -> None:
        store.note(SELECTION, {**selection.to_json(), "absent": absent})

    def end(store: Store, _: Selection) -> dict[str, str]:
        console.err.print("writing the report ...")
        return {"report": str(write_report(store.rows(), store.noted(SELECTION), out / REPORT))}

    go_through(selection, given, ("experiment", "experiment"), begin, end)


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
