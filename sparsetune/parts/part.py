"""``Part``: what is learned of one parameter; ``Buffer``: what travels beside the parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

FROZEN = ".frozen"
"""How the names of frozen values that a delta holds end."""


@dataclass(frozen=True)
class Part:
    """What is learned of one parameter: the first ``k`` indices along ``dim``, or all of it, or nothing.

    Or a low-rank sum: all of the parameter ``W`` is frozen (``k`` is 0), and ``W + B @ A`` stands in its
    place, where ``B`` and ``A``, of ``rank`` columns and rows, are learned. Or a vector of so many
    ``dimensions``, spread over the frozen parameter.

    Attributes:
        name: The parameter's name in the plain model.
        shape: Its whole shape.
        dim: The sliced dimension; 0 where the parameter is learned whole or frozen whole.
        k: Learned indices along ``dim``.
        layer: Whether it belongs to a layer that is sliced (a convolution or linear map, not the head).
        homes: Every ``(module name, attribute)`` that holds it.
        rank: Of the learned sum; 0 where there is none.
        dimensions: Length of the vector that is spread over it; likewise.
        projection_seed: Which weights have which of its values.
        stored: Whether no seed gives its frozen values, so that the delta holds them too.
    """

    name: str
    shape: tuple[int, ...]
    dim: int
    k: int
    layer: bool
    homes: tuple[tuple[str, str], ...]
    rank: int = 0
    dimensions: int = 0
    projection_seed: int = 0
    stored: bool = field(default=False, compare=False)

    @property
    def size(self) -> int:
        """Number of indices along the sliced dimension."""
        return self.shape[self.dim] if self.shape else 1

    @property
    def whole(self) -> bool:
        """Whether all of it is learned."""
        return self.k == self.size

    @property
    def partial(self) -> bool:
        """Whether some of it is learned and some frozen."""
        return 0 < self.k < self.size or self.rank > 0 or self.dimensions > 0

    @property
    def numel(self) -> int:
        """Number of values, learned and frozen."""
        return math.prod(self.shape)

    @property
    def learned_shape(self) -> tuple[int, ...]:
        """Shape of the learned slice."""
        return tuple(self.k if i == self.dim else n for i, n in enumerate(self.shape))

    @property
    def learned(self) -> dict[str, tuple[int, ...]]:
        """Name, in a delta and among an adapted model's parameters, and shape of each learned tensor."""
        if self.rank:
            shapes = (self.rank, *self.shape[1:]), (self.shape[0], self.rank)
            return dict(zip(factor_names(self.name), shapes, strict=True))
        if self.dimensions:
            return {vector_name(self.name): (self.dimensions,)}
        return {self.name: self.learned_shape} if self.k else {}

    @property
    def learned_numel(self) -> int:
        """Number of learned values."""
        return sum(math.prod(shape) for shape in self.learned.values())

    @property
    def share(self) -> str:
        """What is learned, in a word: ``all``, ``2/16``, ``rank 4``, ``9 dims``, or a dash for nothing."""
        if self.rank:
            return f"rank {self.rank}"
        if self.dimensions:
            return f"{self.dimensions:,} dim{'s' * (self.dimensions > 1)}"
        return "all" if self.whole else f"{self.k}/{self.size}" if self.k else "-"

    @property
    def frozen_shape(self) -> tuple[int, ...]:
        """Shape of the frozen rest."""
        return tuple(self.size - self.k if i == self.dim else n for i, n in enumerate(self.shape))

    @property
    def frozen_name(self) -> str:
        """What the frozen rest is called in a delta that holds it; no parameter can have that name."""
        return self.name + FROZEN


@dataclass(frozen=True)
class Buffer:
    """A tensor that a normalisation layer updates while it trains; it always travels in the delta."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def factor_names(name: str) -> tuple[str, str]:
    """Return what ``A`` and ``B`` of the parameter ``name`` are called where ``W + B @ A`` is learned."""
    return f"{name}_A", f"{name}_B"


def vector_name(name: str) -> str:
    """Return what the vector is called that is spread over the parameter ``name``."""
    return f"{name}_theta"


def full_rank(shape: tuple[int, ...]) -> int:
    """Return the smaller side of a weight as a matrix with a row for each first index; 0 for a bias."""
    return min(shape[0], math.prod(shape[1:])) if len(shape) > 1 else 0
