"""Gradient of a weight for its learned slice alone, by the kernel that is fastest for the shape at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Geometry = tuple[Sequence[int], Sequence[int], Sequence[int], int]
"""Stride, padding, dilation (one value for each spatial dimension) and groups of a convolution."""

BMM_MIN_POSITIONS = 100
"""From this many output positions on, a batched product beats the library's 1x1 weight gradient."""
SHIFT_MAX_FILTERS = 12
"""Up to this many filters, shifted gradients and a product beat the library, which works in blocks of 16."""


def conv_input_gradient(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return the gradient of a convolution's input, shaped as ``x``; arguments as for its weight's."""
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
    grad, part = grad[:, :k], weight[:k]
    if grad.device.type == "cpu" and grad.dim() == 4:
        few = k <= SHIFT_MAX_FILTERS
        pointwise = weight.shape[2:].numel() == 1 and not any(padding)
        if pointwise and (few or grad.shape[2:].numel() >= BMM_MIN_POSITIONS):
            return _pointwise(grad, _reached(x, stride))
        if few and _keeps_size(weight, geometry):
            return _shifted(grad, x, weight, padding)
    return _library(grad, x, part, geometry)


def _first_inputs(grad: Tensor, x: Tensor, weight: Tensor, k: int, geometry: Geometry) -> Tensor:
    groups = geometry[3]
    batch, channels, spatial = x.shape[0], x.shape[1], x.shape[2:]
    if groups == 1 or groups * k == channels:
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


def _pointwise(grad: Tensor, x: Tensor) -> Tensor:
    """1x1 kernels: ``sum_n grad_n @ x_n^T`` over flattened positions."""
    product = torch.bmm(grad.flatten(2), x.flatten(2).transpose(1, 2)).sum(0)
    return product.view(grad.shape[1], x.shape[1], 1, 1)


def _shifted(grad: Tensor, x: Tensor, weight: Tensor, padding: Sequence[int]) -> Tensor:
    """Few filters, stride 1: shift the gradient, not the input, for each position of the kernel.

    Stacking the shifted gradients copies ``k`` channels where unfolding the input would copy all of them; one
    batched product with the input does the rest.
    """
    k, (kh, kw), (height, width) = grad.shape[1], weight.shape[2:], x.shape[2:]
    around = (kw - 1 - padding[1],) * 2 + (kh - 1 - padding[0],) * 2
    shifts = F.pad(grad, around).unfold(2, height, 1).unfold(3, width, 1)
    stacked = shifts.reshape(len(x), k * kh * kw, height * width)
    product = torch.bmm(stacked, x.flatten(2).transpose(1, 2)).sum(0)
    return product.view(k, kh, kw, x.shape[1]).flip(1, 2).permute(0, 3, 1, 2)


def _reached(x: Tensor, stride: Sequence[int]) -> Tensor:
    """The positions that a 1x1 kernel reaches."""
    index: Any = (..., *(slice(None, None, step) for step in stride))
    return x[index]


def _keeps_size(weight: Tensor, geometry: Geometry) -> bool:
    stride, padding, dilation, _ = geometry
    kernel = weight.shape[2:]
    return (
        all(s == 1 for s in stride)
        and all(d == 1 for d in dilation)
        and all(p <= size - 1 for p, size in zip(padding, kernel, strict=True))
    )


def _layout(x: Tensor) -> torch.memory_format:
    if x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format
