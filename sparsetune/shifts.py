"""Convolutions of few filters, and their weight gradients, as matrix products whose results are shifted.

On CPUs the library computes filters in blocks of 8 (AVX2) or 16 (AVX-512), however few there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

Geometry = tuple[Sequence[int], Sequence[int], Sequence[int], int]
"""Stride, padding, dilation (one value for each spatial dimension) and groups of a convolution."""

FLAT_RATIO = 3
"""Values that one product over the whole batch may copy for each that a product a picture adds up."""
FEW = 10
"""Up to so many filters, shifts and a product beat the library's blocks."""
SHIFT_MIN_INPUTS, FEW_MIN_INPUTS = 2, 4
"""Provided that there are so many inputs for each: where gradients are shifted, and where outputs are."""
MIN_POSITIONS = 4
"""From so many positions of a picture for each filter on: a product of fewer is slow."""
FOLD_VALUES = 2**17
"""Up to so many shifted outputs, adding all up in one call beats a call for each position of the kernel."""
SHIFT_VALUES = 2**20
"""Shifted gradients in memory at one time: so many stay in a cache, all of a batch would not."""


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Return the backend's convolution ``(N, O, *out)``; arguments as for the gradients."""
    stride, padding, dilation, groups = geometry
    zeros = (0,) * len(stride)
    return torch.convolution(x, weight, bias, stride, padding, dilation, False, zeros, groups)


def conv_of_few(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Convolve with few filters, without groups or bias.

    The library computes 8 or 16 filters where there are 4; on a CPU a product and shifts take less time.

    Args:
        x: Input, ``(N, C, *spatial)``.
        weight: ``(k, C, *kernel)``.
        geometry: ``(stride, padding, dilation, 1)``.

    Returns:
        ``(N, k, *out)``.
    """
    filters, inputs, positions = weight.shape[0], weight.shape[1], x.shape[2:].numel()
    few = filters <= min(FEW, inputs // FEW_MIN_INPUTS, positions // MIN_POSITIONS)
    if x.is_cpu and x.dim() == 4 and x.is_contiguous() and few and _keeps_size(weight, geometry):
        values = weight[:, 0].numel() * positions
        if len(x) * values <= FOLD_VALUES:
            return _folded_outputs(x, weight, geometry[1])
        pieces = x.split(max(1, SHIFT_VALUES // max(1, values)))
        found = [_shifted_outputs(piece, weight, geometry[1]) for piece in pieces]
        return found[0] if len(found) == 1 else torch.cat(found)
    return convolve(x, weight, None, geometry)


def shifted_gradient(grad: Tensor, x: Tensor, part: Tensor, padding: Sequence[int]) -> Tensor:
    """Stride 1: shift the gradient, not the input, for each position of the kernel.

    Stacking the shifted gradients copies as many channels as are learned where unfolding the input would copy
    all of them; one product with the input does the rest, a few pictures at a time.
    """
    (kh, kw), (height, width) = part.shape[2:], x.shape[2:]
    around = (kw - 1 - padding[1],) * 2 + (kh - 1 - padding[0],) * 2
    shifts = F.pad(grad, around).unfold(2, height, 1).unfold(3, width, 1)
    pictures = max(1, SHIFT_VALUES // max(1, shifts[:1].numel()))
    products = map(summed_products, shifts.split(pictures), x.split(pictures))
    total: Tensor = reduce(torch.add, products)
    return total.flip(1, 2).permute(0, 3, 1, 2)


def summed_products(rows: Tensor, x: Tensor) -> Tensor:
    """Sum ``rows[n, ..., i, j] * x[n, c, i, j]`` over pictures and positions: ``(..., C)``.

    A product for each picture leaves one result a picture to add up; one product over all pictures copies
    what has its channels before its positions.
    """
    between, positions = rows.shape[1:-2], rows.shape[-2:].numel()
    copied = 0 if x.stride(1) == 1 else x.shape[1] + (rows.dim() == 4) * rows.shape[1]
    if between.numel() * x.shape[1] >= FLAT_RATIO * copied * positions:
        flat = rows.movedim(0, -3).flatten(-3).flatten(0, -2)
        summed = flat @ x.permute(0, 2, 3, 1).flatten(0, 2)
    else:
        stacked = rows.flatten(-2).flatten(1, -2)
        summed = torch.bmm(stacked, x.flatten(2).transpose(1, 2)).sum(0)
    return summed.view(*between, x.shape[1])


def moves_by_one(weight: Tensor, geometry: Geometry) -> bool:
    """Whether the kernel is dense, moves by one position, and always reaches some of the input."""
    stride, padding, dilation, _ = geometry
    kernel = weight.shape[2:]
    return (
        all(s == 1 for s in stride)
        and all(d == 1 for d in dilation)
        and all(p <= size - 1 for p, size in zip(padding, kernel, strict=True))
    )


def _folded_outputs(x: Tensor, weight: Tensor, padding: Sequence[int]) -> Tensor:
    """One product for all positions of the kernel, whose results the library shifts and adds up.

    It adds each where a transposed convolution would, so the kernel is turned around.
    """
    turned = weight.flip(2, 3).permute(0, 2, 3, 1).reshape(-1, weight.shape[1])
    return F.fold(turned @ x.flatten(2), x.shape[2:], weight.shape[2:], padding=tuple(padding))


def _shifted_outputs(x: Tensor, weight: Tensor, padding: Sequence[int]) -> Tensor:
    """One product for all positions of the kernel, whose results are shifted and added to the middle one's.

    A shift is one of the flat map, line after line, once what it would carry over a line's end is zero.
    """
    (filters, inputs, kh, kw), (height, width) = weight.shape, x.shape[2:]
    products = weight.permute(2, 3, 0, 1).reshape(-1, inputs) @ x.flatten(2)
    products = products.view(x.shape[0], kh, kw, filters, height, width)
    for j in range(kw):
        right = j - padding[1]
        products[:, :, j, ..., : max(0, right)] = 0
        products[:, :, j, ..., max(0, width + min(0, right)) :] = 0
    flat = products.flatten(-2)
    total = flat[:, padding[0], padding[1]]
    for i, j in product(range(kh), range(kw)):
        shift, size = (i - padding[0]) * width + j - padding[1], height * width
        if (i, j) != tuple(padding) and abs(shift) < size:
            total[..., max(0, -shift) : size - max(0, shift)] += flat[
                :, i, j, :, max(0, shift) : size + min(0, shift)
            ]
    return total.view(x.shape[0], filters, height, width)


def _keeps_size(weight: Tensor, geometry: Geometry) -> bool:
    """Whether outputs are as many as inputs, each at the middle of what it is computed from."""
    middle = all(2 * p == size - 1 for p, size in zip(geometry[1], weight.shape[2:], strict=True))
    return middle and moves_by_one(weight, geometry)
