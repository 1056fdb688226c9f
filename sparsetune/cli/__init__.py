"""The command line: parse, call, print."""

from __future__ import annotations

import functools
import logging
import shlex
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.completion import completion_init  # type: ignore[attr-defined]

from sparsetune.cli import console, deltas, evaluate, fit, models, studies
from sparsetune.cli.options import expanded
from sparsetune.errors import Interrupted, SparsetuneError, Terminated

MISTAKE, INTERRUPTED, TERMINATED = 2, 130, 143

app = typer.Typer(
    name="sparsetune",
    help="Fine-tune a part of each layer over a frozen backbone; save only that part.\n\n"
    "Your pictures: sparsetune fit --model resnet18 --pretrained --data photos/\n\n"
    "A first try, without a network: sparsetune fit --model wrn28_4 --fraction 0.1",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
completion_init()  # _SPARSETUNE_COMPLETE=source_bash sparsetune prints what bash evaluates


def _tell_version(asked: bool) -> None:
    if asked:
        from sparsetune import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _whole(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None: ...


papers = typer.Typer(
    name="reproduce",
    help="Run the experiments of the paper again, and show ours beside theirs.",
    no_args_is_help=True,
)


def _command(
    name: str, function: Callable[..., None], group: typer.Typer = app, panel: str | None = None
) -> None:
    """Add a command; a user's mistake ends in one sentence, and so does Ctrl-C."""
    command = expanded(function)

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        for library in ("huggingface_hub", "matplotlib"):
            logging.getLogger(library).setLevel(logging.ERROR)
        try:
            with console.own_warnings():
                command(*args, **kwargs)
        except SparsetuneError as error:
            console.complain(error)
            raise typer.Exit(MISTAKE) from error
        except KeyboardInterrupt as interrupt:
            typer.echo(_kept(interrupt), err=True)
            ended = isinstance(interrupt.__cause__ or interrupt, Terminated)
            raise typer.Exit(TERMINATED if ended else INTERRUPTED) from interrupt

    group.command(name, rich_help_panel=panel)(guarded)


def _kept(interrupt: KeyboardInterrupt) -> str:
    """Say what is left of a command that was interrupted, and how to go on."""
    if not isinstance(interrupt, Interrupted):
        return "interrupted; all that was finished is kept."
    words = ["sparsetune", *(word for word in sys.argv[1:] if word != "--resume"), "--resume"]
    return f"interrupted; what was learned so far is in {interrupt.folder}. Go on with:\n{shlex.join(words)}"


PANELS: dict[str, dict[str, Callable[..., None]]] = {
    "Learn": {"fit": fit.fit, "plan": models.plan, "models": models.models},
    "Use": {
        "eval": evaluate.evaluate,
        "predict": evaluate.predict,
        "info": deltas.info,
        "verify": deltas.verify,
        "push": deltas.push,
        "pull": deltas.pull,
    },
    "Make another file of it": {
        "merge": deltas.merge,
        "export": deltas.export,
        "compress": deltas.compress,
        "slim": deltas.slim,
        "bundle": deltas.bundle,
        "soup": deltas.soup,
        "stack": deltas.stack,
        "diff": deltas.diff,
        "convert": deltas.convert,
    },
    "Measure": {"bench": models.bench, "compare": studies.compare, "doctor": models.doctor},
}
"""Commands as help shows them together."""
for _panel, _commands in PANELS.items():
    for _name, _function in _commands.items():
        _command(_name, _function, panel=_panel)
app.add_typer(papers, rich_help_panel="Measure")
_command("paper", studies.paper, papers)
_command("report", studies.report, papers)


def main() -> None:
    """Run the command line; what ends it from outside (Slurm, Docker, ``timeout``) is met as Ctrl-C is."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except Terminated:
        sys.exit(TERMINATED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _terminate(*_: object) -> None:
    raise Terminated
