"""An entry of the comparison, trained by the one loop: its bytes, its accuracy, and the time of its steps."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsetune.backbone import create
from sparsetune.bench import learned_tensors, take_turns, uniform_lora
from sparsetune.data import Data, Feed, balanced, loader, open_data, split_in_two
from sparsetune.delta import fill_rounded, save
from sparsetune.errors import ConfigError, DataError, DivergedError
from sparsetune.host import DELTA, keep_freed_memory, write_text
from sparsetune.parts import VARIANCE, decode, encode
from sparsetune.runs import CHECKPOINT, KEPT, Choice, choose, spend
from sparsetune.sliced import adapt_
from sparsetune.spec import FitConfig, Learn, Precision
from sparsetune.studies.jobs import DEFAULTS, LEARN, TRAINING, Settings
from sparsetune.studies.sources import class_count
from sparsetune.studies.store import Place, open_store
from sparsetune.train import Stepper, Watch, predict_logits, processes, scores, train


def config_of(settings: Settings, lr: float) -> FitConfig:
    """Return how an entry is trained.

    Args:
        settings: Of its job.
        lr: The learning rate.
    """
    return FitConfig(**{**{name: settings[name] for name in TRAINING}, "lr": lr})


def data_of(settings: Settings, place: Place) -> Data:
    """Open what an entry learns: limited, and for a tuning scored on the share held out."""
    data = open_data(place.data(settings), size=settings["size"])
    if settings["classes"]:
        data = data.regroup(data.name, {name: [name] for name in data.classes[: settings["classes"]]})
    if data.train is not None and settings["train_limit"]:
        data = replace(data, train=balanced(data.train, settings["train_limit"], 0, "train_limit"))
    if settings["test_limit"]:
        data = replace(data, test=balanced(data.test, settings["test_limit"], 0, "test_limit"))
    if settings["held_out"] and data.train is not None:
        rest, held_out = split_in_two(data.train, settings["held_out"], settings["seed"])
        data = replace(data, train=rest, test=held_out)
    return replace(data, name=settings["data"])


def plain_of(settings: Settings, place: Place) -> nn.Module:
    """Make the plain model that an entry adapts."""
    return create(
        settings["model"],
        num_classes=class_count(settings),
        seed=settings["seed"],
        checkpoint=place.start(settings),
        **settings["model_kwargs"] or {},
    )


def learning(
    net: nn.Module, settings: Settings, data: Data, config: FitConfig, choice: Choice | None = None
) -> tuple[nn.Module, Choice | None]:
    """Make a plain model learn what an entry learns.

    Args:
        net: The model.
        settings: Of the entry's job.
        data: What it will learn.
        config: How.
        choice: What its budget is spent on, where that was chosen before.

    Returns:
        The model, and what its budget is spent on, if that is chosen.

    Raises:
        ConfigError: When the model has no layers for the entry's spread.
        SparsetuneError: As ``adapt_``, ``choose`` and ``uniform_lora`` raise.
    """
    if settings["kind"] == "lora":
        with torch.random.fork_rng():
            torch.manual_seed(settings["seed"])
            return uniform_lora(net, settings["rank"], settings["layers"]), None
    if settings["budget"] is None:
        return adapt_(net, Learn(**{name: settings[name] for name in LEARN})), None
    if settings["spread"] is None:
        choice = choice or choose(net, data, config, settings["budget"], dtype=KEPT)
        return adapt_(net, choice.learn), choice
    name, nbytes = settings["spread"], settings["budget"]
    learn = spend(name, net, nbytes, classes=data.classes, dtype=KEPT)
    if learn is None:
        raise ConfigError(f"{settings['model']} has no layers for '{name}'; leave out --only spread.")
    return adapt_(net, learn), None


FEWER_BITS: tuple[Precision, ...] = ("bf16", "int8")
BATCH = 256
CHOICE = "choice.json"
"""Beside a checkpoint: what the budget is spent on, so that nothing is chosen twice."""


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
        it since the last start, ``choosing_seconds`` that of choosing, where there is a budget.

    Raises:
        DivergedError: When a loss does not stay finite, or none did in tuning.
        SparsetuneError: As ``train`` raises.
    """
    began = time.monotonic()
    config = config_of(settings, best_rate(settings, place) if settings["lr"] is None else settings["lr"])
    data, net = data_of(settings, place), plain_of(settings, place)
    checkpoint, note = folder / CHECKPOINT, folder / CHOICE
    chosen = json.loads(note.read_text()) if checkpoint.is_file() and note.is_file() else {}
    ready = time.monotonic()
    known = Choice.from_json(chosen["choice"]) if chosen else None
    net, choice = learning(net, settings, data, config, known)
    if choice and not known:
        chosen = {"choice": choice.to_json(), "choosing_seconds": time.monotonic() - ready}
        write_text(note, json.dumps(chosen))
    same = {"entry": settings}
    history = train(
        net, data, config, same, checkpoint=checkpoint, resume=True, time_budget=budget, watch=watch
    )
    if len(history) < config.epochs:
        return None
    last = history[-1]
    result: dict[str, Any] = {
        "lr": config.lr,
        "top1": last.test_top1,
        "top5": last.test_top5,
        "loss": last.test_loss,
        "train_top1": last.train_top1,
        "train_loss": last.train_loss,
        "train_pictures": len(data.train or ()),
        "test_pictures": len(data.test),
        "learned_parameters": sum(value.numel() for value in net.parameters() if value.requires_grad),
    }
    result |= chosen
    if not settings["held_out"]:
        result["stored"] = [*_stored(net, settings, data, folder)]
    for path in (checkpoint, note):
        path.unlink(missing_ok=True)
    return {**result, "seconds": time.monotonic() - began}


def best_rate(settings: Settings, place: Place) -> float:
    """Return the learning rate that was best, on pictures held out, in the mean over the seeds that tuned it.

    Raises:
        DivergedError: When each diverged with some seed.
    """
    found: dict[float, list[dict[str, Any]]] = {}
    with open_store(place.folder, write=False) as store:
        for row in store.rows():
            if row.id in settings["of"]:
                found.setdefault(row.settings["lr"], []).append(row.result)
    merits = {
        rate: (fmean(result["top1"] for result in results), -fmean(result["loss"] for result in results))
        for rate, results in found.items()
        if all("top1" in result for result in results)
    }
    if not merits:
        raise DivergedError("no learning rate of the tuning converged with every seed.")
    return max(merits, key=lambda rate: merits[rate])


def _stored(net: nn.Module, settings: Settings, data: Data, folder: Path) -> Iterator[dict[str, Any]]:
    """Bytes and scores of what was learned, in each precision; ``net`` is rounded on the way.

    ``right`` has a bit for each test picture, in hexadecimal digits: whether it is classified rightly.
    """
    own = settings["kind"] == "ours"
    values = [] if own else learned_tensors(net)
    kept = [value.clone() for value in values]
    variances = {value.data_ptr() for name, value in net.named_buffers() if name.endswith(VARIANCE)}
    relative = [value.data_ptr() in variances for value in values]
    if own:
        save(net, folder / DELTA, classes=data.classes, preprocessing=data.preprocessing)
    whole = (folder / DELTA).stat().st_size if own else sum(value.nbytes for value in values)
    for dtype in (None, *FEWER_BITS):
        count = whole
        if dtype is not None:
            count = (
                fill_rounded(net, folder / DELTA, dtype)
                if own
                else _round_theirs(values, kept, relative, dtype)
            )
        batches = loader(data.test, data.preprocessing, batch_size=BATCH)
        logits, labels = predict_logits(net, batches)
        found = scores(logits.double().softmax(1), labels)
        right = np.packbits((logits.argmax(1) == labels).numpy()).tobytes().hex()
        yield {
            "dtype": dtype or "float32",
            "bytes": count,
            "top1": found.top1,
            "loss": found.nll,
            "right": right,
        }


def _round_theirs(values: list[Tensor], kept: list[Tensor], relative: list[bool], dtype: Precision) -> int:
    """Put the values ``kept``, rounded, into ``values``; return the bytes that they then take."""
    count = 0
    for value, exact, by_share in zip(values, kept, relative, strict=True):
        if value.is_floating_point():
            code, numbers, scale = encode(exact, dtype, by_share)
            value.copy_(decode(code, numbers, scale, tuple(exact.shape)))
            count += numbers.nbytes + scale.nbytes
        else:
            count += value.nbytes
    return count


ROUNDS, WARMUP = 20, 3
LR = 1e-6
"""So small that nothing changes which could make a step slower or faster."""


def pace(settings: Settings, place: Place) -> list[dict[str, Any]]:
    """Take the time of a step of each entry, on the first batch of its training.

    Args:
        settings: Of a job whose needs, the entries ``of``, are done.
        place: Where the results and the data are.

    Returns:
        For each entry, in order: ``id`` of its job, median ``ms`` of a step, the least ``low`` and the most
        ``high``. One whose budget was never spent, as its training diverged, is left out.

    Raises:
        SparsetuneError: As ``create``, ``adapt_`` and ``open_data`` raise.
    """
    with open_store(place.folder, write=False) as store:
        rows = {row.id: row for row in store.rows() if row.id in settings["of"]}
    data, config = data_of(settings, place), config_of(settings, LR)
    if data.train is None:
        raise DataError(f"{data.name} has no training pictures; a step needs some.")
    keep_freed_memory()
    with processes(config.device, config.amp) as group:
        feed = Feed(data.train, data.preprocessing, group.device, batch_size=config.batch_size)
        x, y = next(iter(feed.epoch(config.seed)))
        size = (x.shape[1], x.shape[2], x.shape[3])
        actions = {}
        for identity in settings["of"]:
            entry, choice = {**DEFAULTS, **rows[identity].settings}, rows[identity].result.get("choice")
            if entry["budget"] and not entry["spread"] and choice is None:
                continue
            made = Choice.from_json(choice) if choice else None
            net, _ = learning(plain_of(entry, place), entry, data, config, made)
            actions[identity] = partial(Stepper(net.train(), config, 1, group, size).step, x, y, 0, len(y))
        found = take_turns(actions, str(group.device), rounds=ROUNDS, warmup=WARMUP)
    return [
        {"id": identity, "ms": median(times), "low": min(times), "high": max(times)}
        for identity, times in found.items()
    ]
