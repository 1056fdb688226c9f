"""A slice: the first indices of a parameter along one dimension are learned, the others are frozen.

The forward pass is the plain one, on the whole weight. The backward pass computes the gradient of the input
as usual, and the gradient of the weight for the learned slice alone: of the three equal parts of a training
step (forward, input gradient, weight gradient) only the fraction ``p`` of the last is spent, ``(2 + p) / 3``
in all.

A slice of filters is joined to its rest: both lie side by side in one memory, which is the whole weight.
Where something puts one of the two elsewhere (a parameter swapped by hand or by ``torch.func``), and for
slices along other dimensions, they are put together on each use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sparsetune.parts import Part
from sparsetune.sliced.convolution import (
    Geometry,
    applied,
    by_position,
    input_gradient,
    plain,
    weight_gradient,
)
from sparsetune.sliced.kind import KEPT, KIND, Kind, frozen_rest, learned_of, rest_name


@dataclass(frozen=True)
class Slice(Kind):
    """The first indices along ``dim``."""

    dim: int

    @classmethod
    def of(cls, part: Part) -> Slice | None:
        """Return the slice of a part."""
        return cls(part.dim) if part.k else None

    def names(self, leaf: str) -> tuple[str, ...]:
        """A slice has the name of the whole."""
        return (leaf,)

    def start(self, part: Part, whole: Tensor) -> tuple[tuple[nn.Parameter, ...], Tensor]:
        """Filters stay in the memory of ``whole``, other slices get their own."""
        learned = whole.data.narrow(self.dim, 0, part.k)  # each .data counts changes of its own
        rest = whole.data.narrow(self.dim, part.k, part.size - part.k)
        if self.dim:
            learned, rest = learned.clone(), rest.clone()
        return (nn.Parameter(learned),), rest

    def whole(self, module: nn.Module, leaf: str) -> Tensor:
        """Put slice and rest together, if they do not lie so."""
        learned, rest = _pair(module, leaf)
        whole = _joined(module, leaf)
        if whole is None or (torch.is_grad_enabled() and learned.requires_grad):
            return torch.cat([learned, rest], self.dim)
        return whole

    def apply(self, module: nn.Module, x: Tensor, geometry: Geometry | None) -> Tensor:
        """Apply; a bias is sliced too, or learned whole, or frozen."""
        weight, bias = _operands(module, "weight"), _operands(module, "bias")
        return sliced(x, *weight, *bias, self.dim, geometry)

    def settle(self, module: nn.Module, leaf: str) -> None:
        """Let a slice of filters and its rest lie side by side if they can."""
        learned, rest = module._parameters[leaf], frozen_rest(module, leaf)
        if _joined(module, leaf) is not None:
            return
        super().settle(module, leaf)
        if learned is not None and self.dim == 0 and joinable(learned, rest):
            join = module.__dict__[KEPT][leaf] = join_(learned, rest)
            module._buffers[rest_name(leaf)] = join.rest


def _operands(module: nn.Module, leaf: str) -> tuple[Any, Any]:
    """What is learned of a weight or bias, and its whole; one value where it is not partly learned."""
    kind = module.__dict__[KIND].get(leaf)
    if kind is None:
        whole = getattr(module, leaf)
        return whole, whole
    learned, rest = _pair(module, leaf)
    whole = _joined(module, leaf)
    if whole is None:
        whole = torch.cat([learned.detach(), rest], kind.dim)
    return learned, whole


def _pair(module: nn.Module, leaf: str) -> tuple[Tensor, Tensor]:
    return learned_of(module, leaf), frozen_rest(module, leaf)


def _joined(module: nn.Module, leaf: str) -> Tensor | None:
    """A sliced parameter's whole value without a copy, if its two parts lie side by side."""
    if torch.compiler.is_compiling():
        return None
    join: Joined | None = module.__dict__[KEPT].get(leaf)
    return join.whole if join and join.holds(*_pair(module, leaf)) else None


@dataclass(frozen=True, eq=False)
class Joined:
    """The whole weight whose memory holds a learned slice and, behind it, ``rest``."""

    whole: Tensor
    rest: Tensor

    def holds(self, learned: Tensor, rest: Tensor) -> bool:
        """Whether ``learned`` and ``rest`` still lie there."""
        return (
            type(learned) is nn.Parameter
            and rest is self.rest
            and learned.data_ptr() == self.whole.data_ptr()
            and learned.stride() == self.whole.stride()
            and rest.data_ptr() == self.whole.data_ptr() + _bytes_to_rest(learned)
        )


def joinable(learned: Tensor, rest: Tensor) -> bool:
    """Whether the two can lie in one memory; what other processes share stays where it is."""
    together = (learned.device, learned.dtype) == (rest.device, rest.dtype)
    return together and not rest.is_meta and not (rest.is_cpu and learned.is_shared())


def join_(learned: nn.Parameter, rest: Tensor) -> Joined:
    """Let ``learned`` and ``rest`` lie side by side, in fresh memory unless they do already.

    What they leave may be held by others (say, values set aside while a parameter holds an average), so it
    is never written to.
    """
    k = learned.shape[0]
    if not _side_by_side(learned, rest):
        rest = torch.cat([learned.detach(), rest])[k:]
    shape = (k + rest.shape[0], *rest.shape[1:])
    joined = rest.as_strided(shape, rest.stride(), rest.storage_offset() - k * rest.stride(0))
    whole = learned.detach()  # shares the count of changes by which autograd refuses stale values
    whole.data = joined
    learned.data = _in_storage_of_its_own(joined[:k])
    return Joined(whole, rest)


def _side_by_side(learned: Tensor, rest: Tensor) -> bool:
    """Whether ``learned`` lies in the storage of ``rest``, in one piece right before it."""
    return (
        learned.data_ptr() + learned.nbytes == rest.data_ptr()
        and learned.nbytes == _bytes_to_rest(learned)
        and rest.untyped_storage().data_ptr() <= learned.data_ptr()
        and learned.stride() == rest.stride()
    )


def _in_storage_of_its_own(part: Tensor) -> Tensor:
    """The same values in the same memory, in a storage that holds nothing else."""
    start = part.storage_offset() * part.element_size()
    storage = part.untyped_storage()[start : start + part.nbytes]
    return part.new_empty(0).set_(storage, 0, part.shape, part.stride())


def _bytes_to_rest(learned: Tensor) -> int:
    return learned.shape[0] * learned.stride(0) * learned.element_size()


class _Sliced(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    @by_position
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        learned: Tensor | None,
        learned_bias: Tensor | None,
        dim: int,
        geometry: Geometry | None,
    ) -> Tensor:
        return plain(x, weight, bias, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, learned, learned_bias, ctx.dim, ctx.geometry = inputs
        ctx.save_for_backward(x, weight)
        ctx.learned = None if learned is None else (learned.shape[ctx.dim], learned.dtype)
        ctx.bias = None if learned_bias is None else (learned_bias.shape[0], learned_bias.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            dx = input_gradient(grad, x, weight, ctx.geometry)
        if ctx.needs_input_grad[3]:
            k, dtype = ctx.learned
            dw = weight_gradient(grad, x, weight, ctx.dim, k, ctx.geometry).to(dtype)
        if ctx.needs_input_grad[4]:
            k, dtype = ctx.bias
            if ctx.geometry is None:
                db = grad[..., :k].reshape(-1, k).sum(0).to(dtype)
            else:
                db = grad[:, :k].sum([0, *range(2, grad.dim())]).to(dtype)
        return dx, None, None, dw, db, None, None


def sliced(
    x: Tensor,
    learned: Tensor | None,
    weight: Tensor,
    learned_bias: Tensor | None,
    bias: Tensor | None,
    dim: int,
    geometry: Geometry | None = None,
) -> Tensor:
    """Convolve with, or multiply by, the whole weight; differentiate with respect to its learned slice.

    Args:
        x: Input, ``(N, C, *spatial)``, or ``(..., I)`` of a linear map.
        learned: The learned slice of ``weight``: its first ``k`` indices along ``dim``; ``None`` for none.
        weight: The whole weight ``(O, C / groups, *kernel)`` or ``(O, I)`` with the learned slice in place.
        learned_bias: The first values of ``bias`` that are learned; ``None`` for none.
        bias: The whole bias ``(O,)`` or ``None``.
        dim: The sliced dimension of ``weight``.
        geometry: ``(stride, padding, dilation, groups)``; ``None`` of a linear map.

    Returns:
        ``(N, O, *spatial')``, as ``torch.nn.functional.conv*d`` gives it, or ``(..., O)``, autocast included.
    """
    return applied(_Sliced, x, weight, bias, learned, learned_bias, dim, geometry)
