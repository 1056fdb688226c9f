"""A run: one training from names and settings to a folder with its delta, metrics, settings and curves."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsetune.data import Data, loader, told
from sparsetune.delta import LIBRARIES, check_told, file_bytes, fill_rounded, longest_noted, save
from sparsetune.errors import ConfigError, Interrupted, OutOfMemoryError, SparsetuneError, notify
from sparsetune.host import DELTA, is_address, reason, replacing, size, write_text
from sparsetune.parts import Plan
from sparsetune.runs.choosing import Choice, Choosing, choose
from sparsetune.runs.folder import (
    CHECKPOINT,
    CURVES,
    DIGEST,
    METRICS,
    SOURCE,
    check,
    check_data,
    claim,
    latest,
    leave,
    make,
    owning,
    recorded,
    unfinished,
)
from sparsetune.runs.report import report_on
from sparsetune.runs.settings import Run, adapt, build, follow
from sparsetune.sliced import adapted
from sparsetune.spec import AUTO, FitConfig
from sparsetune.train import (
    Epoch,
    Processes,
    Rate,
    Start,
    Step,
    Watch,
    final,
    find_rate,
    fit,
    fit_quietly,
    is_finished,
    predict_logits,
    processes,
    read_history,
    records_from,
    score,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE = "#0067a5"
NO_MEMORY = "can't allocate memory"
"""What torch says on a CPU."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        folder: Where its files are.
        history: A record for each finished epoch.
        epochs: How many it shall have.
        finished: Whether all is done, and the delta written.
        plan: What was learned.
        choice: How that was chosen, where there was a budget.
        right: Whether each picture that it is judged by is classified rightly, ``(pictures,)``, where this
            call has finished it.
    """

    folder: Path
    history: list[Epoch]
    epochs: int
    finished: bool
    plan: Plan
    choice: Choice | None = None
    right: Tensor | None = None


def run(
    settings: Run,
    folder: Path | None = None,
    *,
    resume: bool = False,
    time_budget: float | None = None,
    watch: Watch | None = None,
    started: Callable[[Start], None] | None = None,
    choosing: Choosing | None = None,
    choice: Choice | None = None,
) -> Outcome:
    """Train as ``settings`` say and write the results to a folder.

    Args:
        settings: What to train on what, and how.
        folder: Where to write; made if missing. By default a new folder below ``runs``, or, to resume, the
            latest one there with the same settings.
        resume: Go on where an earlier call with the same settings stopped.
        time_budget: Seconds of training after which to save and stop.
        watch: Called after each step and each epoch; of several processes, by the main one.
        started: Called once, before the first step.
        choosing: With a budget, called after each trial of the comparison and with the choice.
        choice: With a budget, what was chosen already, so that nothing is compared.

    Returns:
        The outcome, of several processes to each; a finished run is not trained again.

    Raises:
        ConfigError: When settings do not fit together, or ``folder`` holds a run and ``resume`` is not set.
        SparsetuneError: As ``create``, ``adapt_``, ``open_data``, ``fit`` and ``save`` raise.
    """
    with processes(settings.config.device, settings.config.amp) as group, ExitStack() as owned:
        began = time.monotonic()
        asked, known = json.loads(json.dumps(settings.to_json())), False
        if group.is_main and folder is None and resume:
            folder = latest(settings.name, asked)
        elif group.is_main and folder is None and (half := unfinished(settings.name, asked)):
            notify(
                f"{half} holds a half-done run of these settings; --resume goes on with it instead of anew."
            )
        if group.is_main and folder is not None:
            check(folder, asked, resume)
            if known := folder.is_dir():
                owned.enter_context(owning(folder))
        folder = group.from_main(folder)
        net, given = build(settings)
        plain = settings
        settings, data = follow(net, given, plain)
        if group.is_main:
            check_data(folder, data)
        if settings.budget is not None:
            choice = choice or group.from_main(_recorded(folder))
            choice = choice or _choose(net, data, settings, plain.config, choosing)
            if choosing:
                choosing(choice)
        learned = settings
        if choice:  # whose recipe may be another
            learned, data = follow(net, given, replace(plain, learn=choice.learn))
        adapt(net, learned)
        made = adapted(net).plan
        if folder and (folder / DELTA).is_file() and not (folder / CHECKPOINT).is_file():
            history = _read_history(folder / METRICS)
            return Outcome(folder, history, learned.config.epochs, True, made, choice)
        check_told(net, made, **longest_said(learned, data))
        _check_budget(net, made, learned, data)
        rate: Rate | None = None
        if learned.config.lr == AUTO:
            found = group.from_main(recorded(folder, "rate"))
            rate = Rate.from_json(found) if found else find_rate(net, data, learned.config, fit_quietly)
            learned = replace(learned, config=learned.config.but(lr=rate.lr))
        if time_budget is not None:
            time_budget -= time.monotonic() - began
        if group.is_main:
            folder = make(folder, settings.name)
            if not known:
                owned.enter_context(owning(folder))
                check(folder, asked, resume)
            claim(folder, {**asked, **_noted(data, choice, rate, learned)})
        training = _Training(net, data, learned, group.from_main(folder), group)
        if started:
            started(Start(adapted(net).backbone, made, data, learned.config, rate))
        history = training.run(resume, time_budget, watch)
        finished = is_finished(history, learned.config)
        right = training.finish(history) if finished and group.is_main else None
        group.wait()
        return Outcome(training.folder, history, learned.config.epochs, finished, made, choice, right)


@dataclass(frozen=True)
class _Training:
    """An adapted model, what it learns, and the folder that is claimed for it."""

    net: nn.Module
    data: Data
    settings: Run
    folder: Path
    group: Processes
    looks: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Logits and labels of the judged pictures, of which the last stand for what was learned."""

    def run(self, resume: bool, time_budget: float | None, watch: Watch | None) -> list[Epoch]:
        """Train, and keep the record of each epoch in the folder."""
        checkpoint, metrics = self.folder / CHECKPOINT, self.folder / METRICS
        records = read_history(checkpoint) if checkpoint.is_file() else []

        def record(event: Step | Epoch) -> None:
            if isinstance(event, Epoch):
                records.append(event)
                _write_history(metrics, records)
            if watch:
                watch(event)

        try:
            with _within_memory(self.settings.config):
                history = fit(
                    self.net,
                    self.data,
                    self.settings.config,
                    checkpoint=checkpoint,
                    resume=resume,
                    time_budget=time_budget,
                    watch=record if self.group.is_main else None,
                    looked=lambda *look: self.looks.append(look),
                )
            if self.group.is_main:
                _write_history(metrics, history)
        except SparsetuneError:
            if self.group.is_main and not checkpoint.is_file():
                leave(self.folder)
            raise
        except KeyboardInterrupt as stop:
            raise Interrupted(self.folder) from stop
        return history

    def finish(self, history: list[Epoch]) -> Tensor:
        """Write what was learned, the curves, and a report of what it is worth; the checkpoint goes.

        Returns:
            Whether each picture that it is judged by is classified rightly, ``(pictures,)``.
        """
        settings, folder = self.settings, self.folder
        title = f"{settings.model} on {self.data.name}, {_what(settings)}"
        with replacing(folder / CURVES) as temporary:
            draw_curves(history, title).savefig(temporary, format="png", dpi=150)
        if rounded := write_finished(self.net, folder / DELTA, settings, self.data, final(history)):
            self.looks.append(rounded)
        if not self.looks:  # an earlier call has looked, and was stopped before it came to this
            self.looks.append(_look(self.net, settings, self.data))
        (logits, labels), data = self.looks[-1], self.data
        made = report_on(logits.double().softmax(1), data.judged, data.classes, data.name, data.judged_by)
        made.save(folder)
        (folder / CHECKPOINT).unlink(missing_ok=True)
        return logits.argmax(1) == labels


@contextmanager
def _within_memory(config: FitConfig) -> Iterator[None]:
    """Turn a lack of memory into one sentence with what helps."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and NO_MEMORY not in str(error):
            raise
        raise OutOfMemoryError(
            f"a step on {config.batch_size} pictures takes more memory than there is; give a smaller "
            "--batch-size (with --grad-accum-steps for the same updates), --grad-checkpointing, --amp or a "
            "smaller --img-size."
        ) from error


def _recorded(folder: Path | None) -> Choice | None:
    """What the run in ``folder`` has chosen."""
    value = recorded(folder, "choice")
    return None if value is None else Choice.from_json(value)


def _choose(
    net: nn.Module, data: Data, settings: Run, config: FitConfig, choosing: Choosing | None
) -> Choice:
    return choose(
        net,
        data,
        config,
        settings.budget or 0,
        dtype=settings.dtype,
        base=settings.learn,
        training=longest_said(settings, data)["training"],
        watch=choosing,
    )


def _check_budget(net: nn.Module, made: Plan, settings: Run, data: Data) -> None:
    """Refuse before the training a choice, made elsewhere, whose file would not keep the budget."""
    if settings.budget is None:
        return
    needed = file_bytes(net, made, **longest_said(settings, data), dtype=settings.dtype)
    if needed > settings.budget:
        raise ConfigError(
            f"what was chosen takes a file of {needed:,} bytes, more than the budget of {settings.budget:,}; "
            "choose anew in another folder (--out), or give more."
        )


def _noted(data: Data, choice: Choice | None, rate: Rate | None, learned: Run) -> dict[str, Any]:
    """What the settings of a run hold beside what was asked."""
    noted: dict[str, Any] = {"versions": {name: version(name) for name in LIBRARIES}}
    noted |= {SOURCE: data.source, DIGEST: data.digest()}
    noted |= {} if choice is None else {"choice": choice.to_json()}
    noted |= {} if rate is None else {"rate": rate.to_json()}
    return {**noted, "recipe": {**learned.config.decisive, "preprocessing": data.preprocessing.to_json()}}


def _write_history(path: Path, history: list[Epoch]) -> None:
    write_text(path, "".join(json.dumps(record.to_json()) + "\n" for record in history))


def _read_history(path: Path) -> list[Epoch]:
    try:
        return records_from(map(json.loads, path.read_text().splitlines()))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} of a finished run cannot be read ({reason(error)}); remove its folder, or choose "
            "another --out."
        ) from error


def _look(net: nn.Module, settings: Run, data: Data) -> tuple[Tensor, Tensor]:
    """Logits and labels of the pictures that the run is judged by."""
    return predict_logits(net, loader(data.judged, data.preprocessing, batch_size=settings.config.batch_size))


def write_finished(
    net: nn.Module, path: Path, settings: Run, data: Data, last: Epoch
) -> tuple[Tensor, Tensor] | None:
    """Save what a run has learned.

    The result in the file is what the training came to, but for that of a file in fewer bits, which is
    measured with the values that it gives back. Where these bits cannot hold a value, the file has all.

    Args:
        net: The trained model; it is not changed.
        path: The file.
        settings: Of the run.
        data: What it was trained on.
        last: What it came to.

    Returns:
        Logits and labels of the judged pictures, where a file in fewer bits was measured.

    Raises:
        DeltaError: When a value is beyond what the settings' ``dtype`` holds.
        SparsetuneError: As ``save`` raises.
    """
    save(net, path, **_said(settings, data, last))
    if not settings.dtype:
        return None
    rounded = copy.deepcopy(net)
    fill_rounded(rounded, path, settings.dtype)
    look = _look(rounded, settings, data)
    found = score(*look)
    values: dict[str, Any] = {"top1": found.top1, "top5": found.top5, "loss": found.nll}
    last = replace(last, **{f"{data.judged_by}_{name}": value for name, value in values.items()})
    save(net, path, **_said(settings, data, last), dtype=settings.dtype)
    return look


def longest_said(settings: Run, data: Data) -> dict[str, Any]:
    """What a finished file will say beside its values, with results as long as numbers can be."""
    values: dict[str, Any] = dict.fromkeys((field.name for field in fields(Epoch)), -1.2345678901234567e-300)
    said = _said(settings, data, Epoch(**{**values, "epoch": settings.config.epochs}))
    return {**said, "training": said["training"] | longest_noted(settings.budget or 0)}


def _said(settings: Run, data: Data, last: Epoch) -> dict[str, Any]:
    """What the file says beside its values."""
    start = settings.init_from
    training = {
        "data": told(data.source),
        "train_pictures": len(data.train or ()),
        "options": {
            "size": settings.size,
            "train_limit": settings.train_limit,
            "test_limit": settings.test_limit,
            "init_from": start if start is None or is_address(start) else Path(start).name,
            **({"dtype": settings.dtype} if settings.dtype else {}),
        },
        "config": settings.config.decisive,
        "result": {k: v for k, v in last.to_json().items() if k != "seconds"},
    }
    return {"classes": data.classes, "preprocessing": data.preprocessing, "training": training}


def draw_curves(history: Sequence[Epoch], title: str) -> Figure:
    """Draw loss and accuracy over epochs, for training pictures and those watched.

    Args:
        history: A record for each finished epoch; at least one.
        title: Stands above the picture.
    """
    from matplotlib.figure import Figure  # late: it takes half a second, and most commands draw nothing
    from matplotlib.ticker import MaxNLocator

    epochs = [record.epoch for record in history]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, 2)
    marker = "o" if len(epochs) < 30 else None
    watched = history[-1].watched
    for panel, label, what, scale in (
        (panels[0], "cross-entropy (nats)", "loss", 1),
        (panels[1], "top-1 accuracy (%)", "top1", 100),
    ):
        for name, split, colour in (("training", "train", "#8a8a8a"), (watched, watched, BLUE)):
            values = [scale * getattr(record, f"{split}_{what}") for record in history]
            panel.plot(epochs, values, color=colour, marker=marker, markersize=3, label=name, clip_on=False)
        panel.set_xlabel("epoch")
        panel.set_ylabel(label)
        panel.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        panel.set_ylim(0, 1.1 * panel.dataLim.ymax or 1)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    last = 100 * getattr(history[-1], f"{watched}_top1")
    panels[1].set_ylim(0, 100)
    panels[1].annotate(
        f"{last:.1f}",
        (epochs[-1], last),
        textcoords="offset points",
        xytext=(6, 0),
        va="center",
        color=BLUE,
    )
    panels[0].legend(frameon=False)
    return figure


def _what(settings: Run) -> str:
    """What is learned, short enough for a title."""
    learn = settings.learn
    if settings.budget is not None:
        return f"a budget of {size(settings.budget)}"
    if learn.by_layer:
        return f"{' and '.join(learn.amounts)} by layer"
    if not isinstance(learn.filters, int):
        return learn.amount
    if not learn.filters:
        return " and ".join([*["normalisation"] * learn.norm, *["classifier"] * learn.head])
    return f"{learn.filters} filter{'s' * (learn.filters != 1)} a layer"
