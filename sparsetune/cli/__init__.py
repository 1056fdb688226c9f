"""The command line: parse, call, print."""

from __future__ import annotations

import sys

import typer

from sparsetune.cli import bench, deltas, evaluate, fit, models, plan, predict
from sparsetune.errors import SparsetuneError

INTERRUPTED = 130

app = typer.Typer(
    name="sparsetune",
    help="Learn a slice of each layer over a frozen backbone rebuilt from a seed; save only the slice.\n\n"
    "Start with: sparsetune fit --model wrn28_4 --fraction 0.1",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("fit")(fit.fit)
app.command("plan")(plan.plan)
app.command("eval")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("info")(deltas.info)
app.command("verify")(deltas.verify)
app.command("merge")(deltas.merge)
app.command("bench")(bench.bench)
app.command("models")(models.models)


def main() -> None:
    """Run the command line; a user's mistake ends in one sentence and exit code 2."""
    try:
        app()
    except SparsetuneError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("interrupted; all that was finished is kept.", err=True)
        sys.exit(INTERRUPTED)
