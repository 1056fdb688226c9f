"""What a training tells: at its start, after each step and epoch, and at its end; and a bar meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields, replace
from html import escape
from typing import Any, Literal

from sparsetune.backbone import Backbone
from sparsetune.data import Data
from sparsetune.host import is_main, share
from sparsetune.parts import Plan
from sparsetune.spec import FitConfig, Recipe
from sparsetune.train.recipe import Rate

MOST_SHOWN = 12
"""Epochs of a table; of more, some in the middle are left out."""


@dataclass(frozen=True)
class Epoch:
    """One finished epoch.

    Where the data has validation pictures, every epoch is looked at with these, and the test pictures, if
    there are any, are kept for the last one. Elsewhere there are no ``validation`` values.

    Attributes:
        epoch: Its number, from 1.
        lr: Learning rate of its last step.
        train_loss: Mean cross-entropy over its training pictures, in nats, as they were met.
        train_top1: Share of them classified rightly.
        test_loss: Mean cross-entropy over the test pictures after it.
        test_top1: Share of test pictures classified rightly.
        test_top5: Share whose class is among the five likeliest, where there are more classes.
        seconds: Wall time, evaluation included, of the part since the last start.
        validation_loss: As ``test_loss``, over the validation pictures.
        validation_top1: Likewise.
        validation_top5: Likewise.
        kept: Of a training's last epoch, the one whose values are kept where that is another; the test is
            theirs.
        stopped: Whether the training ended with it, before all its epochs.
    """

    epoch: int
    lr: float
    train_loss: float
    train_top1: float
    test_loss: float | None = None
    test_top1: float | None = None
    test_top5: float | None = None
    seconds: float = 0.0
    validation_loss: float | None = None
    validation_top1: float | None = None
    validation_top5: float | None = None
    kept: int | None = None
    stopped: bool | None = None

    @property
    def watched(self) -> Literal["validation", "test"]:
        """The split that every epoch is looked at with."""
        return "test" if self.validation_top1 is None else "validation"

    @property
    def judged(self) -> Literal["validation", "test"]:
        """The split that tells what was learned: the test where it was taken."""
        return "validation" if self.test_top1 is None else "test"

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values, those that were measured."""
        return {name: value for name, value in asdict(self).items() if value is not None}


KINDS: dict[str, tuple[type, ...]] = {field.name: (float, int) for field in fields(Epoch)}
KINDS |= {"epoch": (int,), "kept": (int,), "stopped": (bool,)}
NEEDED = {field.name for field in fields(Epoch) if field.default is MISSING}
"""What a record holds, of which type, and what every one does."""


@dataclass(frozen=True)
class Step:
    """One training step, for whoever shows progress.

    Attributes:
        epoch: The epoch it belongs to, from 1.
        step: Steps taken in the epoch.
        steps: Steps of a whole epoch.
        loss: Mean loss of the epoch so far.
    """

    epoch: int
    step: int
    steps: int
    loss: float


Watch = Callable[["Step | Epoch"], None]


@dataclass(frozen=True)
class Start:
    """What a training is about to do.

    Attributes:
        backbone: What it stands on.
        plan: What is learned.
        data: From what.
        config: How, with everything decided.
        rate: How the learning rate was found, where it was.
    """

    backbone: Backbone
    plan: Plan
    data: Data
    config: FitConfig
    rate: Rate | None = None

    def lines(self) -> Iterator[str]:
        """Say it in lines."""
        root, plan, data = self.backbone.root, self.plan, self.data
        said = self.backbone.describe()
        yield f"learning over a random backbone ({said})" if root.kind == "seed" else f"learning over {said}"
        if data.found:
            yield data.found
        learned = share(plan.learned_parameters, plan.total_parameters)
        yield f"learning {learned} on {len(data.train or ()):,} pictures of {data.name}"
        yield f"learning from {data.preprocessing.describe()} ({data.decided})"
        if self.rate:
            yield from self.rate.lines()
        yield f"learning with {self.config.describe()}"


class History(list[Epoch]):
    """The record of each finished epoch, and how the training went; it prints itself as a table.

    Args:
        records: The records.
        config: The settings as they were followed.
        recipe: What decided those that were left out.
        rate: How the learning rate was found, where it was ``auto``.
        about: What was learned from what, and how, in lines.
    """

    def __init__(
        self,
        records: Iterable[Epoch],
        config: FitConfig,
        recipe: Recipe,
        rate: Rate | None = None,
        about: Sequence[str] = (),
    ) -> None:
        super().__init__(records)
        self.config, self.recipe, self.rate, self.about = config, recipe, rate, tuple(about)

    @property
    def finished(self) -> bool:
        """Whether all of it is done."""
        return is_finished(self, self.config)

    def __repr__(self) -> str:
        header, rows = self._table()
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        lines = ["  ".join(f"{c:>{w}}" for c, w in zip(row, widths, strict=True)) for row in (header, *rows)]
        return "\n".join([*lines, self.end])

    def _repr_html_(self) -> str:
        """Return the table as notebooks show it."""
        header, rows = self._table()
        head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
        body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return f"{table}<p>{escape(self.end)}</p>"

    @property
    def end(self) -> str:
        """How it ended, in a line: whether it is finished, what was kept, and what that is worth."""
        done = f"{len(self)} of {self.config.epochs} epochs"
        if not self.finished:
            return f"not finished: {done}"
        last = final(self)
        early = f"stopped early after {done}" if last.stopped else f"finished: {done}"
        kept = f"; kept is epoch {last.kept or last.epoch}"
        return f"{early}{kept}; {last.judged} accuracy {getattr(last, f'{last.judged}_top1'):.2%}"

    def _table(self) -> tuple[list[str], list[list[str]]]:
        """The cells of the table: of its header and of its rows."""
        watched = self[-1].watched if self else "validation"
        rows = [
            [
                str(each.epoch),
                f"{each.train_loss:.3f}",
                f"{each.train_top1:.2%}",
                f"{getattr(each, f'{watched}_top1'):.2%}",
                f"{each.seconds:.1f}",
            ]
            for each in self
        ]
        if len(rows) > MOST_SHOWN:
            half = MOST_SHOWN // 2
            rows = [*rows[:half], ["…"] * len(rows[0]), *rows[-half:]]
        return ["epoch", "loss", "train", watched, "seconds"], rows


def records_from(values: Iterable[Any]) -> list[Epoch]:
    """Rebuild the records of a training's epochs, of which each was given by :meth:`Epoch.to_json`.

    Raises:
        ValueError: When they are not such records, of the first epoch and those after it.
    """
    records = []
    for number, value in enumerate(values, 1):
        if not (isinstance(value, dict) and NEEDED <= value.keys() <= KINDS.keys()):
            raise ValueError(f"the record of epoch {number} has not the fields of one")
        if wrong := [name for name, each in value.items() if type(each) not in KINDS[name] or _is_long(each)]:
            raise ValueError(f"{wrong[0]} of epoch {number} is {str(value[wrong[0]])[:50]!r}")
        record = Epoch(**value)
        kept = number if record.kept is None else record.kept
        if record.epoch != number or not 1 <= kept <= number:
            raise ValueError(f"the record of epoch {number} is of another")
        records.append(record)
    return records


def _is_long(value: float) -> bool:
    """Whether it is a whole number of more digits than any count has."""
    return isinstance(value, int) and value.bit_length() > 63


def is_finished(history: Sequence[Epoch], config: FitConfig) -> bool:
    """Whether a training with such a history is done; its last record is enough."""
    return bool(history) and (history[-1].epoch == config.epochs or bool(history[-1].stopped))


def final(history: Sequence[Epoch]) -> Epoch:
    """Return what a training came to: its last record, with the validation of the epoch that is kept."""
    last = history[-1]
    if last.kept is None:
        return last
    kept = history[last.kept - 1]
    names = ("validation_loss", "validation_top1", "validation_top5")
    return replace(last, **{name: getattr(kept, name) for name in names})


@contextmanager
def shown(epochs: int) -> Iterator[Watch | None]:
    """Show the progress of a training of so many epochs, where somebody looks; give what is to be told it."""
    if not _is_seen():
        yield None
        return
    from tqdm.auto import tqdm  # late: in a notebook it loads widgets

    with tqdm(desc="training", leave=False, unit="step") as bar:

        def watch(event: Step | Epoch) -> None:
            if isinstance(event, Step):
                bar.total = epochs * event.steps
                text = f"epoch {event.epoch}/{epochs}  loss {event.loss:.3f}"
                bar.set_description_str(text, refresh=False)
                bar.update((event.epoch - 1) * event.steps + event.step - bar.n)
            else:
                bar.set_postfix_str(f"{event.watched} {getattr(event, f'{event.watched}_top1'):.2%}")

        yield watch


def unwatched(_: Step | Epoch) -> None:
    """Show nothing of a trial, which is no training of its own."""


def _is_seen() -> bool:
    """Whether stderr is a terminal, or this a notebook; of several processes the main one alone speaks."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return is_main() and (terminal or type(shell).__name__ == "ZMQInteractiveShell")
