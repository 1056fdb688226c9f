"""Arguments of a model's constructor: those that a delta file can hold, and no others."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator
from typing import Any

from sparsetune.errors import ConfigError

RESERVED = frozenset(
    {
        "cache_dir",
        "checkpoint",
        "checkpoint_path",
        "device",
        "dtype",
        "name",
        "num_classes",
        "pretrained",
        "pretrained_backbone",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "pretrained_model_args",
        "pretrained_strict",
        "revision",
        "scriptable",
        "seed",
        "weights",
        "weights_backbone",
    }
)
"""Constructor arguments that reach the network or the disk, or that ``create`` sets itself."""

LARGEST = 1 << 20
"""Largest sum of all numbers among a model's arguments."""


def plain_arguments(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return a model's arguments as a delta file gives them back; tuples become lists.

    Args:
        name: The model's name, for errors.
        arguments: By name.

    Raises:
        ConfigError: When one is reserved, or no plain JSON value, or all together ask for too much.
    """
    reserved = sorted(RESERVED & set(arguments))
    if reserved:
        raise ConfigError(f"model argument '{reserved[0]}' cannot be passed to {name}; leave it out.")
    shown = reprlib.repr(arguments)
    try:
        plain: dict[str, Any] = json.loads(json.dumps(arguments, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"arguments {shown} of {name} cannot stand in a delta file ({error}); give plain numbers, texts "
            "and lists, or build the model yourself and call adapt_(net, learn, Backbone.from_module(net))."
        ) from error
    if sum(_numbers(plain)) > LARGEST:
        raise ConfigError(f"the numbers in arguments {shown} of {name} sum up to more than {LARGEST}.")
    return plain


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, (int, float)):
        yield abs(value)
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _numbers(item)
