"""``plan``: a ``Learn`` applied to one model, as names, slices and counts; nothing is changed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import is_lazy

from sparsetune.errors import ConfigError, UnknownNameError
from sparsetune.host import listed
from sparsetune.parts.layers import (
    ADAPTED,
    STORED,
    Site,
    head_names,
    is_depthwise,
    is_norm,
    is_sliceable,
    plain_name,
    sites,
    statistics_names,
    under,
    unwrapped,
)
from sparsetune.parts.part import Buffer, Part, full_rank
from sparsetune.spec import Learn, Precision, matches, stored_bytes

FUSED = ("qkv", "Wqkv", "to_qkv", "query_key_value", "c_attn", "in_proj")
"""Names of linear maps whose rows are queries, then keys, then values."""


@dataclass(frozen=True)
class Plan:
    """Every parameter's part, every buffer that travels, and the sums.

    Attributes:
        learn: The spec that was applied.
        parts: One for each parameter, in the model's order.
        buffers: Running statistics and other persistent buffers that a delta holds, in the model's order.
        itemsize: Bytes of one learned value.
        statistics: Running statistics that stay at the backbone's, which no delta holds.
    """

    learn: Learn
    parts: tuple[Part, ...]
    buffers: tuple[Buffer, ...]
    itemsize: int = 4
    statistics: tuple[Buffer, ...] = ()

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
        return tuple(_notes(self))

    def bytes_in(self, precision: Precision | None) -> int:
        """Return ``delta_bytes`` of a file that keeps float32 values in fewer bits; ``None`` for all bits."""
        buffers = sum(
            stored_bytes(buffer.shape, precision, statistic=True)
            if buffer.dtype == torch.float32
            else buffer.nbytes
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
                    "dimensions": part.dimensions,
                    "learned_parameters": part.learned_numel,
                }
                for part in self.parts
            ],
        }

    def __str__(self) -> str:
        width = max((len(part.name) for part in self.parts), default=4)
        rows = [f"{'parameter':<{width}}  {'shape':<20} {'learned':>12}  values"]
        for part in self.parts:
            columns = f"{part.name:<{width}}  {_by(part.shape):<20} {part.share:>12}"
            rows.append(f"{columns}  {part.learned_numel:,}")
        share = self.learned_parameters / max(self.total_parameters, 1)
        stored = f", with {self.stored_bytes / 1024:,.1f} KiB that no seed gives" if self.stored_bytes else ""
        rows.append(
            f"{self.learned_parameters:,} of {self.total_parameters:,} values learned ({share:.1%}); "
            f"delta about {self.delta_bytes / 1024:,.1f} KiB{stored}"
        )
        return "\n".join([*rows, *self.notes])


def _notes(made: Plan) -> Iterator[str]:
    """Say which layers a spec covers and yet leaves frozen, wholly or but for the queries."""
    empty: list[str] = []
    queries: list[str] = []
    for part in made:
        own = made.learn.at(part.homes[0][0]) if part.layer and len(part.shape) > 1 else None
        if own is None or not (own.fraction or own.filters):
            continue
        name = f"{part.name.removesuffix('.weight')} ({_by(part.shape)})"
        if not part.k:
            empty.append(name)
        elif part.dim == 0 and 3 * part.k <= part.size and _is_fused(part):
            queries.append(name)
    if empty:
        yield (
            f"learning nothing of {_count(empty, 'layer')}, for {made.learn.amount} of so few filters is "
            f"none: {listed(empty)}; a larger fraction or filters=1 learns some of each."
        )
    if queries:
        yield (
            f"learning only the queries of {_count(queries, 'attention layer')}, for their rows come before "
            f"those of keys and values: {listed(queries)}; dim='in' or a rank learns of all three."
        )


def _is_fused(part: Part) -> bool:
    module, leaf = part.homes[0]
    return module.rpartition(".")[2] in FUSED or leaf == "in_proj_weight"


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _count(names: list[str], noun: str) -> str:
    return f"{len(names):,} {noun}{'s' * (len(names) != 1)}"


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
        matrix with a row for each first index; the bias is frozen, and so is a depthwise convolution, whose
        sum would have about as many values as its weight. A vector is spread over weights alone.

    Raises:
        ConfigError: When the model is adapted already, has parameters without a shape yet, or a pattern
            covers only the classifier, or two amounts cover a layer, or there are more dimensions than
            weights.
        UnknownNameError: When a pattern of ``learn`` matches no layer.
    """
    net = unwrapped(net)
    if any(hasattr(module, ADAPTED) for module in net.modules()):
        raise ConfigError("this model is adapted already; call sparsetune.merge_(net) first.")
    found = list(sites(net))
    for site in found:
        if is_lazy(site.parameter):
            raise ConfigError(f"'{site.name}' has no shape yet; run the model on one batch first.")
    if learn.rank is not None and not any(is_depthwise(site.module) for site in found):
        learn = replace(learn, depthwise_sums=True)  # which then says nothing, and need not be told
    heads = head_names(net)
    _check_patterns(learn, found, heads)
    stored = getattr(net, STORED, ())
    vectors = _dimensions(found, learn, heads)
    parts = tuple(_part(site, learn, heads, stored, vectors.get(site.name, 0)) for site in found)
    persistent = net.state_dict(keep_vars=True)
    buffers = tuple(
        Buffer(plain_name(name), tuple(buffer.shape), buffer.dtype)
        for name, buffer in net.named_buffers()
        if name in persistent
    )
    held = statistics_names(net) if learn.norm_stats == "frozen" else frozenset()
    frozen = tuple(buffer for buffer in buffers if buffer.name in held)
    dtypes = [site.parameter.element_size() for site in found]
    travelling = tuple(buffer for buffer in buffers if buffer.name not in held)
    return Plan(learn, parts, travelling, max(dtypes, default=4), frozen)


def _dimensions(found: list[Site], learn: Learn, heads: tuple[str, ...]) -> dict[str, int]:
    """How long a vector is spread over each weight, by its name.

    One number for all is shared out evenly, as far as a layer has so many weights: in proportion to their
    sizes the first layers and the classifier would have next to none.
    """
    if learn.dimensions is None:
        return {}
    weights: dict[str, int] = {}
    own: dict[str, int] = {}
    for site in found:
        if (
            not is_sliceable(site.module)
            or site.parameter.dim() < 2
            or not site.parameter.is_floating_point()
        ):
            continue
        at_head = under(site.module_name, heads)
        here = None if at_head and (learn.head or learn.by_layer) else learn.at(site.module_name)
        if here is not None and isinstance(here.dimensions, int):
            weights[site.name], own[site.name] = site.parameter.numel(), here.dimensions
    if learn.by_layer:
        for name, count in own.items():
            _check_dimensions(count, weights[name], name)
        return own
    left = learn.dimensions if isinstance(learn.dimensions, int) else 0
    _check_dimensions(left, sum(weights.values()), "the layers")
    shares: dict[str, int] = {}
    for number, name in enumerate(sorted(weights, key=lambda name: weights[name])):
        shares[name] = min(weights[name], left // (len(weights) - number))
        left -= shares[name]
    return shares


def _check_dimensions(count: int, size: int, where: str) -> None:
    if count > size:
        raise ConfigError(
            f"dimensions {count:,} is more than the {size:,} weights of {where}; give fewer, or fraction=1."
        )


def _part(site: Site, learn: Learn, heads: tuple[str, ...], stored: Iterable[str], vector: int) -> Part:
    shape = tuple(site.parameter.shape)
    layer = False
    dim, k, rank = 0, shape[0] if shape else 1, 0
    if not (site.parameter.is_floating_point() or site.parameter.is_complex()):
        k = 0
    elif vector:
        layer, k = True, 0
    elif under(site.module_name, heads):
        k *= learn.head
    elif is_norm(site.module):
        k *= learn.norm
    elif not is_sliceable(site.module) or not shape:
        k *= learn.everything
    else:
        layer = True
        own = learn.at(site.module_name)
        dim, k = _slice(site, own) if own and not (own.rank or own.dimensions) else (0, 0)
        thin = not is_depthwise(site.module) or learn.depthwise_sums
        rank = min(own.rank, full_rank(shape)) if own and isinstance(own.rank, int) and thin else 0
    given = k == (shape[dim] if shape else 1) or (layer and learn.frozen == "zero")
    beside = site.name in stored and not given
    seed = learn.projection_seed if vector else 0
    return Part(site.name, shape, dim, k, layer, site.homes, rank, vector, seed, stored=beside)


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


def arithmetic_share(net: nn.Module, made: Plan, size: int | None = None) -> float | None:
    """Predict the multiplications of an adapted training step over those of a full step.

    Counted are convolutions and linear maps: one unit forward, one for the gradient of the input where
    something before it is learned, and the learned share of one for the gradient of the weight. Of a low-rank
    sum that is twice the share: each of its factors takes a product with the other; of a vector it is all.

    Args:
        net: The plain model; it is run without values (on the meta device) and not changed.
        made: Its plan.
        size: Height and width of a picture; ``None`` takes the model's own.

    Returns:
        A share from 1/3 to 1, or ``None`` where the model cannot be run that way.
    """
    learned = {
        ".".join(home).lstrip("."): 1.0
        if part.dimensions
        else min(1, part.learned_numel / part.numel * (2 if part.rank else 1))
        for part in made
        for home in part.homes
        if part.numel
    }
    calls = _calls(net, size)
    if not calls:
        return None
    full = ours = 0.0
    full_needs = ours_needs = False
    for weight, work, before in calls:
        full_needs = full_needs or bool(before)
        ours_needs = ours_needs or any(learned.get(name, 0) for name in before)
        full += work * (2 + full_needs)
        ours += work * (1 + ours_needs + learned.get(weight, 0.0))
        full_needs = True
        ours_needs = ours_needs or bool(learned.get(weight, 0))
    return ours / full


def _calls(net: nn.Module, size: int | None) -> list[tuple[str, float, list[str]]]:
    """For each layer in order of use: its weight's name, its work, and other parameters met before it."""
    config = getattr(net, "pretrained_cfg", None) or {}
    channels, height, width = config.get("input_size", (3, 224, 224))
    if size is not None:
        height = width = size
    met: list[str] = []
    calls: list[tuple[str, float, list[str]]] = []
    handles = []
    for name, module in net.named_modules():
        leaves = module.named_parameters(recurse=isinstance(module, nn.MultiheadAttention))
        own = {f"{name}.{leaf}" if name else leaf: value for leaf, value in leaves}
        if own:
            handles.append(module.register_forward_hook(_hook(module, own, met, calls)))
    held = itertools.chain(net.named_parameters(), net.named_buffers())
    values = {name: value.detach().to("meta") for name, value in held}
    try:
        with torch.no_grad():
            functional_call(net, values, (torch.empty(2, channels, height, width, device="meta"),))
    except Exception:
        return []
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _hook(
    module: nn.Module, own: dict[str, nn.Parameter], met: list[str], calls: list[tuple[str, float, list[str]]]
) -> Callable[..., None]:
    def meet(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        met.extend(own)

    if not is_sliceable(module):
        return meet
    attends = isinstance(module, nn.MultiheadAttention)
    by_input = attends or getattr(module, "transposed", False)
    weights = {name: value.select(int(attends), 0).numel() for name, value in own.items() if value.dim() > 1}

    def count(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        given = (inputs[0] if by_input else output).numel()
        for name, per_value in weights.items():
            calls.append((name, given * per_value, list(met)))
            met.clear()

    return count
