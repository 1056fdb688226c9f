"""Fewer bits for float32 values: two bytes, or a byte or less and a scale a filter.

Decoding is made of products and sums of exact numbers, so that it gives the same bytes on every machine.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from sparsetune.spec import Precision, rows_of

CODES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.int8,
    "root8": torch.uint8,
    "int6": torch.int8,
    "line4": torch.uint8,
    "curve4": torch.uint8,
}
"""Name of a code -> type of its numbers; each stands for float32 values."""
VARIANCE, MEAN = "running_var", "running_mean"
"""How the names of running statistics end."""
Role = Literal["variance", "mean", ""]
"""What a tensor is, where that decides its code."""
_STEPS = 15
"""Of the codes of four bits."""


def role_of(name: str) -> Role:
    """Tell by a tensor's name what it is."""
    return "variance" if name.endswith(VARIANCE) else "mean" if name.endswith(MEAN) else ""


def encode(value: Tensor, precision: Precision, role: Role = "") -> tuple[str, Tensor, Tensor]:
    """Write float32 values in fewer bits.

    ``int8`` takes one scale for each filter (first index) of a weight and one for a vector: a value is the
    nearest of 255 steps. A vector without negative values may take the code ``root8`` instead, by which its
    fourth root is the nearest of 256 steps: finer below two fifths of the largest value, coarser above. Of
    the two it takes the one that makes the smaller error, or ``int8`` where they make the same.

    ``int6`` does the same with 63 steps. Of running statistics it keeps 16: equal steps of a mean, equal
    ratios of a variance (``line4`` and ``curve4``).

    Args:
        value: float32, any shape.
        precision: How many bits.
        role: Of a variance an error counts by its share of the value, as it divides what it stands for and
            spans orders of magnitude. Otherwise all errors count alike.

    Returns:
        The code's name, its numbers ``(value.numel(),)``, and its scales ``(scales(code, shape),)`` float32.
    """
    flat = value.detach().cpu().contiguous().reshape(-1)
    if precision in ("bf16", "fp16") or not len(flat):
        return precision, flat.to(CODES[precision]), torch.empty(0)
    rows = flat.view(rows_of(tuple(value.shape)), -1)
    if precision == "int6":
        return _in_steps(flat, role) if role else ("int6", *_rounded(rows, 31, short=True))
    made = "int8", *_rounded(rows, 127)
    if value.dim() > 1 or not bool((flat >= 0).all()):
        return made
    root = flat.double().sqrt().sqrt()
    scale = _scale(root.view(1, -1), 255)
    numbers = (root / scale).round().clamp(0, 255).to(torch.uint8).view(-1)
    coded = made, ("root8", numbers, scale.float().view(-1))
    return min(coded, key=lambda code: _error(flat, code, role == "variance"))


def _rounded(rows: Tensor, steps: int, short: bool = False) -> tuple[Tensor, Tensor]:
    scale = _scale(rows.double(), steps, short)
    numbers = (rows / scale).round().clamp(-steps, steps).to(torch.int8).view(-1)
    return numbers, scale.float().view(-1)


def _in_steps(flat: Tensor, role: Role) -> tuple[str, Tensor, Tensor]:
    """Write a statistic in 16 steps; a variance of which some is 0 in equal ones too."""
    values = flat.double()
    low = _short(values.min(), up=False)
    if role == "variance" and low > 0:
        ratio = _short((values.max() / low) ** (1 / _STEPS)).clamp_min(1 + 2**-7)
        numbers, code = (values / low).log() / ratio.log(), "curve4"
        scale = torch.stack([low, ratio])
    else:
        step = _short((values.max() - low) / _STEPS)
        step = torch.where(step == 0, 1.0, step)
        numbers, code = (values - low) / step, "line4"
        scale = torch.stack([low, step])
    return code, numbers.round().clamp(0, _STEPS).to(torch.uint8), scale.float()


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
    if code in ("line4", "curve4"):
        low, step = scale.double().tolist()
        levels = [low]
        for number in range(1, 256):
            levels.append(levels[-1] * step if code == "curve4" else low + number * step)
        return torch.tensor(levels, dtype=torch.float64)[numbers.long()].float().view(shape)
    return (numbers.view(len(scale), -1).float() * scale[:, None]).view(shape)


def _scale(rows: Tensor, steps: int, short: bool = False) -> Tensor:
    """One scale a row, ``(rows, 1)``, as float32 rounds it, or ``short``; 1 for a row of zeros."""
    scale = rows.abs().amax(1, keepdim=True) / steps
    scale = _short(scale) if short else scale.float().double()
    return torch.where(scale == 0, 1.0, scale)


def _short(value: Tensor, up: bool = True) -> Tensor:
    """The nearest bfloat16 that is not below, or not above; in float64."""
    near = value.bfloat16()
    beyond = near.double() < value if up else near.double() > value
    towards = torch.full_like(near, math.inf if up else -math.inf)
    return torch.where(beyond, torch.nextafter(near, towards), near).double()
