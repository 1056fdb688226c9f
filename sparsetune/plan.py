"""``plan``: a ``Learn`` applied to one model, as names, slices and counts; nothing is changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from sparsetune.errors import ConfigError, UnknownNameError
from sparsetune.layers import ADAPTED, Site, head_names, is_norm, is_sliceable, sites
from sparsetune.learn import Learn


@dataclass(frozen=True)
class Part:
    """What is learned of one parameter: the first ``k`` indices along ``dim``, or all of it, or nothing.

    Attributes:
        name: The parameter's name in the plain model.
        shape: Its whole shape.
        dim: The sliced dimension; 0 where the parameter is learned whole or frozen whole.
        k: Learned indices along ``dim``.
        layer: Whether it belongs to a layer that is sliced (a convolution or linear map, not the head).
        homes: Every ``(module name, attribute)`` that holds it.
    """

    name: str
    shape: tuple[int, ...]
    dim: int
    k: int
    layer: bool
    homes: tuple[tuple[str, str], ...]

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
        return 0 < self.k < self.size

    @property
    def numel(self) -> int:
        """Number of values, learned and frozen."""
        return torch.Size(self.shape).numel()

    @property
    def learned_shape(self) -> tuple[int, ...]:
        """Shape of the learned slice."""
        return tuple(self.k if i == self.dim else n for i, n in enumerate(self.shape))

    @property
    def learned_numel(self) -> int:
        """Number of learned values."""
        return torch.Size(self.learned_shape).numel() if self.k else 0


@dataclass(frozen=True)
class Buffer:
    """A tensor that a normalisation layer updates while it trains; it always travels in the delta."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class Plan:
    """Every parameter's part, every buffer that travels, and the sums.

    Attributes:
        learn: The spec that was applied.
        parts: One for each parameter, in the model's order.
        buffers: Running statistics and other persistent buffers, in the model's order.
        itemsize: Bytes of one learned value.
    """

    learn: Learn
    parts: tuple[Part, ...]
    buffers: tuple[Buffer, ...]
    itemsize: int = 4

    def __iter__(self) -> Iterator[Part]:
        return iter(self.parts)

    @property
    def learned_parameters(self) -> int:
        """Number of learned values."""
        return sum(part.learned_numel for part in self.parts)

    @property
    def total_parameters(self) -> int:
        """Number of values of the plain model."""
        return sum(part.numel for part in self.parts)

    @property
    def frozen_parameters(self) -> int:
        """Number of values that stay at the backbone's."""
        return self.total_parameters - self.learned_parameters

    @property
    def delta_bytes(self) -> int:
        """Bytes of the learned values and the buffers; the file adds a short header."""
        return self.learned_parameters * self.itemsize + sum(buffer.nbytes for buffer in self.buffers)

    def to_json(self) -> dict[str, Any]:
        """Return counts and per-layer slices as plain JSON values."""
        return {
            "learn": self.learn.to_json(),
            "learned_parameters": self.learned_parameters,
            "frozen_parameters": self.frozen_parameters,
            "total_parameters": self.total_parameters,
            "delta_bytes": self.delta_bytes,
            "layers": [
                {
                    "name": part.name,
                    "shape": list(part.shape),
                    "dim": part.dim,
                    "learned": part.k,
                    "of": part.size,
                    "learned_parameters": part.learned_numel,
                }
                for part in self.parts
            ],
        }

    def __str__(self) -> str:
        width = max((len(part.name) for part in self.parts), default=4)
        rows = [f"{'parameter':<{width}}  {'shape':<20} {'learned':>12}  values"]
        for part in self.parts:
            share = "all" if part.whole else f"{part.k}/{part.size}" if part.k else "-"
            shape = "x".join(map(str, part.shape))
            rows.append(f"{part.name:<{width}}  {shape:<20} {share:>12}  {part.learned_numel:,}")
        rows.append(summary(self))
        return "\n".join(rows)


def summary(plan: Plan) -> str:
    """Return one line with the sums of ``plan``."""
    share = plan.learned_parameters / max(plan.total_parameters, 1)
    return (
        f"{plan.learned_parameters:,} of {plan.total_parameters:,} values learned ({share:.1%}); "
        f"delta about {plan.delta_bytes / 1024:,.1f} KiB"
    )


def plan(net: nn.Module, learn: Learn) -> Plan:
    """Apply ``learn`` to ``net`` without changing it.

    Args:
        net: A plain model; its tensors are not read, so it may be on the meta device.
        learn: Which slices are learned.

    Returns:
        The plan. Rounding and rules are the paper's (Section 3): the first ``k`` indices; a bias follows
        its filters and is never split along another dimension; the classifier is whole or frozen.

    Raises:
        ConfigError: When the model is adapted already, or a pattern covers only the classifier.
        UnknownNameError: When a pattern of ``learn.layers`` matches no layer.
    """
    if any(hasattr(module, ADAPTED) for module in net.modules()):
        raise ConfigError("this model is adapted already; call sparsetune.merge_(net) first.")
    heads = head_names(net)
    found = list(sites(net))
    _check_patterns(learn.layers, found, heads)
    parts = tuple(_part(site, learn, heads) for site in found)
    persistent = net.state_dict(keep_vars=True)
    buffers = tuple(
        Buffer(name, tuple(buffer.shape), buffer.dtype)
        for name, buffer in net.named_buffers()
        if name in persistent
    )
    dtypes = [site.parameter.element_size() for site in found]
    return Plan(learn, parts, buffers, max(dtypes, default=4))


def _part(site: Site, learn: Learn, heads: tuple[str, ...]) -> Part:
    shape = tuple(site.parameter.shape)
    if not (site.parameter.is_floating_point() or site.parameter.is_complex()):
        return _all_or_nothing(site, False)
    if _under(site.module_name, heads):
        return _all_or_nothing(site, learn.head)
    if is_norm(site.module):
        return _all_or_nothing(site, learn.norm)
    if not is_sliceable(site.module):
        return _all_or_nothing(site, learn.everything)
    dim, k = 0, 0
    if learn.layers is None or any(_matches(site.module_name, pattern) for pattern in learn.layers):
        dim, k = _slice(site, learn)
    return Part(site.name, shape, dim, k, layer=True, homes=site.homes)


def _slice(site: Site, learn: Learn) -> tuple[int, int]:
    """The slice of a sliceable layer's weight or bias, normalised so that ``whole`` has ``dim`` 0."""
    shape = site.parameter.shape
    if len(shape) == 1:
        k = learn.size(shape[0]) if learn.dim == "out" else shape[0] * learn.size(1)
        return 0, k
    dim = {"out": 0, "in": 1, "height": len(shape) - 2, "width": len(shape) - 1}[learn.dim]
    absent = learn.dim in ("height", "width") and dim < 2
    size = 1 if absent else shape[dim]
    k = learn.size(size)
    if k in (0, size):
        return 0, shape[0] if k else 0
    return dim, k


def _all_or_nothing(site: Site, learned: bool) -> Part:
    shape = tuple(site.parameter.shape)
    size = shape[0] if shape else 1
    return Part(site.name, shape, 0, size if learned else 0, layer=False, homes=site.homes)


def _under(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(module + ".") for module in modules)


def _matches(name: str, pattern: str) -> bool:
    """Whether ``pattern`` matches the module ``name`` or one that it lies under."""
    pieces = name.split(".")
    return any(fnmatchcase(".".join(pieces[:i]), pattern) for i in range(1, len(pieces) + 1))


def _check_patterns(patterns: tuple[str, ...] | None, found: list[Site], heads: tuple[str, ...]) -> None:
    layers = {site.module_name for site in found if is_sliceable(site.module)}
    sliced = {name for name in layers if not _under(name, heads)}
    for pattern in patterns or ():
        if any(_matches(name, pattern) for name in sliced):
            continue
        if any(_matches(name, pattern) for name in layers):
            raise ConfigError(
                f"layers pattern '{pattern}' covers only the classifier; use head=True to learn it."
            )
        above = {".".join(name.split(".")[:i]) for name in sliced for i in range(1, name.count(".") + 2)}
        raise UnknownNameError(
            "layers pattern", pattern, above, "It must match a convolution or linear layer."
        )
