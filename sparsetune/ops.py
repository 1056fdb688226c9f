"""Convolution and linear maps whose weight gradient is computed for the learned slice only.

The forward pass is the plain one, on the whole weight. The backward pass computes the gradient of the input
as usual, and the gradient of the weight for the learned slice alone: of the three equal parts of a training
step (forward, input gradient, weight gradient) only the fraction ``p`` of the last is spent, ``(2 + p) / 3``
in all.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Signature, signature
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sparsetune.shifts import Geometry, convolve
from sparsetune.weight_gradient import conv_input_gradient, conv_weight_gradient, linear_weight_gradient


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


def _keep(
    ctx: Any, x: Tensor, learned: Tensor | None, weight: Tensor, learned_bias: Tensor | None, dim: int
) -> None:
    """Keep what a backward pass needs: operands, and size and dtype of what is learned."""
    ctx.save_for_backward(x, weight)
    ctx.dim = dim
    ctx.learned = None if learned is None else (learned.shape[dim], learned.dtype)
    ctx.bias = None if learned_bias is None else (learned_bias.shape[0], learned_bias.dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``x @ weight^T + bias`` in memory of its own.

    Of more than two dimensions torch gives a view, and autograd refuses to change a Function's view in place.
    """
    y = F.linear(x, weight, bias)
    return y if y.dim() == 2 else torch.ops.aten._unsafe_view(y, y.shape)


class _SlicedConv(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    @by_position
    def forward(
        x: Tensor,
        learned: Tensor | None,
        weight: Tensor,
        learned_bias: Tensor | None,
        bias: Tensor | None,
        dim: int,
        geometry: Geometry,
    ) -> Tensor:
        return convolve(x, weight, bias, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, learned, weight, learned_bias, _, dim, geometry = inputs
        _keep(ctx, x, learned, weight, learned_bias, dim)
        ctx.geometry = geometry

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = conv_input_gradient(grad, x, weight, ctx.geometry)
        if ctx.needs_input_grad[1]:
            k, dtype = ctx.learned
            dw = conv_weight_gradient(grad, x, weight, ctx.dim, k, ctx.geometry).to(dtype)
        if ctx.needs_input_grad[3]:
            k, dtype = ctx.bias
            db = grad[:, :k].sum([0, *range(2, grad.dim())]).to(dtype)
        return dx, dw, None, db, None, None, None


class _SlicedLinear(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    @by_position
    def forward(
        x: Tensor,
        learned: Tensor | None,
        weight: Tensor,
        learned_bias: Tensor | None,
        bias: Tensor | None,
        dim: int,
    ) -> Tensor:
        return linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, learned, weight, learned_bias, _, dim = inputs
        _keep(ctx, x, learned, weight, learned_bias, dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = grad @ weight
        if ctx.needs_input_grad[1]:
            k, dtype = ctx.learned
            dw = linear_weight_gradient(grad, x, ctx.dim, k).to(dtype)
        if ctx.needs_input_grad[3]:
            k, dtype = ctx.bias
            db = grad[..., :k].reshape(-1, k).sum(0).to(dtype)
        return dx, dw, None, db, None, None


def sliced_conv(
    x: Tensor,
    learned: Tensor | None,
    weight: Tensor,
    learned_bias: Tensor | None,
    bias: Tensor | None,
    dim: int,
    geometry: Geometry,
) -> Tensor:
    """Convolve with the whole weight; differentiate with respect to its learned slice.

    Args:
        x: Input, ``(N, C, *spatial)``.
        learned: The learned slice of ``weight``: its first ``k`` indices along ``dim``; ``None`` for none.
        weight: The whole weight ``(O, C / groups, *kernel)`` with the learned slice in place.
        learned_bias: The first values of ``bias`` that are learned; ``None`` for none.
        bias: The whole bias ``(O,)`` or ``None``.
        dim: The sliced dimension of ``weight``.
        geometry: ``(stride, padding, dilation, groups)``.

    Returns:
        ``(N, O, *spatial')``, as ``torch.nn.functional.conv*d`` gives it, autocast included.
    """
    x, weight, bias = autocast(x, weight, bias)
    batched = x.dim() == weight.dim()
    y: Tensor = _SlicedConv.apply(
        x if batched else x.unsqueeze(0), learned, weight.detach(), learned_bias, bias, dim, geometry
    )
    return y if batched else y.squeeze(0)


def sliced_linear(
    x: Tensor,
    learned: Tensor | None,
    weight: Tensor,
    learned_bias: Tensor | None,
    bias: Tensor | None,
    dim: int,
) -> Tensor:
    """Multiply by the whole weight; differentiate with respect to its learned slice.

    Args:
        x: Input, ``(..., I)``.
        learned: The learned slice of ``weight``: its first ``k`` indices along ``dim``; ``None`` for none.
        weight: The whole weight ``(O, I)`` with the learned slice in place.
        learned_bias: The first values of ``bias`` that are learned; ``None`` for none.
        bias: The whole bias ``(O,)`` or ``None``.
        dim: The sliced dimension of ``weight``.

    Returns:
        ``(..., O)``.
    """
    x, weight, bias = autocast(x, weight, bias)
    y: Tensor = _SlicedLinear.apply(x, learned, weight.detach(), learned_bias, bias, dim)
    return y


def autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast as autocast would have cast the operands of the plain operation."""
    bias = None if bias is None else bias.detach()
    device = x.device.type
    if x.is_meta or not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return x, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
