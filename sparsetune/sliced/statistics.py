"""Frozen running statistics: a normalisation layer that goes by its backbone's, also while it trains."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

from sparsetune.parts import plain_class


def hold_statistics_(module: nn.Module) -> None:
    """Let a layer stay in evaluation mode, whatever its model is put into, so that its statistics stay."""
    module.eval()
    kind: Any = type(module)
    module.__class__ = _held_class(kind)


def let_statistics_go_(module: nn.Module) -> None:
    """Undo what :func:`hold_statistics_` did."""
    module.__class__ = plain_class(type(module))


@cache
def _held_class(base: Any) -> type[nn.Module]:
    """A subclass of ``base`` that is always in evaluation mode."""

    def train(self: Any, mode: bool = True) -> Any:
        base.train(self, mode)
        self.training = False
        return self

    def __reduce_ex__(self: Any, protocol: Any) -> Any:  # noqa: N807
        return _restore, (base,), self.__dict__

    body = {
        "_plain": base,
        "__doc__": base.__doc__,
        "__module__": base.__module__,
        "train": train,
        "__reduce_ex__": __reduce_ex__,
    }
    return type(base.__name__, (base,), body)


def _restore(base: Any) -> nn.Module:
    kind = _held_class(base)
    return kind.__new__(kind)
