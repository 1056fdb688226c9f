"""What the autograd functions of every kind have in common."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Signature, signature
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsetune.sliced.convolution import (
    Geometry,
    conv_input_gradient,
    conv_weight_gradient,
    convolve,
    linear_weight_gradient,
)


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


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry | None) -> Tensor:
    """Return the plain operation: a convolution or, without ``geometry``, a linear map.

    It lies in memory of its own: of more than two dimensions torch gives a view of a linear map, and autograd
    refuses to change a Function's view in place.
    """
    if geometry is not None:
        return convolve(x, weight, bias, geometry)
    y = F.linear(x, weight, bias)
    return y if y.dim() == 2 else torch.ops.aten._unsafe_view(y, y.shape)


def input_gradient(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry | None) -> Tensor:
    """Return the gradient of the input of :func:`plain`."""
    return grad @ weight if geometry is None else conv_input_gradient(grad, x, weight, geometry)


def weight_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, dim: int, k: int, geometry: Geometry | None
) -> Tensor:
    """Return the gradient of the first ``k`` indices of the weight of :func:`plain` along ``dim``."""
    if geometry is None:
        return linear_weight_gradient(grad, x, dim, k)
    return conv_weight_gradient(grad, x, weight, dim, k, geometry)


def applied(
    function: type[torch.autograd.Function], x: Tensor, weight: Tensor, bias: Tensor | None, *others: Any
) -> Tensor:
    """Apply an autograd Function as the plain operation is applied.

    Args:
        function: Of ``x``, ``weight``, ``bias`` and the others, the last of which is the geometry.
        x: Input, ``(N, C, *spatial)`` or ``(C, *spatial)``; ``(..., I)`` of a linear map.
        weight: The whole weight.
        bias: The whole bias.
        *others: Of which the last is the geometry.
    """
    x, weight, bias = autocast(x, weight, bias)
    single = others[-1] is not None and x.dim() != weight.dim()
    y: Tensor = function.apply(x.unsqueeze(0) if single else x, weight.detach(), bias, *others)
    return y.squeeze(0) if single else y


def autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast as autocast would have cast the operands of the plain operation."""
    bias = None if bias is None else bias.detach()
    device = x.device.type
    if x.is_meta or not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return x, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
