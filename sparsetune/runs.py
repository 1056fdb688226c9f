"""A run: one training from names and settings to a folder with its delta, metrics, settings and curves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from sparsetune.adapt import adapt_, adapted
from sparsetune.checkpoint import read_history
from sparsetune.config import FitConfig
from sparsetune.curves import draw_curves
from sparsetune.data import NAMES, Data, open_data
from sparsetune.delta import is_delta
from sparsetune.errors import ConfigError, SparsetuneError
from sparsetune.fetch import is_address
from sparsetune.files import write_text
from sparsetune.folders import CHECKPOINT, CURVES, DELTA, METRICS, check, claim, latest, leave
from sparsetune.learn import Learn
from sparsetune.plan import Plan
from sparsetune.preprocessing import Preprocessing
from sparsetune.processes import Processes, processes
from sparsetune.rebuild import LIBRARIES
from sparsetune.saving import fill, save
from sparsetune.training import Epoch, Step, Watch, fit
from sparsetune.weights import known_pictures
from sparsetune.zoo import create


@dataclass(frozen=True, kw_only=True)
class Run:
    """All settings of one run.

    Attributes:
        model: Name of the model.
        model_kwargs: Arguments of its constructor, plain JSON values.
        learn: Which slices are learned.
        config: How to train.
        data: Name or path of the data.
        size: Height and width of pictures; ``None`` takes the data's or, where it must be, the model's.
        train_limit: Use so many training pictures, the same number of each class.
        test_limit: Likewise for test pictures.
        backbone_seed: Seed of the backbone.
        pretrained: Stand on published weights instead.
        init_from: A whole checkpoint to stand on, or a delta over the same backbone to start from.
    """

    model: str
    learn: Learn
    config: FitConfig
    data: str = "digits"
    size: int | None = None
    train_limit: int | None = None
    test_limit: int | None = None
    backbone_seed: int = 0
    pretrained: bool = False
    init_from: str | None = None
    model_kwargs: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """A short name from the settings that matter most, for a folder."""
        learn = self.learn
        letters = {"fraction": "f", "filters": "n", "rank": "r"}
        size = "".join(
            letters[kind] if learn.by_layer else f"{letters[kind]}{n:g}" for kind, n in learn.amounts.items()
        )
        pieces = [self.model, Path(self.data).name or "data", size]
        pieces += [str(learn.dim)] if learn.dim != "out" else []
        pieces += ["-".join(learn.layers)] if learn.layers else []
        pieces += ["nonorm"] * (not learn.norm) + ["nohead"] * (not learn.head)
        pieces += [learn.frozen] if learn.frozen else []
        pieces.append(f"s{self.config.seed}")
        safe = ("".join(c if c.isalnum() or c in "._-" else "_" for c in piece) for piece in pieces)
        return "-".join(safe)[:150]

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return {**asdict(self), "learn": self.learn.to_json(), "config": self.config.to_json()}


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        folder: Where its files are.
        history: A record for each finished epoch.
        finished: Whether all epochs are done, and the delta written.
        plan: What was learned.
    """

    folder: Path
    history: list[Epoch]
    finished: bool
    plan: Plan


def run(
    settings: Run,
    folder: Path | None = None,
    *,
    resume: bool = False,
    time_budget: float | None = None,
    watch: Watch | None = None,
    started: Callable[[Plan, Data], None] | None = None,
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

    Returns:
        The outcome, of several processes to each; a finished run is not trained again.

    Raises:
        ConfigError: When settings do not fit together, or ``folder`` holds a run and ``resume`` is not set.
        SparsetuneError: As ``create``, ``adapt_``, ``open_data``, ``fit`` and ``save`` raise.
    """
    with processes(settings.config.device, settings.config.amp) as group:
        return _run(settings, folder, resume, time_budget, watch, started, group)


def _run(
    settings: Run,
    folder: Path | None,
    resume: bool,
    time_budget: float | None,
    watch: Watch | None,
    started: Callable[[Plan, Data], None] | None,
    group: Processes,
) -> Outcome:
    value = json.loads(json.dumps(settings.to_json()))
    if group.is_main and folder is None and resume:
        folder = latest(settings.name, value)
    if group.is_main and folder is not None:
        check(folder, value, resume)
    folder = group.from_main(folder)
    data = open_data(
        settings.data, size=settings.size, train_limit=settings.train_limit, test_limit=settings.test_limit
    )
    net, data = _build(settings, data)
    made = adapted(net).plan
    if folder and (folder / DELTA).is_file() and not (folder / CHECKPOINT).is_file():
        return Outcome(folder, _read_history(folder / METRICS), True, made)
    versions = {name: version(name) for name in LIBRARIES}
    if group.is_main:
        folder = claim(folder, settings.name, {**value, "versions": versions})
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
        _save(net, folder / DELTA, settings, data, history[-1])
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


def _build(settings: Run, data: Data) -> tuple[nn.Module, Data]:
    """Make and adapt the model; return it with the data in the form that it takes."""
    delta = settings.init_from if settings.init_from and is_delta(settings.init_from) else None
    net = create(
        settings.model,
        num_classes=len(data.classes),
        seed=settings.backbone_seed,
        pretrained=settings.pretrained,
        checkpoint=None if delta else settings.init_from,
        **settings.model_kwargs or {},
    )
    data = _prepared(data, _preprocessing(net, data.preprocessing, settings))
    adapt_(net, settings.learn)
    if delta:
        fill(net, delta)
    return net, data


def _prepared(data: Data, preprocessing: Preprocessing) -> Data:
    """``data`` with other preprocessing; its random crop keeps its share of the picture."""
    pad = data.augment.pad * min(preprocessing.size[1:]) // min(data.preprocessing.size[1:])
    return replace(data, preprocessing=preprocessing, augment=replace(data.augment, pad=pad))


def _preprocessing(net: nn.Module, own: Preprocessing, settings: Run) -> Preprocessing:
    """The data's preprocessing, or what a pretrained or fixed-size model wants."""
    wanted = known_pictures(net)
    fixed = (getattr(net, "pretrained_cfg", None) or {}).get("fixed_input_size", False)
    if wanted and settings.size is None and (settings.pretrained or fixed):
        own = replace(own, size=tuple(wanted["input_size"]))
    if wanted and settings.pretrained:
        mean, std = tuple(wanted["mean"]), tuple(wanted["std"])
        own = replace(own, mean=mean, std=std, interpolation=wanted["interpolation"])
    return own


def _save(net: nn.Module, path: Path, settings: Run, data: Data, last: Epoch) -> None:
    start = settings.init_from
    training = {
        "data": settings.data if settings.data in NAMES or is_address(settings.data) else data.name,
        "train_pictures": len(data.train or ()),
        "options": {
            "size": settings.size,
            "train_limit": settings.train_limit,
            "test_limit": settings.test_limit,
            "init_from": start if start is None or is_address(start) else Path(start).name,
        },
        "config": settings.config.decisive,
        "result": {k: v for k, v in last.to_json().items() if k != "seconds"},
    }
    save(net, path, classes=data.classes, preprocessing=data.preprocessing, training=training)


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
