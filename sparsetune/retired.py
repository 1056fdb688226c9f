"""Parameters that ``adapt_`` or ``merge_`` took out of a model; an optimiser that still holds one is told."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from sparsetune.errors import ConfigError

RETIRED = "_sparsetune_retired"
"""Attribute of such a parameter: name of the function that took it out."""


def retire(parameter: nn.Parameter, by: str) -> None:
    """Note that a parameter is no longer its model's.

    Args:
        parameter: It.
        by: Name of the function that took it out.
    """
    setattr(parameter, RETIRED, by)
    _watch()


@cache
def _watch() -> None:
    """Look at every optimiser's parameters before each of its steps, from now on."""
    register_optimizer_step_pre_hook(_refuse_retired)


def _refuse_retired(optimizer: Any, *_: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if (by := getattr(parameter, RETIRED, None)) is not None:
                raise ConfigError(
                    f"this {type(optimizer).__name__} was made before {by}, which put other parameters in "
                    f"place of some of its own, so they never move; make it after {by}, from its parameters."
                )
