"""Gradient checkpointing: activations computed anew in the backward pass, for less memory at more time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sparsetune.errors import ConfigError

FLAG = "grad_checkpointing"
"""timm's attribute of modules that can do it."""


@contextmanager
def recomputing(net: nn.Module, wanted: bool) -> Iterator[None]:
    """Let ``net`` compute activations anew for as long as the context lasts, if that is wanted.

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


@contextmanager
def moved_once(statistics: Sequence[Tensor]) -> Iterator[None]:
    """Leave running statistics as the forward pass left them.

    A layer that a backward pass computes anew, whoever asked for that, counts its batch a second time.

    Args:
        statistics: Of the model whose backward pass runs in the context.
    """
    alike = [[v for v in statistics if v.dtype == dtype] for dtype in {v.dtype for v in statistics}]
    kept = [[torch.empty_like(value) for value in values] for values in alike]
    for values, before in zip(alike, kept, strict=True):
        torch._foreach_copy_(before, values)
    yield
    for values, before in zip(alike, kept, strict=True):
        torch._foreach_copy_(values, before)


def _switch_on(net: nn.Module) -> None:
    refusal = ConfigError(f"{type(net).__name__} has no gradient checkpointing; leave it off.")
    switch = getattr(net, "set_grad_checkpointing", None)
    if not callable(switch):
        raise refusal
    try:
        switch(True)
    except AssertionError as error:  # so timm's models say that they have none
        raise refusal from error
