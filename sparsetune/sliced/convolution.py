"""Convolutions and linear maps, and their gradients: of the weight for the learned slice alone.

A convolution's are by the kernel that is fastest for the shape.

On CPUs a matrix product is often faster than the library's own kernel, which works in blocks of 8 or 16
filters and first brings its operands into a layout of blocks. The thresholds were measured in float32 with
two cores of AVX2 and two of AVX-512, over the layers of WRN-28-4, densenet100_12 and resnet50.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from inspect import Signature, signature
from itertools import product
from types import MappingProxyType
from typing import Any, NamedTuple

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
INPUT_MIN_POSITIONS = 64
"""From this many positions on, a product beats the library's 1x1 input gradient."""
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


def conv_input_gradient(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return the gradient of a convolution's input, shaped as ``x``; arguments as for its weight's."""
    stride, padding, dilation, groups = geometry
    if _is_product(grad, weight, geometry):
        if max(stride) > 1:
            unstrided = ([1, 1], padding, dilation, groups)
            return _spread(conv_input_gradient(grad, _reached(x, stride), weight, unstrided), x, stride)
        if grad.shape[2:].numel() >= INPUT_MIN_POSITIONS:
            return _pointwise_input(grad, x, weight)
    return _backward(grad, x, weight, geometry, [True, False, False])[0]


def conv_weight_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, dim: int, k: int, geometry: Geometry
) -> Tensor:
    """Return the gradient of the first ``k`` indices of a convolution's weight along ``dim``.

    Args:
        grad: Gradient of the output, ``(N, O, *out)``.
        x: Input, ``(N, C, *spatial)``.
        weight: The whole weight, ``(O, C / groups, *kernel)``; only its shape and layout are read.
        dim: The sliced dimension: 0 filters, 1 inputs, from 2 on a dimension of the kernel.
        k: Number of learned indices, at least 1.
        geometry: ``(stride, padding, dilation, groups)``.

    Returns:
        A tensor with the shape of ``weight.narrow(dim, 0, k)``.
    """
    if dim == 0:
        return _first_filters(grad, x, weight, k, geometry)
    if dim == 1:
        return _first_inputs(grad, x, weight, k, geometry)
    return _first_positions(grad, x, weight, dim, k, geometry)


def linear_weight_gradient(grad: Tensor, x: Tensor, dim: int, k: int) -> Tensor:
    """Return the gradient of the first ``k`` rows (``dim`` 0) or columns (1) of a linear map's weight.

    Args:
        grad: Gradient of the output, ``(..., O)``.
        x: Input, ``(..., I)``.
        dim: 0 for rows, 1 for columns.
        k: Number of learned rows or columns.

    Returns:
        ``(k, I)`` or ``(O, k)``.
    """
    if dim == 0:
        grad = grad[..., :k]
    else:
        x = x[..., :k]
    return grad.reshape(-1, grad.shape[-1]).t() @ x.reshape(-1, x.shape[-1])


def _first_filters(grad: Tensor, x: Tensor, weight: Tensor, k: int, geometry: Geometry) -> Tensor:
    stride, padding, dilation, groups = geometry
    if groups > 1:
        filters, inputs = weight.shape[0] // groups, weight.shape[1]
        touched = -(-k // filters)
        grad, x = grad[:, : touched * filters], x[:, : touched * inputs]
        part = weight[: touched * filters]
        return _library(grad, x, part, (stride, padding, dilation, touched))[:k]
    return _ungrouped(grad[:, :k], x, weight[:k], geometry)


def _first_inputs(grad: Tensor, x: Tensor, weight: Tensor, k: int, geometry: Geometry) -> Tensor:
    groups = geometry[3]
    batch, channels, spatial = x.shape[0], x.shape[1], x.shape[2:]
    if groups == 1:
        return _ungrouped(grad, x[:, :k], weight[:, :k], geometry)
    if groups * k == channels:
        x = x[:, : groups * k]
    else:
        parted = x.reshape(batch, groups, channels // groups, *spatial)
        x = parted[:, :, :k].reshape(batch, groups * k, *spatial)
    return _library(grad, x, weight[:, :k], geometry)


def _first_positions(grad: Tensor, x: Tensor, weight: Tensor, dim: int, k: int, geometry: Geometry) -> Tensor:
    """Crop or pad ``x`` along the sliced dimension so that ``k`` positions of kernel give ``grad``'s size."""
    stride, padding, dilation, groups = geometry
    axis = dim - 2
    reach = (grad.shape[dim] - 1) * stride[axis] + dilation[axis] * (k - 1) + 1
    before = padding[axis]
    pads = [0, 0] * (len(stride) - 1 - axis) + [before, max(0, reach - before - x.shape[dim])]
    padding = [0 if i == axis else p for i, p in enumerate(padding)]
    part = weight.narrow(dim, 0, k)
    return _library(grad, F.pad(x, pads).narrow(dim, 0, reach), part, (stride, padding, dilation, groups))


def _ungrouped(grad: Tensor, x: Tensor, part: Tensor, geometry: Geometry) -> Tensor:
    """Gradient of all of ``part``, the weight between the channels of ``x`` and of ``grad``."""
    stride, padding, _, _ = geometry
    if _is_product(grad, part, geometry):
        return summed_products(grad, _reached(x, stride)).view(part.shape)
    few = part.shape[0] <= min(FEW, part.shape[1] // SHIFT_MIN_INPUTS)
    if grad.is_cpu and grad.dim() == 4 and few and moves_by_one(part, geometry):
        return shifted_gradient(grad, x, part, padding)
    return _library(grad, x, part, geometry)


def _library(grad: Tensor, x: Tensor, part: Tensor, geometry: Geometry) -> Tensor:
    """The backend's own weight gradient for a weight shaped as ``part``.

    For strided 1x1 kernels over fewer than 8 channels-last inputs, oneDNN writes past its memory, in plain
    nets too; without the positions that such kernels skip there is no stride.
    """
    stride, padding, dilation, groups = geometry
    if part.shape[2:].numel() == 1 and not any(padding):
        x = _reached(x, stride)
        geometry = ([1] * len(stride), padding, dilation, groups)
    grad = grad.contiguous(memory_format=_layout(x))
    return _backward(grad, x, part, geometry, [False, True, False])[1]


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """The backend's gradients of input, weight and bias: those that are wanted."""
    stride, padding, dilation, groups = geometry
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0] * len(stride), groups, wanted
    )
    return gradients


def _pointwise_input(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """1x1 kernels, stride 1: ``weight^T @ grad_n``, laid out as ``x`` is."""
    weight = weight.flatten(1)
    if x.stride(1) == 1:
        return (grad.permute(0, 2, 3, 1) @ weight).permute(0, 3, 1, 2)
    return (weight.t() @ grad.flatten(2)).reshape(x.shape)


def _spread(reached: Tensor, x: Tensor, stride: Sequence[int]) -> Tensor:
    """Put values at the positions that a 1x1 kernel reaches, and zeros at the others."""
    batch, channels, height, width = x.shape
    if x.stride(1) == 1:
        spread = reached.new_zeros(batch, height, width, channels).permute(0, 3, 1, 2)
    else:
        spread = reached.new_zeros(x.shape)
    _reached(spread, stride).copy_(reached)
    return spread


def _is_product(grad: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether the convolution is a matrix product over positions, and products are at hand."""
    _, padding, _, groups = geometry
    pointwise = weight.shape[2:].numel() == 1 and not any(padding) and groups == 1
    return grad.is_cpu and grad.dim() == 4 and pointwise


def _reached(x: Tensor, stride: Sequence[int]) -> Tensor:
    """The positions that a 1x1 kernel reaches."""
    if max(stride) == 1:
        return x
    index: Any = (..., *(slice(None, None, step) for step in stride))
    return x[index]


def _layout(x: Tensor) -> torch.memory_format:
    if x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


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
