"""An entry of the comparison before its training: its data, its model, and what of it learns."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from sparsetune.adapt import adapt_
from sparsetune.budget import KEPT, choose
from sparsetune.choice import Choice
from sparsetune.config import FitConfig
from sparsetune.data import Data, balanced, open_data, split_in_two
from sparsetune.errors import ConfigError
from sparsetune.learn import Learn
from sparsetune.lowrank import uniform_lora
from sparsetune.reproduce.jobs import LEARN, TRAINING, Settings
from sparsetune.reproduce.place import Place
from sparsetune.reproduce.sources import class_count
from sparsetune.ways import spend
from sparsetune.zoo import create


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
