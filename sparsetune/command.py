"""The ``sparsetune fit`` command that trains a delta again, from what the delta says of itself."""

from __future__ import annotations

import shlex
from typing import Any

from sparsetune.config import FitConfig
from sparsetune.errors import ConfigError
from sparsetune.header import Header
from sparsetune.learn import Learn
from sparsetune.weights import TORCHVISION

CONFIG = (
    "epochs",
    "batch_size",
    "opt",
    "lr",
    "sched",
    "decay_milestones",
    "decay_rate",
    "weight_decay",
    "seed",
    "amp",
    "compile",
)
"""Settings of a training that ``fit`` has an option for."""

OPTIONS = ("size", "train_limit", "test_limit", "init_from")
"""What else a run stores because its outcome depends on it."""

BUILT = ("img_size", "in_chans")
"""Arguments of a model that ``fit`` has an option for."""

DTYPE = "dtype"
"""Likewise, where the delta was saved in fewer bits."""

DATA = "digits"
"""The data that ``fit`` takes by itself."""


def command(header: Header) -> str | None:
    """Return the command that trains a delta again, with only the options that are not ``fit``'s defaults.

    Args:
        header: What a delta says of itself; it may be a stranger's.

    Returns:
        One line for a shell, each word quoted where it must be. Folders and files are named without their
        place, a folder of pictures with a slash behind, so that it is never taken for a built-in data set.
        ``None`` where the delta does not say how ``fit`` trained it, or has amounts by layer.
    """
    training, root = header.training, header.backbone.root
    options: Any = training.get("options")
    try:
        config = FitConfig(**training["config"])
    except (KeyError, TypeError, ConfigError, ValueError):
        return None
    known = (
        isinstance(options, dict)
        and {*OPTIONS} == {*options} - {DTYPE}
        and isinstance(training.get("data"), str)
    )
    if header.learn.by_layer or not known or root.kind == "module" or config.momentum != FitConfig().momentum:
        return None
    given: dict[str, Any] = {
        "model": (TORCHVISION if header.library == "torchvision" else "") + header.model,
        **_built(header.kwargs),
        **_learned(header.learn),
        "backbone_seed": root.seed or None,
        "pretrained": root.kind == "pretrained",
        "data": None if training["data"] == DATA else training["data"],
        **{name: options.get(name) for name in (*OPTIONS, DTYPE)},
        **{name: own for name in CONFIG if (own := getattr(config, name)) != getattr(FitConfig(), name)},
    }
    if root.kind == "file":
        given["init_from"] = root.source
    return shlex.join(["sparsetune", "fit", *_words(given)])


def _built(kwargs: dict[str, Any]) -> dict[str, Any]:
    own = {name: value for name, value in kwargs.items() if name in BUILT and type(value) is int}
    return {**own, "model_kwargs": [f"{name}={value!r}" for name, value in kwargs.items() if name not in own]}


def _learned(learn: Learn) -> dict[str, Any]:
    spec = learn.to_json()
    return {
        "fraction": spec["fraction"],
        "filters": spec["filters"],
        "rank": learn.rank,
        "dim": None if learn.dim == "out" else learn.dim,
        "layers": spec["layers"],
        "no_norm": not learn.norm,
        "no_head": not learn.head,
        "frozen": learn.frozen,
    }


def _words(given: dict[str, Any]) -> list[str]:
    """Options and their values; ``None`` and ``False`` are left out, a list is an option for each item."""
    words = []
    for name, value in given.items():
        option = "--" + name.replace("_", "-")
        if value is True:
            words.append(option)
        elif value is not None and value is not False:
            items = value if isinstance(value, (list, tuple)) else [value]
            words += [word for item in items for word in (option, str(item))]
    return words
