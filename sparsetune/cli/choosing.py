"""What ``sparsetune fit --budget`` shows of its choice."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from sparsetune.budget import KEPT
from sparsetune.choice import Choice, Trial
from sparsetune.cli import console
from sparsetune.errors import ConfigError
from sparsetune.precision import PRECISIONS, Precision
from sparsetune.sizes import bytes_from


def budget_from(text: str | None, sizes: Mapping[str, object], dim: str, frozen: str | None) -> int | None:
    """Read ``--budget``, which takes the place of the options that say what is learned.

    Args:
        text: The option's value; ``None`` if it was not given.
        sizes: Those options' values by name; ``None`` for one that was not given.
        dim: The value of ``--dim``.
        frozen: The value of ``--frozen``.

    Raises:
        ConfigError: When it is no size, or one of the others is given too; all problems together.
    """
    if text is None:
        return None
    problems = []
    given = [f"--{name}" for name, value in sizes.items() if value is not None]
    given += ["--dim"] if dim != "out" else []
    if given:
        problems.append(
            f"--budget chooses what is learned, and so would {' and '.join(given)}; leave these out."
        )
    if frozen == "zero":
        problems.append("--budget chooses among low ranks too, which --frozen zero excludes; leave one out.")
    nbytes = None
    try:
        nbytes = bytes_from(text)
    except ConfigError as error:
        problems.append(str(error))
    ConfigError.collect(problems)
    return nbytes


def precision_from(text: str | None, budget: str | None) -> Precision | None:
    """Read ``--dtype``; left out, it keeps all bits, or with a budget as few as may be.

    Args:
        text: The option's value; ``None`` if it was not given.
        budget: The value of ``--budget``; likewise.

    Raises:
        ConfigError: When it is no precision.
    """
    named: dict[str, Precision | None] = {"float32": None, **{name: name for name in PRECISIONS}}
    if text is None:
        return None if budget is None else KEPT
    if text not in named:
        raise ConfigError(f"--dtype '{text}' is not one of {', '.join(named)}.")
    return named[text]


def tell(event: Trial | Choice) -> None:
    """Show a trial as a line, and a choice as a table, on stderr."""
    if isinstance(event, Trial):
        said = "diverged" if event.loss is None else f"held-out loss {event.loss:.3f}"
        console.err.print(f"trial  {event.name}: {said} after {event.steps} steps")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("candidate", "learned", "bytes", "steps", "loss", "accuracy", ""):
        is_name = column == "candidate"
        table.add_column(column, justify="left" if is_name else "right", no_wrap=is_name)
    for trial in event.trials:
        tried = trial.loss is not None and trial.top1 is not None
        table.add_row(
            trial.name,
            f"{trial.learned_parameters:,}",
            f"{trial.delta_bytes:,}",
            f"{trial.steps}" if trial.steps else "-",
            f"{trial.loss:.3f}" if tried else "-",
            f"{trial.top1:.2%}" if tried else "-",
            "chosen" if trial.name == event.name else "",
        )
    console.err.print(table)
    console.err.print(f"chosen  {event.name}: {event.why}")
