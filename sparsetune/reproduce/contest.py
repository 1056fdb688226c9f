"""An entry of the comparison: one method, ours or PEFT's, trained by the one loop; its bytes and accuracy."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from sparsetune.adapt import adapt_
from sparsetune.arithmetic import compress
from sparsetune.budget import PROBED, choose
from sparsetune.candidates import candidate
from sparsetune.choice import Choice
from sparsetune.config import FitConfig
from sparsetune.data import Data, Feed, balanced, loader, open_data, split_in_two
from sparsetune.errors import ConfigError, DivergedError
from sparsetune.folders import CHECKPOINT, DELTA
from sparsetune.gradients import mean_gradients
from sparsetune.inference import predict_logits
from sparsetune.learn import Learn
from sparsetune.lowrank import learned_tensors, uniform_lora
from sparsetune.machine import pick_device
from sparsetune.metrics import scores
from sparsetune.precision import Precision, decode, encode
from sparsetune.reproduce.jobs import LEARN, TRAINING, Settings
from sparsetune.reproduce.place import Place
from sparsetune.reproduce.sources import class_count
from sparsetune.reproduce.store import open_store
from sparsetune.saving import fill, save
from sparsetune.training import Epoch, Step, Watch, train
from sparsetune.zoo import create

FEWER_BITS: tuple[Precision, ...] = ("bf16", "int8")
BATCH = 256


def contend(
    settings: Settings, place: Place, folder: Path, budget: float | None = None, watch: Watch | None = None
) -> dict[str, Any] | None:
    """Train an entry and measure what it comes to.

    Its bytes are those of our file, or of the values that a file of PEFT's would have to hold: adapters,
    normalisation, head and running statistics, without names. Both are scored in float32 and, rounded by the
    same code, in fewer bits.

    Args:
        settings: Of a job whose needs are done.
        place: Where the results and the data are.
        folder: For the checkpoint and, of ours, the delta.
        budget: Seconds after which the training is saved and stopped.
        watch: Called after each step and each epoch.

    Returns:
        What was measured, or ``None`` when the time was up before the end. ``seconds`` is the time of all of
        it since the last start; ``train_seconds`` that of choosing, where there is a budget, and of the
        training steps: their median times their number, so that neither tests nor interruptions count.

    Raises:
        DivergedError: When a loss does not stay finite, or none did in tuning.
        SparsetuneError: As ``train`` raises.
    """
    clock = _Clock(watch)
    lr = settings["lr"] if settings["lr"] is not None else best_rate(settings, place)
    config = FitConfig(**{**{name: settings[name] for name in TRAINING}, "lr": lr})
    data = _data(settings, place)
    net, choice, choosing = _adapt(_model(settings, place), settings, data, config)
    checkpoint = folder / CHECKPOINT
    same = {"entry": settings}
    history = train(
        net, data, config, same, checkpoint=checkpoint, resume=True, time_budget=budget, watch=clock
    )
    if len(history) < config.epochs:
        return None
    last = history[-1]
    result = {
        "lr": lr,
        "top1": last.test_top1,
        "top5": last.test_top5,
        "loss": last.test_loss,
        "train_top1": last.train_top1,
        "train_loss": last.train_loss,
        "train_pictures": len(data.train or ()),
        "learned_parameters": sum(value.numel() for value in net.parameters() if value.requires_grad),
        "train_seconds": clock.training(config.epochs, choosing),
    }
    if choice:
        result["choice"] = choice.to_json()
    if not settings["held_out"]:
        result["stored"] = [*_stored(net, settings, data, folder, last)]
    checkpoint.unlink(missing_ok=True)
    return {**result, "seconds": time.monotonic() - clock.started}


def best_rate(settings: Settings, place: Place) -> float:
    """Return the learning rate that was best, on pictures held out, among the entries that tuned it.

    Raises:
        DivergedError: When all of these diverged.
    """
    with open_store(place.folder, write=False) as store:
        rows = [row for row in store.rows() if row.id in settings["of"] and "top1" in row.result]
    if not rows:
        raise DivergedError("no learning rate of the tuning converged.")
    best = max(rows, key=lambda row: (row.result["top1"], -row.result["loss"]))
    return float(best.settings["lr"])


class _Clock:
    """Takes the time between steps of an epoch, and passes every event on."""

    def __init__(self, watch: Watch | None) -> None:
        self.watch, self.started = watch, time.monotonic()
        self.times: list[float] = []
        self.last: float | None = None
        self.steps = 0

    def __call__(self, event: Step | Epoch) -> None:
        if isinstance(event, Step):
            self.steps = event.steps
            if self.last is not None:
                self.times.append(time.monotonic() - self.last)
        if self.watch:
            self.watch(event)
        self.last = time.monotonic() if isinstance(event, Step) else None

    def training(self, epochs: int, before: float) -> float | None:
        """Return the seconds of all training steps and ``before``; ``None`` where too few were taken."""
        return median(self.times) * self.steps * epochs + before if self.times else None


def _data(settings: Settings, place: Place) -> Data:
    data = open_data(place.data(settings), size=settings["size"])
    if settings["classes"]:
        data = data.regroup(data.name, {name: [name] for name in data.classes[: settings["classes"]]})
    if data.train is not None and settings["train_limit"]:
        data = replace(data, train=balanced(data.train, settings["train_limit"], 0, "train_limit"))
    if settings["test_limit"]:
        data = replace(data, test=balanced(data.test, settings["test_limit"], 0, "test_limit"))
    if settings["held_out"] and data.train is not None:
        rest, held_out = split_in_two(data.train, settings["held_out"], seed=0)
        data = replace(data, train=rest, test=held_out)
    return replace(data, name=settings["data"])


def _model(settings: Settings, place: Place) -> nn.Module:
    return create(
        settings["model"],
        num_classes=class_count(settings),
        seed=settings["seed"],
        checkpoint=place.start(settings),
        **settings["model_kwargs"] or {},
    )


def _adapt(
    net: nn.Module, settings: Settings, data: Data, config: FitConfig
) -> tuple[nn.Module, Choice | None, float]:
    """Make the plain model learn; return it, what its budget is spent on, and the seconds of choosing."""
    if settings["kind"] == "lora":
        with torch.random.fork_rng():
            torch.manual_seed(settings["seed"])
            return uniform_lora(net, settings["rank"]), None, 0.0
    if settings["budget"] is None:
        return adapt_(net, Learn(**{name: settings[name] for name in LEARN})), None, 0.0
    began = time.monotonic()
    if settings["spread"] is None:
        choice = choose(net, data, config, settings["budget"])
        return adapt_(net, choice.learn), choice, time.monotonic() - began
    learn = _spread(net, settings, data, config)
    return adapt_(net, learn), None, time.monotonic() - began


def _spread(net: nn.Module, settings: Settings, data: Data, config: FitConfig) -> Learn:
    """What comes to a budget, spread over the layers in one way."""
    gradients = None
    if data.train is not None:
        device = pick_device(config.device)
        feed = Feed(
            data.train, data.preprocessing, device, batch_size=config.batch_size, augment=data.augment
        )
        batches = itertools.islice(feed.epoch(config.seed), PROBED)
        gradients = mean_gradients(net, batches, device, config.seed)
    name, nbytes = settings["spread"], settings["budget"]
    learn = candidate(name, net, nbytes, gradients=gradients, classes=data.classes)
    if learn is None:
        raise ConfigError(f"{settings['model']} has no layers for '{name}'; leave out --only spread.")
    return learn


def _stored(
    net: nn.Module, settings: Settings, data: Data, folder: Path, last: Epoch
) -> Iterator[dict[str, Any]]:
    """Bytes and scores of what was learned, in each precision; ``net`` is rounded on the way."""
    own = settings["kind"] == "ours"
    values = [] if own else learned_tensors(net)
    kept = [value.clone() for value in values]
    if own:
        save(net, folder / DELTA, classes=data.classes, preprocessing=data.preprocessing)
    whole = (folder / DELTA).stat().st_size if own else sum(value.nbytes for value in values)
    yield {"dtype": "float32", "bytes": whole, "top1": last.test_top1, "loss": last.test_loss}
    for dtype in FEWER_BITS:
        count = _round_ours(net, folder / DELTA, dtype) if own else _round_theirs(values, kept, dtype)
        batches = loader(data.test, data.preprocessing, batch_size=BATCH)
        logits, labels = predict_logits(net, batches)
        found = scores(logits.double().softmax(1), labels)
        yield {"dtype": dtype, "bytes": count, "top1": found.top1, "loss": found.nll}


def _round_ours(net: nn.Module, delta: Path, dtype: Precision) -> int:
    """Write a delta in fewer bits and put its values into the model; return the file's bytes."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / DELTA
        compress(delta, path, dtype)
        fill(net, path)
        return path.stat().st_size


def _round_theirs(values: list[Tensor], kept: list[Tensor], dtype: Precision) -> int:
    """Put the values ``kept``, rounded, into ``values``; return the bytes that they then take."""
    count = 0
    for value, exact in zip(values, kept, strict=True):
        if value.is_floating_point():
            code, numbers, scale = encode(exact, dtype)
            value.copy_(decode(code, numbers, scale, tuple(exact.shape)))
            count += numbers.nbytes + scale.nbytes
        else:
            count += value.nbytes
    return count
