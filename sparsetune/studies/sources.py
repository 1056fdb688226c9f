"""Data sets by name: what they are, whether they are here; and counts of values that need no training."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sparsetune.backbone import Backbone, Origin, skeleton
from sparsetune.data import Data, ParquetImages, open_data
from sparsetune.errors import ConfigError, DataError, SparsetuneError, UnknownNameError
from sparsetune.host import describe_machine
from sparsetune.parts import Plan, plan
from sparsetune.spec import Learn
from sparsetune.studies.definitions import (
    LENGTH,
    SORTS,
    TEST,
    TEXT,
    TRAIN,
    Definitions,
    DefinitionsTransformer,
    definitions,
)
from sparsetune.studies.jobs import LEARN, Job
from sparsetune.studies.store import Settings

Noted = dict[str, dict[str, str]]
"""Data name -> the ``source`` that it was read from, and the ``digest`` of its pictures."""
JPEG = b"\xff\xd8"


@dataclass(frozen=True)
class Known:
    """A data set's counts.

    Attributes:
        title: Its name for people.
        classes: How many.
        side: Height and width of a picture; words of an entry.
        train: Training pictures, or entries.
        test: Test pictures, or entries.
        bitmaps: Whether it is published as bitmaps, so that JPEG-coded pictures are a lossy copy.
    """

    title: str
    classes: int
    side: int
    train: int
    test: int
    bitmaps: bool = True


KNOWN = {
    "digits": Known("digits", 10, 8, 1438, 359),
    "cifar10": Known("CIFAR-10", 10, 32, 50_000, 10_000),
    "cifar100": Known("CIFAR-100", 100, 32, 50_000, 10_000),
    "tiny-imagenet": Known("Tiny-ImageNet", 200, 64, 100_000, 10_000, bitmaps=False),
    TEXT: Known("WordNet's definitions", len(SORTS), LENGTH, len(SORTS) * TRAIN, len(SORTS) * TEST, False),
}


def opened(source: str, **limits: Any) -> Data | Definitions:
    """Return the pictures of a source, or the one text, which has no limits."""
    return definitions() if source == TEXT else open_data(source, **limits)


def class_count(settings: Settings) -> int:
    """Return how many classes a job tells apart."""
    return settings.get("classes") or KNOWN[settings["data"]].classes


def sources_from(given: Iterable[str]) -> dict[str, str]:
    """Read ``NAME=FOLDER`` words, such as ``cifar10=data/cifar10``.

    Raises:
        ConfigError: When a word has another form.
        UnknownNameError: When the experiments use no data set of that name.
    """
    sources: dict[str, str] = {}
    for word in given:
        name, sign, folder = word.partition("=")
        if not sign or not folder:
            raise ConfigError(f"data '{word}' is not NAME=FOLDER, such as cifar10=data/cifar10.")
        if name not in KNOWN:
            raise UnknownNameError("data set", name, KNOWN)
        sources[name] = folder if "://" in folder else str(Path(folder).expanduser().absolute())
    return sources


def missing(jobs: Iterable[Job], sources: Mapping[str, str]) -> dict[str, str]:
    """Return, for each data set of the jobs that cannot be used here, why.

    Raises:
        ConfigError: When a source has other classes than the data set that it is given for, or fewer pictures
            than a job's limit.
    """
    reasons = {}
    limits = ("data", "train_limit", "test_limit")
    for name, train, test in sorted({tuple(job.settings[key] for key in limits) for job in jobs}, key=str):
        try:
            data = opened(sources.get(name, name), train_limit=train, test_limit=test)
            count = len(data.classes)
        except ConfigError:
            raise
        except SparsetuneError as error:
            reasons[name] = str(error)
            continue
        if count != KNOWN[name].classes:
            raise ConfigError(
                f"{sources.get(name, name)} has {count} classes, but {name} has {KNOWN[name].classes}; "
                "give the folder of that data set."
            )
    return reasons


def look(names: Iterable[str], sources: Mapping[str, str]) -> Noted:
    """Return what is to be noted of the data sets of these names, all of which are here."""
    places = {name: sources.get(name, name) for name in sorted(names)}
    return {name: {"source": source, "digest": opened(source).digest()} for name, source in places.items()}


def glance(names: Iterable[str], sources: Mapping[str, str], noted: Noted) -> Noted:
    """Do the same without a download: what would need one is as ``noted`` of its source, or left out."""
    found: Noted = {}
    for name in names:
        source = sources.get(name, name)
        if "://" in source or source in ("cifar10", "cifar100"):
            if noted.get(name, {}).get("source") == source:
                found[name] = noted[name]
        else:
            with suppress(SparsetuneError):
                found |= look([name], sources)
    return found


def check_digest(settings: Settings, source: str) -> None:
    """Refuse a job whose data is not, where it is done, that for which it was made.

    Raises:
        DataError: When it is not.
    """
    wanted = settings["digest"]
    if wanted is not None and (found := opened(source).digest()) != wanted:
        raise DataError(
            f"{source} holds other pictures (digest {found}) than those of this job (digest {wanted}); "
            "give every worker the same data, and call the command again if it changed meanwhile."
        )


@functools.cache
def here() -> dict[str, Any]:
    """Return what ``describe_machine`` says, asked once."""
    return dict(describe_machine())


@functools.cache
def describe_source(name: str, source: str) -> dict[str, Any]:
    """Return what a result's data is called and whether it is a lossy copy, as plain JSON values."""
    data = opened(source)
    images = data.judged.images if isinstance(data, Data) else None
    coded = isinstance(images, ParquetImages) and bytes(images.shards[0].data[:2]) == JPEG
    return {"name": name, "lossy": coded and KNOWN[name].bitmaps}


def learned_parameters(settings: Settings) -> int:
    """Return how many values are learned; by all members of an ensemble together."""
    return _planned(settings).learned_parameters * (settings["members"] or 1)


def total_parameters(settings: Settings) -> int:
    """Return how many values the model has."""
    return _planned(settings).total_parameters


def forward_work(settings: Settings) -> int:
    """Return the floating-point operations of one picture's way through the model."""
    return _work(*_model(settings), settings.get("size") or KNOWN[settings["data"]].side)


def _model(settings: Settings) -> tuple[str, str, int]:
    return settings["model"], json.dumps(settings["model_kwargs"]), class_count(settings)


def _planned(settings: Settings) -> Plan:
    return _plan(*_model(settings), json.dumps({name: settings[name] for name in LEARN}))


@functools.cache
def _skeleton(model: str, kwargs: str, classes: int) -> nn.Module:
    given: dict[str, Any] = {"kwargs": json.loads(kwargs) or {}, "num_classes": classes}
    return skeleton(Origin(library="timm", name=model, backbone=Backbone(kind="seed"), **given))


@functools.cache
def _plan(model: str, kwargs: str, classes: int, learn: str) -> Plan:
    return plan(_skeleton(model, kwargs, classes), Learn.from_json(json.loads(learn)))


@functools.cache
def _work(model: str, kwargs: str, classes: int, side: int) -> int:
    net = _skeleton(model, kwargs, classes).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        text = isinstance(net, DefinitionsTransformer)
        net(
            torch.zeros(1, side, dtype=torch.long, device="meta")
            if text
            else torch.empty(1, 3, side, side, device="meta")
        )
    return int(counter.get_total_flops())
