"""A method of the comparison, trained by the one loop: its bytes, its accuracy, and the time of its steps."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean, median

import torch
from torch import nn

from sparsetune.backbone import create
from sparsetune.bench import learned_tensors, take_turns, uniform_lora
from sparsetune.data import Data, Feed, loader, open_data, split_in_two
from sparsetune.delta import fill_rounded, save
from sparsetune.errors import ConfigError, DataError, DivergedError
from sparsetune.host import DELTA, keep_freed_memory, write_text
from sparsetune.parts import decode, encode, role_of
from sparsetune.runs import CHECKPOINT, Choice, choose, spend
from sparsetune.sliced import adapt_
from sparsetune.spec import FitConfig, Learn, Precision
from sparsetune.studies.intervals import packed
from sparsetune.studies.jobs import DEFAULTS, LEARN, TRAINING, Result, kind
from sparsetune.studies.sources import class_count
from sparsetune.studies.store import Place, Settings, Task
from sparsetune.train import Epoch, Stepper, predict_logits, processes, score, train


def config_of(settings: Settings, lr: float) -> FitConfig:
    """Return how a method is trained.

    Args:
        settings: Of its job.
        lr: The learning rate.
    """
    return FitConfig(**{**{name: settings[name] for name in TRAINING}, "lr": lr})


def data_of(settings: Settings, place: Place) -> Data:
    """Open what a method learns: limited, and for a tuning scored on the share held out."""
    data = open_data(
        place.data(settings),
        size=settings["size"],
        **{name: settings[name] for name in ("classes", "train_limit", "test_limit")},
    )
    if data.test is None:
        # a folder in the place of a data set, whose validation split is known as the test
        data = replace(data, test=data.judged, validation=None)
    if settings["held_out"] and data.train is not None:
        rest, held_out = split_in_two(data.train, settings["held_out"], settings["seed"])
        data = replace(data, train=rest, test=held_out)
    return replace(data, name=settings["data"])


def plain_of(settings: Settings, place: Place) -> nn.Module:
    """Make the plain model that a method adapts."""
    return create(
        settings["model"],
        num_classes=class_count(settings),
        seed=settings["seed"],
        checkpoint=place.start(settings),
        **settings["model_kwargs"] or {},
    )


KEPT: Precision = "int8"
FEWER_BITS: tuple[Precision, ...] = ("bf16", KEPT)
"""How a budget is spent here, and in which precisions all methods are judged."""

Adapt = Callable[[nn.Module, Settings, Data, FitConfig, Choice | None], tuple[nn.Module, Choice | None]]
Keep = Callable[[nn.Module, Path, Data], Iterator[int]]


def _adapt_lora(net: nn.Module, settings: Settings, *_: object) -> tuple[nn.Module, None]:
    with torch.random.fork_rng():
        torch.manual_seed(settings["seed"])
        return uniform_lora(net, settings["rank"], settings["layers"]), None


def _adapt_ours(
    net: nn.Module, settings: Settings, data: Data, config: FitConfig, choice: Choice | None
) -> tuple[nn.Module, Choice | None]:
    if settings["budget"] is None:
        return adapt_(net, Learn(**{name: settings[name] for name in LEARN})), None
    if settings["spread"] is None:
        choice = choice or choose(net, data, config, settings["budget"], dtype=KEPT)
        return adapt_(net, choice.learn), choice
    learn = spend(settings["spread"], net, settings["budget"], classes=data.classes, dtype=KEPT)
    if learn is None:
        raise ConfigError(
            f"{settings['model']} has no layers for '{settings['spread']}'; leave out --only spread."
        )
    return adapt_(net, learn), None


DTYPES = ("float32", *FEWER_BITS)


def _keep_ours(net: nn.Module, folder: Path, data: Data) -> Iterator[int]:
    """The bytes of our file."""
    path = folder / DELTA
    save(net, path, classes=data.classes, preprocessing=data.preprocessing)
    yield path.stat().st_size
    for dtype in FEWER_BITS:
        yield fill_rounded(net, path, dtype)


def _keep_theirs(net: nn.Module, *_: object) -> Iterator[int]:
    """The bytes of the values that a file of PEFT's would have to hold, without names."""
    values = learned_tensors(net)
    kept = [value.clone() for value in values]
    roles = {value.data_ptr(): role_of(name) for name, value in net.named_buffers()}
    yield sum(value.nbytes for value in values)
    for dtype in FEWER_BITS:
        count = 0
        for value, exact in zip(values, kept, strict=True):
            if value.is_floating_point():
                code, numbers, scale = encode(exact, dtype, roles.get(value.data_ptr(), ""))
                value.copy_(decode(code, numbers, scale, tuple(exact.shape)))
                count += numbers.nbytes + scale.nbytes
            else:
                count += value.nbytes
        yield count


METHODS: dict[str, tuple[Adapt, Keep]] = {
    "ours": (_adapt_ours, _keep_ours),
    "lora": (_adapt_lora, _keep_theirs),
}
"""Kind of job -> what makes a plain model learn: the model, and what a budget is spent on, if that is chosen;
and what tells the bytes in each of ``DTYPES``, and leaves the model rounded to it."""

CHOICE = "choice.json"
"""Beside a checkpoint: what the budget is spent on, so that nothing is chosen twice."""


def scored(last: Epoch) -> Result:
    """Return what a training's last epoch came to."""
    return {
        **{
            name: value
            for name in ("top1", "top5", "loss")
            if (value := getattr(last, f"{last.judged}_{name}")) is not None
        },
        "train_top1": last.train_top1,
        "train_loss": last.train_loss,
    }


@kind(*METHODS, trains=True)
def contend(task: Task) -> Result | None:
    """Train a method and measure what it comes to.

    Both sides are scored in float32 and, rounded by the same code, in fewer bits.

    Args:
        task: Its folder takes the checkpoint and, of ours, the delta.

    Returns:
        What was measured, or ``None`` when the time was up before the end. ``seconds`` is the time of all of
        it since the last start, ``choosing_seconds`` that of choosing, where there is a budget.

    Raises:
        ConfigError: When the model has no layers for a spread.
        DivergedError: When a loss does not stay finite, or none did in tuning.
        SparsetuneError: As ``train``, ``adapt_``, ``choose`` and ``uniform_lora`` raise.
    """
    began = time.monotonic()
    settings, place, folder = task.settings, task.place, task.folder
    config = config_of(settings, best_rate(settings, place) if settings["lr"] is None else settings["lr"])
    data, net = data_of(settings, place), plain_of(settings, place)
    adapt, keep = METHODS[settings["kind"]]
    checkpoint, note = folder / CHECKPOINT, folder / CHOICE
    chosen = json.loads(note.read_text()) if checkpoint.is_file() and note.is_file() else {}
    ready = time.monotonic()
    known = Choice.from_json(chosen["choice"]) if chosen else None
    net, choice = adapt(net, settings, data, config, known)
    if choice and not known:
        chosen = {"choice": choice.to_json(), "choosing_seconds": time.monotonic() - ready}
        write_text(note, json.dumps(chosen))
    same = {"entry": settings}
    history = train(
        net, data, config, same, checkpoint=checkpoint, resume=True, time_budget=task.budget, watch=task.watch
    )
    if len(history) < config.epochs:
        return None
    result: Result = {
        "lr": config.lr,
        **scored(history[-1]),
        "train_pictures": len(data.train or ()),
        "test_pictures": len(data.judged),
        "learned_parameters": sum(value.numel() for value in net.parameters() if value.requires_grad),
        **chosen,
    }
    if not settings["held_out"]:
        sizes = zip(DTYPES, keep(net, folder, data), strict=True)
        result["stored"] = [{"dtype": dtype, "bytes": count, **_judged(net, data)} for dtype, count in sizes]
    for path in (checkpoint, note):
        path.unlink(missing_ok=True)
    return {**result, "seconds": time.monotonic() - began}


def best_rate(settings: Settings, place: Place) -> float:
    """Return the learning rate that was best, on pictures held out, in the mean over the seeds that tuned it.

    Raises:
        DivergedError: When each diverged with some seed.
    """
    found: dict[float, list[Result]] = {}
    for row in place.rows(settings["of"]).values():
        found.setdefault(row.settings["lr"], []).append(row.result)
    merits = {
        rate: (fmean(result["top1"] for result in results), -fmean(result["loss"] for result in results))
        for rate, results in found.items()
        if all("top1" in result for result in results)
    }
    if not merits:
        raise DivergedError("no learning rate of the tuning converged with every seed.")
    return max(merits, key=lambda rate: merits[rate])


def _judged(net: nn.Module, data: Data) -> Result:
    """Scores on the test pictures.

    ``right`` has a bit for each, in hexadecimal digits: whether it is classified rightly.
    """
    logits, labels = predict_logits(net, loader(data.judged, data.preprocessing, batch_size=256))
    found = score(logits, labels)
    return {"top1": found.top1, "loss": found.nll, "right": packed(logits.argmax(1) == labels)}


ROUNDS, WARMUP = 20, 3
LR = 1e-6
"""So small that nothing changes which could make a step slower or faster."""


@kind("pace", name=lambda held: f"{held['model']} {held['data']} steps of {len(held['of'])} methods")
def pace(task: Task) -> Result:
    """Take the time of a step of each method, on the first batch of its training.

    Args:
        task: Of a job whose needs, the trainings ``of``, are done.

    Returns:
        ``steps``, for each training, in order: ``id`` of its job, median ``ms`` of a step, the least ``low``
        and the most ``high``. One whose budget was never spent, as it diverged, is left out.

    Raises:
        SparsetuneError: As ``create``, ``adapt_`` and ``open_data`` raise.
    """
    settings, place = task.settings, task.place
    rows = place.rows(settings["of"])
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
            own, choice = {**DEFAULTS, **rows[identity].settings}, rows[identity].result.get("choice")
            if own["budget"] and not own["spread"] and choice is None:
                continue
            adapt, _ = METHODS[own["kind"]]
            known = Choice.from_json(choice) if choice else None
            net, _ = adapt(plain_of(own, place), own, data, config, known)
            actions[identity] = partial(Stepper(net.train(), config, 1, group, size).step, x, y, 0, len(y))
        found = take_turns(actions, str(group.device), rounds=ROUNDS, warmup=WARMUP)
    steps = [
        {"id": identity, "ms": median(times), "low": min(times), "high": max(times)}
        for identity, times in found.items()
    ]
    return {"steps": steps}
