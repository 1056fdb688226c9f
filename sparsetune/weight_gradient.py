"""Gradients of a convolution, of its weight for the learned slice alone, by the kernel fastest for the shape.

On CPUs a matrix product is often faster than the library's own kernel, which works in blocks of 8 or 16
filters and first brings its operands into a layout of blocks. The thresholds were measured in float32 with
two cores of AVX2 and two of AVX-512, over the layers of WRN-28-4, densenet100_12 and resnet50.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sparsetune.shifts import (
    FEW,
    SHIFT_MIN_INPUTS,
    Geometry,
    moves_by_one,
    shifted_gradient,
    summed_products,
)

INPUT_MIN_POSITIONS = 64
"""From this many positions on, a product beats the library's 1x1 input gradient."""


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
