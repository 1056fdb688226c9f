"""A short vector spread over a frozen weight: each of its weights is moved by one of the vector's values.

``W + s * theta[group] * SCALE / sqrt(f)``: the ``n`` weights belong to ``d`` groups and have signs ``s``,
which the parameter's name and a seed fix, so that ``theta`` alone is learned. Training in a random subspace
like that is how Li et al. (2018) measure the intrinsic dimension of a task.

As groups share no weight and are of equal size, lengths in a layer stay as they are but for a factor. That is
by the inputs ``f`` of a filter, as the usual laws of first values are, so that all layers move alike.

The weights lie in rows of ``d``. Each row is ``theta``, turned by an offset of its own, so no table of groups
is kept; signs that are independent make such a partition as good as any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsetune.backbone import draw_below, draw_signs
from sparsetune.parts import Part, vector_name
from sparsetune.sliced.convolution import Geometry
from sparsetune.sliced.kind import (
    KEPT,
    Kind,
    formed,
    frozen_rest,
    keepable,
    laid_out_as,
    learned_of,
    value,
    without_autocast,
)

SCALE = 4.0
"""By which Adam's usual rates suit the vector as they do whole weights, over trained backbones."""
PIECE = 1 << 18
"""Weights that are moved at a time on a CPU."""
CONVOLUTIONS = F.conv1d, F.conv2d, F.conv3d
Places = tuple[Tensor, Tensor]
"""The offset of each row, ``(rows,)`` int64, and the sign of each weight, ``(n,)`` int8."""


@dataclass(frozen=True)
class Spread(Kind):
    """A vector, ``weight_theta``, in the place of ``weight``.

    Attributes:
        name: The parameter's name, which together with ``seed`` fixes groups and signs.
        seed: Of the subspace.
    """

    name: str
    seed: int

    @classmethod
    def of(cls, part: Part) -> Spread | None:
        """Return the kind of a part that has dimensions."""
        return cls(part.name, part.projection_seed) if part.dimensions else None

    def names(self, leaf: str) -> tuple[str, ...]:
        """Return the vector's name."""
        return (vector_name(leaf),)

    def start(self, part: Part, whole: Tensor) -> tuple[tuple[nn.Parameter, ...], Tensor]:
        """Start at zero, where the weight is the frozen one."""
        return (nn.Parameter(whole.new_zeros(part.dimensions)),), whole

    def whole(self, module: nn.Module, leaf: str) -> Tensor:
        """Move the frozen weight, or give what is kept for as long as no gradient is wanted."""
        places = self._places(module, leaf)
        return formed(
            module,
            leaf,
            lambda vector, frozen: moved(frozen, vector, places),
            learned_of(module, vector_name(leaf)),
        )

    def apply(self, module: nn.Module, x: Tensor, geometry: Geometry | None) -> Tensor:
        """Apply; the bias is frozen. The gradient of the whole weight is there for a moment, then summed."""
        weight, bias = self.whole(module, "weight"), value(module, "bias")
        if geometry is None:
            return F.linear(x, weight, bias)
        return CONVOLUTIONS[len(geometry[0]) - 1](x, weight, bias, *geometry)

    def settle(self, module: nn.Module, leaf: str) -> None:
        """Draw where the vector's values go, on the device where they are now."""
        super().settle(module, leaf)
        if not frozen_rest(module, leaf).is_meta:
            self._places(module, leaf)

    def _kept(self, leaf: str) -> str:
        return f"{leaf} places"

    def _places(self, module: nn.Module, leaf: str) -> Places:
        kept, frozen = module.__dict__[KEPT], frozen_rest(module, leaf)
        found: Places | None = kept.get(self._kept(leaf))
        if found is None or found[0].device != frozen.device:
            vector = learned_of(module, vector_name(leaf))
            found = places(self.name, self.seed, frozen.numel(), vector.numel(), frozen.device)
            kept[self._kept(leaf)] = found
        return found


def places(name: str, seed: int, count: int, dimensions: int, device: torch.device) -> Places:
    """Draw where the values of a vector go.

    Args:
        name: Of the parameter.
        seed: Of the subspace.
        count: Weights.
        dimensions: Values of the vector.
        device: Where to keep them; what is drawn is the same on each.
    """
    rows = -(-count // dimensions)
    offsets = draw_below(seed, f"{name}\0offsets", rows, dimensions)
    return offsets.to(device), draw_signs(seed, f"{name}\0signs", count).to(device)


def moved(frozen: Tensor, vector: Tensor, where: Places) -> Tensor:
    """Return ``frozen + s * vector[group] * SCALE / sqrt(f)``, the same bits everywhere.

    Args:
        frozen: The ``n`` weights, ``(O, ...)``, of which each filter has ``f``.
        vector: ``(d,)``.
        where: As :func:`places` gives it.

    Returns:
        In shape, dtype and memory layout of ``frozen``, whatever the caller's autocast.
    """
    offsets, signs = where
    quick = keepable(vector, frozen)
    with without_autocast(frozen):
        scaled = vector * (SCALE / frozen[0].numel() ** 0.5)
        by = _Spread.apply(scaled, offsets, signs, len(vector), False, quick)
        whole: Tensor = by.add_(frozen.reshape(-1)) if quick else by.to(frozen.dtype) + frozen.reshape(-1)
        whole = whole.view(frozen.shape)
    return laid_out_as(frozen, whole)


class _Spread(torch.autograd.Function):
    """A vector spread over weights, or weights gathered to a vector; each is the gradient of the other."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        value: Tensor, offsets: Tensor, signs: Tensor, length: int, back: bool, quick: bool
    ) -> Tensor:
        if quick:
            return (_gathered_quick if back else _spread_quick)(value, offsets, signs, length)
        if back:
            return turned_back(_rows(value * signs, length), offsets)
        return _turns(value)[offsets].view(-1)[: len(signs)] * signs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, offsets, signs, ctx.length, ctx.back, ctx.quick = inputs
        ctx.save_for_backward(offsets, signs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        how = ctx.length, not ctx.back, ctx.quick
        return _Spread.apply(grad, *ctx.saved_tensors, *how), None, None, None, None, None


def _turns(vector: Tensor) -> Tensor:
    """A view ``(d + 1, d)``: the vector from each offset on, and then its beginning."""
    return torch.cat([vector, vector]).unfold(0, len(vector), 1)


def _rows(weights: Tensor, length: int) -> Tensor:
    """Weights in rows of ``d``, the last one filled with zeros."""
    return F.pad(weights, (0, -len(weights) % length)).view(-1, length)


def turned_back(rows: Tensor, offsets: Tensor) -> Tensor:
    """``(rows, d)`` to ``(d,)``: the sum of the rows, each turned back by its offset."""
    count, length = rows.shape
    twice = torch.cat([rows, rows], 1).view(-1)
    starts = torch.arange(count, device=rows.device) * (2 * length) + (length - offsets) % length
    return twice.unfold(0, length, 1)[starts].sum(0)


def _pieces(offsets: Tensor, signs: Tensor, length: int) -> Iterator[tuple[Tensor, slice]]:
    """Rows of about ``PIECE`` weights: their offsets, and which weights they are."""
    count = max(1, PIECE // length)
    for start in range(0, len(offsets), count):
        own = offsets[start : start + count]
        yield own, slice(start * length, min((start + len(own)) * length, len(signs)))


def _spread_quick(vector: Tensor, offsets: Tensor, signs: Tensor, length: int) -> Tensor:
    """What :class:`_Spread` computes on a CPU, piece by piece and so within its cache."""
    turns = _turns(vector)
    if len(offsets) >= length:
        turns = turns[:length].contiguous()
    spread = vector.new_empty(len(signs))
    for own, where in _pieces(offsets, signs, length):
        torch.mul(_taken(turns, own).view(-1)[: where.stop - where.start], signs[where], out=spread[where])
    return spread


def _taken(turns: Tensor, offsets: Tensor) -> Tensor:
    """Rows of these offsets, in the way that is faster of a table and of a view with overlaps."""
    return turns.index_select(0, offsets) if turns.is_contiguous() else turns[offsets]


def _gathered_quick(weights: Tensor, offsets: Tensor, signs: Tensor, length: int) -> Tensor:
    """Likewise back; where there are many rows, those of one offset are summed before they are turned."""
    many = len(offsets) >= length
    total = weights.new_zeros(length, length) if many else weights.new_zeros(length)
    for own, where in _pieces(offsets, signs, length):
        rows = _rows(weights[where] * signs[where], length)
        total.index_add_(0, own, rows) if many else total.add_(turned_back(rows, own))
    return turned_back(total, torch.arange(length)) if many else total
