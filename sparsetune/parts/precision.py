"""Fewer bits for float32 values: two bytes, or one byte and a scale a filter.

Decoding is a product or a power of exact numbers, so that it gives the same bytes on every machine.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sparsetune.spec import Precision, rows_of

CODES = {"bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8, "root8": torch.uint8}
"""Name of a code -> type of its numbers; each stands for float32 values."""
VARIANCE = "running_var"
"""How the names of running variances end."""


def encode(value: Tensor, precision: Precision, relative: bool = False) -> tuple[str, Tensor, Tensor]:
    """Write float32 values in fewer bits.

    ``int8`` takes one scale for each filter (first index) of a weight and one for a vector: a value is the
    nearest of 255 steps. A vector without negative values may take the code ``root8`` instead, by which its
    fourth root is the nearest of 256 steps: finer below two fifths of the largest value, coarser above. Of
    the two it takes the one that makes the smaller error, or ``int8`` where they make the same.

    Args:
        value: float32, any shape.
        precision: How many bits.
        relative: Whether an error counts by its share of the value, as of variances, which divide what they
            stand for and span orders of magnitude. Otherwise all errors count alike.

    Returns:
        The code's name, its numbers ``(value.numel(),)``, and its scales ``(scales(code, shape),)`` float32.
    """
    flat = value.detach().cpu().contiguous().reshape(-1)
    if precision != "int8" or not len(flat):
        return precision, flat.to(CODES[precision]), torch.empty(0)
    rows = flat.view(rows_of(tuple(value.shape)), -1)
    scale = _scale(rows.double(), 127)
    numbers = (rows / scale).round().clamp(-127, 127).to(torch.int8).view(-1)
    made = "int8", numbers, scale.float().view(-1)
    if value.dim() > 1 or not bool((flat >= 0).all()):
        return made
    root = flat.double().sqrt().sqrt()
    scale = _scale(root.view(1, -1), 255)
    numbers = (root / scale).round().clamp(0, 255).to(torch.uint8).view(-1)
    return min(
        made, ("root8", numbers, scale.float().view(-1)), key=lambda code: _error(flat, code, relative)
    )


def _error(flat: Tensor, made: tuple[str, Tensor, Tensor], relative: bool) -> float:
    """The sum of the squared errors of a code, rounded once, so that no order of summing matters."""
    gap = decode(*made, tuple(flat.shape)).double() - flat.double()
    if relative:
        gap = gap / torch.where(flat == 0, 1.0, flat.double())
    return math.fsum((gap * gap).tolist())


def decode(code: str, numbers: Tensor, scale: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the float32 values that :func:`encode` wrote.

    Args:
        code: The code's name.
        numbers: ``(prod(shape),)``.
        scale: ``(scales(code, shape),)`` float32.
        shape: Of the values.
    """
    if code in ("bf16", "fp16") or not len(numbers):
        return numbers.float().view(shape)
    if code == "root8":
        root = numbers.double() * scale.double()
        return ((root * root) * (root * root)).float().view(shape)
    return (numbers.view(len(scale), -1).float() * scale[:, None]).view(shape)


def _scale(rows: Tensor, steps: int) -> Tensor:
    """One scale a row, ``(rows, 1)``, as float32 rounds it; 1 for a row of zeros."""
    scale = (rows.abs().amax(1, keepdim=True) / steps).float().double()
    return torch.where(scale == 0, 1.0, scale)
