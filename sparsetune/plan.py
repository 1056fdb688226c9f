"""``plan``: a ``Learn`` applied to one model, as names, slices and counts; nothing is changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy

from sparsetune.amounts import matches
from sparsetune.empty import notes_on
from sparsetune.errors import ConfigError, UnknownNameError
from sparsetune.layers import (
    ADAPTED,
    STORED,
    Site,
    head_names,
    is_norm,
    is_sliceable,
    plain_name,
    sites,
    under,
    unwrapped,
)
from sparsetune.learn import Learn
from sparsetune.part import Buffer, Part, full_rank
from sparsetune.precision import Precision, stored_bytes


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
    def stored_bytes(self) -> int:
        """Bytes of the frozen values that no seed gives."""
        return self.itemsize * sum(part.numel - part.learned_numel for part in self if part.stored)

    @property
    def delta_bytes(self) -> int:
        """Bytes of the learned values, the buffers and stored frozen values; the file adds a short header."""
        return self.bytes_in(None)

    @property
    def notes(self) -> tuple[str, ...]:
        """What of this spec learns less than one might think, and what to do: a sentence each."""
        return tuple(notes_on(self.learn, self.parts))

    def bytes_in(self, precision: Precision | None) -> int:
        """Return ``delta_bytes`` of a file that keeps float32 values in fewer bits; ``None`` for all bits."""
        buffers = sum(
            stored_bytes(buffer.shape, precision) if buffer.dtype == torch.float32 else buffer.nbytes
            for buffer in self.buffers
        )
        return sum(self.bytes_of(part, precision) for part in self) + buffers + self.stored_bytes

    def bytes_of(self, part: Part, precision: Precision | None) -> int:
        """Return the bytes of what is learned of one part, likewise."""
        if self.itemsize != 4:
            return part.learned_numel * self.itemsize
        return sum(stored_bytes(shape, precision) for shape in part.learned.values())

    def to_json(self) -> dict[str, Any]:
        """Return counts and per-layer slices as plain JSON values."""
        return {
            "learn": self.learn.to_json(),
            "learned_parameters": self.learned_parameters,
            "frozen_parameters": self.frozen_parameters,
            "total_parameters": self.total_parameters,
            "delta_bytes": self.delta_bytes,
            "stored_bytes": self.stored_bytes,
            "notes": list(self.notes),
            "layers": [
                {
                    "name": part.name,
                    "shape": list(part.shape),
                    "dim": part.dim,
                    "learned": part.k,
                    "of": part.size,
                    "rank": part.rank,
                    "learned_parameters": part.learned_numel,
                }
                for part in self.parts
            ],
        }

    def __str__(self) -> str:
        width = max((len(part.name) for part in self.parts), default=4)
        rows = [f"{'parameter':<{width}}  {'shape':<20} {'learned':>12}  values"]
        for part in self.parts:
            shape = "x".join(map(str, part.shape))
            rows.append(f"{part.name:<{width}}  {shape:<20} {part.share:>12}  {part.learned_numel:,}")
        rows += [summary(self), *self.notes]
        return "\n".join(rows)


def summary(plan: Plan) -> str:
    """Return one line with the sums of ``plan``."""
    share = plan.learned_parameters / max(plan.total_parameters, 1)
    stored = f", with {plan.stored_bytes / 1024:,.1f} KiB that no seed gives" if plan.stored_bytes else ""
    return (
        f"{plan.learned_parameters:,} of {plan.total_parameters:,} values learned ({share:.1%}); "
        f"delta about {plan.delta_bytes / 1024:,.1f} KiB{stored}"
    )


def plan(net: nn.Module, learn: Learn) -> Plan:
    """Apply ``learn`` to ``net`` without changing it.

    Args:
        net: A plain model; its tensors are not read, so it may be on the meta device.
        learn: Which slices are learned.

    Returns:
        The plan. Rounding and rules are the paper's (Section 3): the first ``k`` indices; a bias follows
        its filters and is never split along another dimension; the classifier is whole or frozen. The
        filters of a transposed convolution are dimension 1 of its weight; with groups, a slice is the first
        ``k`` filters of each group, and the bias is learned whole. A low-rank sum is over the weight as a
        matrix with a row for each first index; the bias is frozen.

    Raises:
        ConfigError: When the model is adapted already, has parameters without a shape yet, or a pattern
            covers only the classifier, or two amounts cover a layer.
        UnknownNameError: When a pattern of ``learn`` matches no layer.
    """
    net = unwrapped(net)
    if any(hasattr(module, ADAPTED) for module in net.modules()):
        raise ConfigError("this model is adapted already; call sparsetune.merge_(net) first.")
    found = list(sites(net))
    for site in found:
        if is_lazy(site.parameter):
            raise ConfigError(f"'{site.name}' has no shape yet; run the model on one batch first.")
    heads = head_names(net)
    _check_patterns(learn, found, heads)
    stored = getattr(net, STORED, ())
    parts = tuple(_part(site, learn, heads, stored) for site in found)
    persistent = net.state_dict(keep_vars=True)
    buffers = tuple(
        Buffer(plain_name(name), tuple(buffer.shape), buffer.dtype)
        for name, buffer in net.named_buffers()
        if name in persistent
    )
    dtypes = [site.parameter.element_size() for site in found]
    return Plan(learn, parts, buffers, max(dtypes, default=4))


def _part(site: Site, learn: Learn, heads: tuple[str, ...], stored: Iterable[str]) -> Part:
    shape = tuple(site.parameter.shape)
    layer = False
    dim, k, rank = 0, shape[0] if shape else 1, 0
    if not (site.parameter.is_floating_point() or site.parameter.is_complex()):
        k = 0
    elif under(site.module_name, heads):
        k *= learn.head
    elif is_norm(site.module):
        k *= learn.norm
    elif not is_sliceable(site.module) or not shape:
        k *= learn.everything
    else:
        layer = True
        own = learn.at(site.module_name)
        dim, k = _slice(site, own) if own and own.rank is None else (0, 0)
        rank = min(own.rank, full_rank(shape)) if own and isinstance(own.rank, int) else 0
    given = k == (shape[dim] if shape else 1) or (layer and learn.frozen == "zero")
    return Part(site.name, shape, dim, k, layer, site.homes, rank, site.name in stored and not given)


def _slice(site: Site, learn: Learn) -> tuple[int, int]:
    """The slice of a sliceable layer's weight or bias, normalised so that ``whole`` has ``dim`` 0."""
    shape, module = site.parameter.shape, site.module
    transposed = isinstance(module, _ConvTransposeNd)
    groups = module.groups if isinstance(module, _ConvTransposeNd) else 1
    if len(shape) == 1:
        whole = learn.dim != "out" or groups > 1
        return 0, shape[0] * bool(learn.size(shape[0] // groups)) if whole else learn.size(shape[0])
    dim = {
        "out": int(transposed),
        "in": int(not transposed),
        "height": len(shape) - 2,
        "width": len(shape) - 1,
    }[learn.dim]
    absent = learn.dim in ("height", "width") and dim < 2
    size = 1 if absent else shape[dim]
    k = learn.size(size)
    if k in (0, size):
        return 0, shape[0] if k else 0
    return dim, k


def _check_patterns(learn: Learn, found: list[Site], heads: tuple[str, ...]) -> None:
    layers = {site.module_name for site in found if is_sliceable(site.module)}
    sliced = {name for name in layers if not under(name, heads)}
    kind = f"{' and '.join(learn.amounts)} pattern" if learn.by_layer else "layers pattern"
    for pattern in learn.patterns:
        if any(matches(name, pattern) for name in sliced):
            continue
        if any(matches(name, pattern) for name in layers):
            raise ConfigError(f"{kind} '{pattern}' covers only the classifier; use head=True to learn it.")
        above = {".".join(name.split(".")[:i]) for name in sliced for i in range(1, name.count(".") + 2)}
        raise UnknownNameError(kind, pattern, above, "It must match a convolution or linear layer.")
