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
    applied,
    by_position,
    conv_of_few,
    conv_weight_gradient,
    input_gradient,
    linear_weight_gradient,
    plain,
)
from sparsetune.sliced.kind import Kind, formed, laid_out_as, learned_of, value, without_autocast

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
        return formed(module, leaf, summed, *self._factors(module, leaf))

    def apply(self, module: nn.Module, x: Tensor, geometry: Geometry | None) -> Tensor:
        """Apply; the bias is frozen."""
        whole, bias = self.whole(module, "weight"), value(module, "bias")
        return factored(x, *self._factors(module, "weight"), whole, bias, geometry)

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
    with without_autocast(frozen):
        whole = torch.addmm(frozen.flatten(1), b, a.flatten(1)).view(frozen.shape)
    return laid_out_as(frozen, whole)


class _Factored(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    @by_position
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, geometry: Geometry | None
    ) -> Tensor:
        return plain(x, weight, bias, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, a, b, ctx.geometry = inputs
        ctx.save_for_backward(x, a, b, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, weight = ctx.saved_tensors
        dx = da = db = None
        if ctx.needs_input_grad[0]:
            dx = input_gradient(grad, x, weight, ctx.geometry)
        if any(ctx.needs_input_grad[3:5]):
            da, db = factor_gradients(grad, x, a, b, weight, ctx.geometry)
        return dx, None, None, da, db, None


def factored(
    x: Tensor, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry | None = None
) -> Tensor:
    """Convolve with, or multiply by, a sum; differentiate with respect to its factors.

    Args:
        x: Input, ``(N, C, *spatial)``, or ``(..., I)`` of a linear map.
        a: ``(r, C / groups, *kernel)`` or ``(r, I)``.
        b: ``(O, r)``.
        weight: The sum, ``(O, C / groups, *kernel)`` or ``(O, I)``.
        bias: ``(O,)``, frozen, or ``None``.
        geometry: ``(stride, padding, dilation, groups)``; ``None`` of a linear map.

    Returns:
        ``(N, O, *spatial')``, as ``torch.nn.functional.conv*d`` gives it, or ``(..., O)``, autocast included.
    """
    return applied(_Factored, x, weight, bias, a, b, geometry)


def factor_gradients(
    grad: Tensor, x: Tensor, a: Tensor, b: Tensor, weight: Tensor, geometry: Geometry | None
) -> tuple[Tensor, Tensor]:
    """Return the gradients of ``A`` and ``B``.

    Of a convolution, with ``G`` the gradient of the output, that of ``A`` is the weight gradient of ``r``
    filters whose outputs have the gradient ``B^T G``, and that of ``B`` is ``G`` times the convolution of
    ``x`` with ``A``. All groups share ``A``, so each is a picture of its own.

    Args:
        grad: Gradient of the output, ``(N, O, *out)`` or ``(..., O)``.
        x: As for :func:`factored`.
        a: Likewise.
        b: Likewise.
        weight: The sum; only its shape and layout are read.
        geometry: As for :func:`factored`.

    Returns:
        Tensors with shapes and dtypes of ``a`` and ``b``.
    """
    rows, thin_a, thin_b = a.shape[0], a.to(x.dtype), b.to(x.dtype)
    if geometry is None:
        da = linear_weight_gradient(grad @ thin_b, x, 0, rows)
        return da.to(a.dtype), linear_weight_gradient(grad, x @ thin_a.t(), 1, rows).to(b.dtype)
    stride, padding, dilation, groups = geometry
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
