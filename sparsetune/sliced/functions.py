"""What the autograd functions of every kind have in common."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Signature, signature
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class _ByPosition(Signature):
    """Of a function whose arguments come by position: torch would sort them anew on each call, at 60 µs."""

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        return _Bound(args)


class _Bound(NamedTuple):
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = MappingProxyType({})

    def apply_defaults(self) -> None:
        """Nothing is left to default."""


def by_position(function: Any) -> Any:
    """Let a Function's ``forward`` take its arguments by position alone."""
    function.__signature__ = _ByPosition(list(signature(function).parameters.values()))
    return function


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``x @ weight^T + bias`` in memory of its own.

    Of more than two dimensions torch gives a view, and autograd refuses to change a Function's view in place.
    """
    y = F.linear(x, weight, bias)
    return y if y.dim() == 2 else torch.ops.aten._unsafe_view(y, y.shape)


def autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast as autocast would have cast the operands of the plain operation."""
    bias = None if bias is None else bias.detach()
    device = x.device.type
    if x.is_meta or not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return x, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
