"""A run: one training from names and settings to a folder with its delta, metrics, settings and curves."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from sparsetune.adapt import adapted
from sparsetune.budget import choose
from sparsetune.checkpoint import read_history
from sparsetune.choice import Choice, Choosing
from sparsetune.curves import draw_curves
from sparsetune.data import Data
from sparsetune.errors import ConfigError, SparsetuneError
from sparsetune.files import write_text
from sparsetune.filesize import file_bytes
from sparsetune.finished import longest_said, write_finished
from sparsetune.folders import (
    CHECKPOINT,
    CURVES,
    DELTA,
    DIGEST,
    METRICS,
    SOURCE,
    check,
    check_data,
    claim,
    latest,
    leave,
    recorded,
)
from sparsetune.learn import Learn
from sparsetune.plan import Plan
from sparsetune.processes import Processes, processes
from sparsetune.rebuild import LIBRARIES
from sparsetune.settings import Run as Run
from sparsetune.settings import adapt, build
from sparsetune.training import Epoch, Step, Watch, fit


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        folder: Where its files are.
        history: A record for each finished epoch.
        finished: Whether all epochs are done, and the delta written.
        plan: What was learned.
        choice: How that was chosen, where there was a budget.
    """

    folder: Path
    history: list[Epoch]
    finished: bool
    plan: Plan
    choice: Choice | None = None


def run(
    settings: Run,
    folder: Path | None = None,
    *,
    resume: bool = False,
    time_budget: float | None = None,
    watch: Watch | None = None,
    started: Callable[[Plan, Data], None] | None = None,
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
        started: Called once with plan and data, before the first step.
        choosing: With a budget, called after each trial of the comparison and with the choice.
        choice: With a budget, what was chosen already, so that nothing is compared.

    Returns:
        The outcome, of several processes to each; a finished run is not trained again.

    Raises:
        ConfigError: When settings do not fit together, or ``folder`` holds a run and ``resume`` is not set.
        SparsetuneError: As ``create``, ``adapt_``, ``open_data``, ``fit`` and ``save`` raise.
    """
    with processes(settings.config.device, settings.config.amp) as group:
        began = time.monotonic()
        value = json.loads(json.dumps(settings.to_json()))
        if group.is_main and folder is None and resume:
            folder = latest(settings.name, value)
        if group.is_main and folder is not None:
            check(folder, value, resume)
        folder = group.from_main(folder)
        net, data = build(settings)
        if group.is_main:
            check_data(folder, data)
        if settings.budget is not None:
            choice = choice or group.from_main(_recorded(folder)) or _choose(net, data, settings, choosing)
            if choosing:
                choosing(choice)
        left = None if time_budget is None else time_budget - (time.monotonic() - began)
        outcome = _run(net, data, settings, choice, folder, resume, left, watch, started, group)
        return replace(outcome, choice=choice)


def _recorded(folder: Path | None) -> Choice | None:
    """What the run in ``folder`` has chosen."""
    value = recorded(folder, "choice")
    return None if value is None else Choice.from_json(value)


def _choose(net: nn.Module, data: Data, settings: Run, choosing: Choosing | None) -> Choice:
    return choose(
        net,
        data,
        settings.config,
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


def _run(
    net: nn.Module,
    data: Data,
    asked: Run,
    choice: Choice | None,
    folder: Path | None,
    resume: bool,
    time_budget: float | None,
    watch: Watch | None,
    started: Callable[[Plan, Data], None] | None,
    group: Processes,
) -> Outcome:
    settings = replace(asked, learn=choice.learn) if choice else asked
    adapt(net, settings)
    made = adapted(net).plan
    if folder and (folder / DELTA).is_file() and not (folder / CHECKPOINT).is_file():
        return Outcome(folder, _read_history(folder / METRICS), True, made)
    _check_budget(net, made, settings, data)
    added: dict[str, Any] = {"versions": {name: version(name) for name in LIBRARIES}}
    added |= {SOURCE: data.source, DIGEST: data.digest()}
    if choice:
        added["choice"] = choice.to_json()
    if group.is_main:
        folder = claim(folder, asked.name, {**asked.to_json(), **added})
    folder = group.from_main(folder)
    if started:
        started(made, data)
    try:
        history = _train(net, data, settings, folder, resume, time_budget, watch, group)
    except SparsetuneError:
        if group.is_main and not (folder / CHECKPOINT).is_file():
            leave(folder)
        raise
    finished = len(history) == settings.config.epochs
    if finished and group.is_main:
        draw_curves(history, f"{settings.model} on {data.name}, {_what(settings.learn)}", folder / CURVES)
        write_finished(net, folder / DELTA, settings, data, history[-1])
        (folder / CHECKPOINT).unlink(missing_ok=True)
    group.wait()
    return Outcome(folder, history, finished, made)


def _train(
    net: nn.Module,
    data: Data,
    settings: Run,
    folder: Path,
    resume: bool,
    time_budget: float | None,
    watch: Watch | None,
    group: Processes,
) -> list[Epoch]:
    checkpoint = folder / CHECKPOINT
    records = [Epoch(**record) for record in read_history(checkpoint)] if checkpoint.is_file() else []

    def record(event: Step | Epoch) -> None:
        if isinstance(event, Epoch):
            records.append(event)
            _write_history(folder / METRICS, records)
        if watch:
            watch(event)

    history = fit(
        net,
        data,
        settings.config,
        checkpoint=checkpoint,
        resume=resume,
        time_budget=time_budget,
        watch=record if group.is_main else None,
    )
    if group.is_main:
        _write_history(folder / METRICS, history)
    return history


def _write_history(path: Path, history: list[Epoch]) -> None:
    write_text(path, "".join(json.dumps(record.to_json()) + "\n" for record in history))


def _read_history(path: Path) -> list[Epoch]:
    try:
        return [Epoch(**json.loads(line)) for line in path.read_text().splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} of a finished run cannot be read; remove its folder, or choose another --out."
        ) from error


def _what(learn: Learn) -> str:
    if not isinstance(learn.filters, int):
        return learn.amount
    return f"{learn.filters} filter{'s' * (learn.filters != 1)} a layer"
