"""What ``sparsetune fit`` says: of what a budget is spent on, and at the end."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from sparsetune.cli import console
from sparsetune.data import NAMES, Seen
from sparsetune.delta import inspect
from sparsetune.errors import ConfigError
from sparsetune.host import DELTA, bytes_from
from sparsetune.parts import PRECISIONS, Precision
from sparsetune.runs import BUNDLE, CHECKPOINT, CURVES, KEPT, Choice, Outcome, Run, Together, Trial


def tell_run(outcome: Outcome, settings: Run, as_json: bool) -> None:
    """Say what one run came to."""
    if as_json:
        console.print_json(_summary(outcome))
    elif outcome.finished:
        _report(outcome, settings)
    if outcome.finished:
        _tell_shared(outcome.folder / DELTA)
    else:
        console.err.print(
            f"time is up after {_epochs(len(outcome.history))} of {settings.config.epochs}, "
            f"saved in {outcome.folder}; the same command with --resume goes on."
        )


def tell_members(together: Together, settings: Run, count: int, as_json: bool) -> None:
    """Say what an ensemble came to."""
    if as_json:
        value: dict[str, Any] = {"folder": str(together.folder), "finished": together.finished}
        value["members"] = [_summary(member) for member in together.members]
        if together.scores and together.diversity:
            value["ensemble"] = {**together.scores.to_json(), **together.diversity.to_json()}
        console.print_json(value)
    elif together.scores and together.diversity:
        single = [_result(delta)["test_top1"] for delta in together.deltas]
        learned = sum(member.plan.learned_parameters for member in together.members)
        sizes = [delta.stat().st_size for delta in together.deltas]
        console.print_fields(
            [
                ("ensemble accuracy", f"{together.scores.top1:.2%}  (loss {together.scores.nll:.3f})"),
                (
                    "members",
                    f"{', '.join(f'{top1:.2%}' for top1 in single)}  (mean {sum(single) / count:.2%})",
                ),
                ("disagreement", f"{together.diversity.disagreement:.2%} of pairs"),
                ("learned", f"{learned:,} values in {count} members"),
                ("size", f"{console.size(sum(sizes))} in {together.folder}"),
            ]
        )
        bundled = together.folder / BUNDLE
        files = [bundled] if bundled.is_file() else together.deltas
        console.out.print(f"\nnext: {shlex.join(_next(files, together.deltas[0], settings))}")
    if together.finished:
        _tell_shared(together.deltas[0])
    else:
        done = sum(member.finished for member in together.members)
        console.err.print(
            f"time is up after {done} of {count} members, saved in {together.folder}; "
            "the same command with --resume goes on."
        )


def _tell_shared(delta: Path) -> None:
    """Say where test pictures were trained on."""
    seen = Seen.from_json(inspect(delta).training)
    if seen and seen.shared:
        console.err.print(
            f"{seen.shared:,} of the test pictures were trained on, now or before, so the test accuracy is "
            "better than on new ones; take them out of one of the two."
        )


def _summary(outcome: Outcome) -> dict[str, Any]:
    delta = outcome.folder / DELTA
    chosen = {} if outcome.choice is None else {"choice": outcome.choice.to_json()}
    return {
        "folder": str(outcome.folder),
        "finished": outcome.finished,
        "epochs": [record.to_json() for record in outcome.history],
        "learned_parameters": outcome.plan.learned_parameters,
        "total_parameters": outcome.plan.total_parameters,
        "delta": str(delta) if outcome.finished else None,
        "delta_bytes": delta.stat().st_size if outcome.finished else None,
        "result": _result(delta) if outcome.finished else None,
        "checkpoint": None if outcome.finished else str(outcome.folder / CHECKPOINT),
        **chosen,
    }


def _report(outcome: Outcome, settings: Run) -> None:
    made, delta = outcome.plan, outcome.folder / DELTA
    result = _result(delta)
    top1, top5, loss = (result[f"test_{name}"] for name in ("top1", "top5", "loss"))
    kept = f" as {settings.dtype}" if settings.dtype else ""
    whole, size = made.total_parameters * made.itemsize, delta.stat().st_size
    seconds = sum(record.seconds for record in outcome.history)
    console.print_fields(
        [
            (
                "test accuracy",
                f"{top1:.2%}  (top-5 {top5:.2%}, loss {loss:.3f})",
            ),
            ("learned", console.share(made.learned_parameters, made.total_parameters)),
            ("delta", str(delta)),
            ("size", f"{console.size(size)}{kept}, {size / whole:.1%} of a whole checkpoint"),
            ("curves", str(outcome.folder / CURVES)),
            ("time", f"{seconds:.1f} s for {_epochs(len(outcome.history))}"),
        ]
    )
    console.out.print(f"\nnext: {shlex.join(_next([delta], delta, settings))}")


def _result(delta: Path) -> dict[str, float]:
    """What the file says that it scores: a file in fewer bits was tested as such."""
    found: dict[str, float] = inspect(delta).training["result"]
    return found


def _next(files: list[Path], delta: Path, settings: Run) -> list[str]:
    """The command that measures the files, of which ``delta`` is one; it works where ``fit`` worked."""
    words = ["sparsetune", "eval", *map(str, files)]
    if settings.data not in NAMES:
        words += ["--data", settings.data]
    root = inspect(delta).backbone.root
    if root.kind == "file":
        words += ["--backbone", str(settings.init_from)]
    if root.kind == "pretrained":
        words += ["--allow-network"]
    return words


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' * (count != 1)}"


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
