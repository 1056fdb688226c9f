"""A low-rank sum: ``frozen + B @ A``, whose thin factors are learned, over a frozen weight.

The sum is kept while no gradient is wanted. Going backward, the gradients of the factors are computed without
forming that of the weight, where that takes less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sparsetune.backbone import Law, draw
from sparsetune.parts import Part, factor_names
from sparsetune.sliced.convolution import (
    Geometry,
    conv_input_gradient,
    conv_of_few,
    conv_weight_gradient,
    convolve,
    linear_weight_gradient,
)
from sparsetune.sliced.functions import autocast, by_position, linear
from sparsetune.sliced.kind import KEPT, Kind, frozen_rest, learned_of, value

ROW = 3.0
"""Length of the rows of a low-rank sum's first ``A``. The first step of ``B`` moves the weight by its
gradient within the rows' span, times the square of their length; LoRA's own have 0.58, and start slowly."""


@dataclass(frozen=True)
class LowRank(Kind):
    """Two thin factors, ``weight_A`` and ``weight_B``, in the place of ``weight``."""

    @classmethod
    def of(cls, part: Part) -> LowRank | None:
        """Return the kind of a part that has a rank."""
        return cls() if part.rank else None

    def names(self, leaf: str) -> tuple[str, ...]:
        """Return the factors' names."""
        return factor_names(leaf)

    def start(self, part: Part, whole: Tensor) -> tuple[tuple[nn.Parameter, ...], Tensor]:
        """Draw ``A``, uniform with rows of length about ``ROW``; ``B`` is zero."""
        (name, inputs), (_, outputs) = part.learned.items()
        bound = ROW * (3 / torch.Size(inputs[1:]).numel()) ** 0.5
        a = draw(0, name, inputs, Law("uniform", -bound, bound)).to(whole)
        return (nn.Parameter(a), nn.Parameter(whole.new_zeros(outputs))), whole

    def whole(self, module: nn.Module, leaf: str) -> Tensor:
        """Form the sum, or give the one that is kept for as long as no gradient is wanted."""
        a, b = self._factors(module, leaf)
        terms, kept = (a, b, frozen_rest(module, leaf)), module.__dict__[KEPT]
        if not keepable(*terms):
            return summed(*terms)
        if torch.is_grad_enabled() and any(term.requires_grad for term in terms):
            kept.pop(leaf, None)
            return summed(*terms)
        found: Sum | None = kept.get(leaf)
        if found is None or not found.holds(*terms):
            found = kept[leaf] = Sum.of(*terms)
        return found.whole

    def conv(self, module: nn.Module, x: Tensor, geometry: Geometry) -> Tensor:
        """Convolve; the bias is frozen."""
        whole, bias = self.whole(module, "weight"), value(module, "bias")
        return factored_conv(x, *self._factors(module, "weight"), whole, bias, geometry)

    def linear(self, module: nn.Module, x: Tensor) -> Tensor:
        """Multiply; likewise."""
        whole, bias = self.whole(module, "weight"), value(module, "bias")
        return factored_linear(x, *self._factors(module, "weight"), whole, bias)

    def _factors(self, module: nn.Module, leaf: str) -> tuple[Tensor, Tensor]:
        a, b = (learned_of(module, name) for name in factor_names(leaf))
        return a, b


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
    """Do what :func:`factored_conv` does for a linear map: ``x`` ``(..., I)``, ``a`` ``(r, I)``."""
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
    """Return the gradients of ``A`` ``(r, I)`` and ``B`` ``(O, r)`` of a linear map's weight."""
    rows, thin_a, thin_b = a.shape[0], a.to(x.dtype), b.to(x.dtype)
    da = linear_weight_gradient(grad @ thin_b, x, 0, rows)
    db = linear_weight_gradient(grad, x @ thin_a.t(), 1, rows)
    return da.to(a.dtype), db.to(b.dtype)
