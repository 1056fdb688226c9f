"""Convolution and linear maps whose weight gradient is computed for the learned slice only.

The forward pass is the plain one, on the whole weight. The backward pass computes the gradient of the input
as usual, and the gradient of the weight for the learned slice alone: of the three equal parts of a training
step (forward, input gradient, weight gradient) only the fraction ``p`` of the last is spent, ``(2 + p) / 3``
in all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import Signature, signature
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from sparsetune.sliced.convolution import (
    Geometry,
    conv_input_gradient,
    conv_of_few,
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


def summed(a: Tensor, b: Tensor, frozen: Tensor) -> Tensor:
    """Return ``frozen + b @ a``, where each is a matrix with a row for each of its first indices.

    Args:
        a: ``(r, *rest)``.
        b: ``(O, r)``.
        frozen: ``(O, *rest)``.

    Returns:
        ``(O, *rest)``, in the dtype and the memory layout of ``frozen``, whatever the caller's autocast.
    """
    device = frozen.device.type
    if not frozen.is_meta and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return summed(a, b, frozen)
    whole = torch.addmm(frozen.flatten(1), b, a.flatten(1)).view(frozen.shape)
    if frozen.dim() == 4 and not frozen.is_contiguous():
        return whole.contiguous(memory_format=torch.channels_last)
    return whole


@dataclass(frozen=True, eq=False)
class Sum:
    """A sum, and copies of what it was formed from, thin as they are."""

    whole: Tensor
    a: Tensor
    b: Tensor
    frozen: Tensor
    version: tuple[int, int]

    @classmethod
    def of(cls, a: Tensor, b: Tensor, frozen: Tensor) -> Sum:
        """Form the sum, so that it may be part of a graph later, also where it is asked for in inference."""
        with torch.inference_mode(False), torch.no_grad():
            return cls(summed(a, b, frozen), a.clone(), b.clone(), frozen, _version(frozen))

    def holds(self, a: Tensor, b: Tensor, frozen: Tensor) -> bool:
        """Whether it is the sum of these values, however they were written."""
        kind = self.whole.dtype, self.whole.device
        same = frozen is self.frozen and _version(frozen) == self.version
        alike = all((each.dtype, each.device) == kind for each in (a, b, frozen))
        return same and alike and torch.equal(a, self.a) and torch.equal(b, self.b)


def _version(frozen: Tensor) -> tuple[int, int]:
    """Count of the changes that torch saw, and the memory that holds the values."""
    return frozen._version, frozen.data_ptr()


def keepable(a: Tensor, b: Tensor, frozen: Tensor) -> bool:
    """Whether to keep a sum: on a CPU, where comparing thin tensors takes less time than forming it."""
    ordinary = type(a) is type(b) is nn.Parameter and not torch.compiler.is_compiling()
    return ordinary and a.is_cpu and b.is_cpu and frozen.is_cpu and not frozen.is_inference()


class _FactoredConv(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    @by_position
    def forward(
        x: Tensor, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry
    ) -> Tensor:
        return convolve(x, weight, bias, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, a, b, weight, _, ctx.geometry = inputs
        ctx.save_for_backward(x, a, b, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, weight = ctx.saved_tensors
        dx = da = db = None
        if ctx.needs_input_grad[0]:
            dx = conv_input_gradient(grad, x, weight, ctx.geometry)
        if any(ctx.needs_input_grad[1:3]):
            da, db = conv_factor_gradients(grad, x, a, b, weight, ctx.geometry)
        return dx, da, db, None, None, None


class _FactoredLinear(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    @by_position
    def forward(x: Tensor, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, a, b, weight, _ = inputs
        ctx.save_for_backward(x, a, b, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, weight = ctx.saved_tensors
        dx = da = db = None
        if ctx.needs_input_grad[0]:
            dx = grad @ weight
        if any(ctx.needs_input_grad[1:3]):
            da, db = linear_factor_gradients(grad, x, a, b)
        return dx, da, db, None, None


def factored_conv(
    x: Tensor, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry
) -> Tensor:
    """Convolve with a sum; differentiate with respect to its factors.

    Args:
        x: Input, ``(N, C, *spatial)``.
        a: ``(r, C / groups, *kernel)``.
        b: ``(O, r)``.
        weight: The sum, ``(O, C / groups, *kernel)``.
        bias: ``(O,)``, frozen, or ``None``.
        geometry: ``(stride, padding, dilation, groups)``.

    Returns:
        ``(N, O, *spatial')``, as ``torch.nn.functional.conv*d`` gives it, autocast included.
    """
    x, weight, bias = autocast(x, weight, bias)
    batched = x.dim() == weight.dim()
    y: Tensor = _FactoredConv.apply(x if batched else x.unsqueeze(0), a, b, weight.detach(), bias, geometry)
    return y if batched else y.squeeze(0)


def factored_linear(x: Tensor, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply by a sum; differentiate with respect to its factors.

    Args:
        x: Input, ``(..., I)``.
        a: ``(r, I)``.
        b: ``(O, r)``.
        weight: The sum, ``(O, I)``.
        bias: ``(O,)``, frozen, or ``None``.

    Returns:
        ``(..., O)``.
    """
    x, weight, bias = autocast(x, weight, bias)
    y: Tensor = _FactoredLinear.apply(x, a, b, weight.detach(), bias)
    return y


def conv_factor_gradients(
    grad: Tensor, x: Tensor, a: Tensor, b: Tensor, weight: Tensor, geometry: Geometry
) -> tuple[Tensor, Tensor]:
    """Return the gradients of ``A`` and ``B`` of a convolution's weight.

    With ``G`` the gradient of the output, that of ``A`` is the weight gradient of ``r`` filters whose outputs
    have the gradient ``B^T G``, and that of ``B`` is ``G`` times the convolution of ``x`` with ``A``. All
    groups share ``A``, so each is a picture of its own.

    Args:
        grad: Gradient of the output, ``(N, O, *out)``.
        x: Input, ``(N, C, *spatial)``.
        a: ``(r, C / groups, *kernel)``.
        b: ``(O, r)``.
        weight: The sum; only its shape and layout are read.
        geometry: ``(stride, padding, dilation, groups)``.

    Returns:
        Tensors with shapes and dtypes of ``a`` and ``b``.
    """
    stride, padding, dilation, groups = geometry
    rows, thin_a, thin_b = a.shape[0], a.to(x.dtype), b.to(x.dtype)
    if 2 * (a.numel() + b.numel()) >= weight.numel():
        whole = conv_weight_gradient(grad, x, weight, 0, weight.shape[0], geometry).flatten(1)
        da = (thin_b.t() @ whole).view(a.shape)
        return da.to(a.dtype), (whole @ thin_a.flatten(1).t()).to(b.dtype)
    batch, out, filters = x.shape[0], grad.shape[2:], grad.shape[1] // groups
    x = x.reshape(batch * groups, a.shape[1], *x.shape[2:])
    parted = grad.reshape(batch, groups, filters, out.numel())
    down = (thin_b.view(groups, filters, rows).transpose(1, 2) @ parted).reshape(batch * groups, rows, *out)
    single = (stride, padding, dilation, 1)
    da = conv_weight_gradient(down, x, thin_a, 0, rows, single)
    reached = conv_of_few(x, thin_a, single).reshape(batch, groups, rows, out.numel())
    db = (parted @ reached.transpose(2, 3)).sum(0).view(b.shape)
    return da.to(a.dtype), db.to(b.dtype)


def linear_factor_gradients(grad: Tensor, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of ``A`` and ``B`` of a linear map's weight.

    Args:
        grad: Gradient of the output, ``(..., O)``.
        x: Input, ``(..., I)``.
        a: ``(r, I)``.
        b: ``(O, r)``.

    Returns:
        Tensors with shapes and dtypes of ``a`` and ``b``.
    """
    rows, thin_a, thin_b = a.shape[0], a.to(x.dtype), b.to(x.dtype)
    da = linear_weight_gradient(grad @ thin_b, x, 0, rows)
    db = linear_weight_gradient(grad, x @ thin_a.t(), 1, rows)
    return da.to(a.dtype), db.to(b.dtype)
