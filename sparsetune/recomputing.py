"""Gradient checkpointing: activations computed anew in the backward pass, for less memory at more time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from sparsetune.errors import ConfigError

FLAG = "grad_checkpointing"
"""timm's attribute of modules that can do it."""


@contextmanager
def recomputing(net: nn.Module, wanted: bool) -> Iterator[None]:
    """Let ``net`` compute activations anew for as long as the context lasts, if that is wanted.

    Running statistics of our own models move as without; those of timm's move twice a step.

    Args:
        net: A model with timm's ``set_grad_checkpointing``; its own setting is put back.
        wanted: Whether to; if not, nothing is changed.

    Raises:
        ConfigError: When the model has no gradient checkpointing.
    """
    kept = [(module, vars(module)[FLAG]) for module in net.modules() if FLAG in vars(module)]
    if wanted:
        _switch_on(net)
    try:
        yield
    finally:
        for module, was in kept:
            setattr(module, FLAG, was)


def _switch_on(net: nn.Module) -> None:
    refusal = ConfigError(f"{type(net).__name__} has no gradient checkpointing; leave it off.")
    switch = getattr(net, "set_grad_checkpointing", None)
    if not callable(switch):
        raise refusal
    try:
        switch(True)
    except AssertionError as error:  # so timm's models say that they have none
        raise refusal from error
