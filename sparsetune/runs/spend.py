"""A budget of bytes, spent on a model's layers: one rank at a time, on which of them, or on one vector."""

from __future__ import annotations

import json
import zlib
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from sparsetune.backbone import origin_of
from sparsetune.errors import ConfigError
from sparsetune.parts import Plan, full_rank, plan
from sparsetune.spec import Learn, Precision, matches

VECTOR = "a vector"
UNIFORM, LATER, MIDDLE = "low rank, uniform", "low rank, last two thirds", "low rank, middle third"
DEPTHS = {UNIFORM: (0, 3), LATER: (1, 3), "low rank, last third": (2, 3), MIDDLE: (1, 2)}
"""From which third of the depth to which."""
WAYS = (*DEPTHS, VECTOR)
"""Slices, and where the gradient gains most a byte, were measured too and were the best nowhere."""
ROOM = 2
"""Rank in every layer that a budget must have room for to be spent on all of a random backbone's."""
RESERVE = 2200
"""Bytes of a file kept for what it says of itself, but for its index, learn spec and class names."""
LEAST_SAID = 800
"""The fewest that these can be."""


def is_random(net: nn.Module) -> bool:
    """Whether a plain model stands on a backbone that is rebuilt from a seed."""
    origin = origin_of(net)
    return origin is not None and origin.backbone.kind == "seed"


def ways(
    net: nn.Module, nbytes: int, *, base: Learn | None = None, dtype: Precision | None = None
) -> tuple[str, ...]:
    """Return in which of the ways ``--budget`` may spend so many bytes, the default first.

    Over a random backbone that is every layer first, and then the last two thirds of the depth; where there
    is no room for a rank of two in every layer, a vector spread over all layers, the classifier's included.
    Over any other backbone such a vector is first, which costs nothing for each layer, and then the last two
    thirds, as tasks share a network's first layers.

    Args:
        net: A plain model.
        nbytes: The most that the delta may take.
        base: As for :func:`allocate`.
        dtype: Likewise.
    """
    if not is_random(net):
        return VECTOR, LATER
    least = plan(net, replace(base or Learn(filters=0), filters=None, rank=ROOM)).bytes_in(dtype)
    return (UNIFORM, LATER) if least <= nbytes else (VECTOR,)


def spend(
    name: str, net: nn.Module, nbytes: int, *, base: Learn | None = None, **options: Any
) -> Learn | None:
    """Spend a budget in one of the ways.

    Args:
        name: One of ``WAYS``.
        net: A plain model.
        nbytes: The most that the delta may take.
        base: As for :func:`allocate`.
        **options: ``classes``, ``dtype`` and ``reserve``, likewise.

    Returns:
        What to learn; ``None`` where the model has no layer at that depth.

    Raises:
        ConfigError: As :func:`allocate` does.
    """
    base = base or Learn(filters=0)
    if name == VECTOR:
        return spread(net, nbytes, base=base, **options)
    start, stop = DEPTHS[name]
    names = [*dict.fromkeys(part.homes[0][0] for part in plan(net, base) if part.layer)]
    layers = names[len(names) * start // 3 : len(names) * stop // 3]
    if names and not layers:
        return None
    return allocate(net, nbytes, layers=[] if layers == names else layers, base=base, **options)


def allocate(
    net: nn.Module,
    nbytes: int,
    *,
    layers: Iterable[str] = (),
    base: Learn | None = None,
    classes: Iterable[str] = (),
    dtype: Precision | None = None,
    reserve: int = RESERVE,
) -> Learn:
    """Spend a budget on a model: what it always needs first, then low-rank sums until nothing fits.

    Each layer has as high a rank as any other until it is full: a rank more of it is no longer worth its
    bytes, or does not fit.

    Args:
        net: A plain model; its tensors are not read.
        nbytes: The most that the delta may take, all that it says of itself included.
        layers: Module-name patterns of the layers that may get any; all if empty.
        base: What is learned beside the layers; ``Learn(filters=0)`` if left out.
        classes: Class names that the file will hold.
        dtype: As the delta will be saved; ``None`` for all bits.
        reserve: Bytes for what the file says of itself, but for its index, learn spec and class names.

    Returns:
        A spec by layer, or of one number where all layers have the same. Normalisation's scale and shift are
        frozen in it where they do not fit.

    Raises:
        ConfigError: When running statistics and head alone are more than ``nbytes``.
        UnknownNameError: When a pattern matches no layer.
    """
    base, left = _affordable(net, nbytes, base or Learn(filters=0), tuple(classes), dtype, reserve)
    patterns = tuple(layers)
    costs = _costs(net, patterns, dtype)
    ranks = dict.fromkeys(costs, 0)
    for rank in range(1, 1 + max(map(len, costs.values()), default=0)):
        for name, each in costs.items():
            full = ranks[name] < rank - 1 or rank > len(each)
            if not full and each[rank - 1] <= left:
                left -= each[rank - 1]
                ranks[name] = rank
    if not any(ranks.values()):
        return base
    alike = len({*ranks.values()}) == 1 and not patterns
    by_layer = tuple((name, rank) for name, rank in ranks.items() if rank)
    return replace(base, filters=None, rank=by_layer[0][1] if alike else by_layer)


def spread(
    net: nn.Module,
    nbytes: int,
    *,
    base: Learn | None = None,
    classes: Iterable[str] = (),
    dtype: Precision | None = None,
    reserve: int = RESERVE,
) -> Learn:
    """Spend a budget on the head and, for all that it leaves, on a vector spread over the layers.

    Normalisation's scale and shift are frozen: as many of the vector's values were worth more. So is the head
    of a random backbone; the vector is spread over its weight too.

    Args:
        net: A plain model; its tensors are not read.
        nbytes: The most that the delta may take, all that it says of itself included.
        base: As for :func:`allocate`.
        classes: Likewise.
        dtype: Likewise.
        reserve: Likewise.

    Returns:
        A spec of so many dimensions, at most as many as there are weights; without any where none fits.

    Raises:
        ConfigError: When running statistics and head alone are more than ``nbytes``.
    """
    named = tuple(classes)
    base = replace(base or Learn(filters=0), norm=False)
    base = replace(base, head=base.head and not is_random(net))
    base, _ = _affordable(net, nbytes, base, named, dtype, reserve)

    def excess(dimensions: int) -> int:
        made = plan(net, replace(base, filters=None, dimensions=dimensions))
        return made.bytes_in(dtype) + reserve + _said(made, named) - nbytes

    most = sum(part.numel for part in plan(net, base) if part.layer and full_rank(part.shape))
    found = bisect_right(range(1, most + 1), 0, key=excess)
    return replace(base, filters=None, dimensions=found) if found else base


def _affordable(
    net: nn.Module,
    nbytes: int,
    base: Learn,
    classes: tuple[str, ...],
    dtype: Precision | None,
    reserve: int,
) -> tuple[Learn, int]:
    """``base`` as far as it fits, and how many bytes are left."""
    for learn in dict.fromkeys((base, replace(base, norm=False))):
        made = plan(net, learn)
        needed = made.bytes_in(dtype) + reserve + _said(made, classes)
        if needed <= nbytes:
            return learn, nbytes - needed
    what = "running statistics and the classifier" if base.head else "running statistics"
    raise ConfigError(
        f"budget {nbytes:,} bytes is below {needed:,} bytes, the least that a delta of this model takes "
        f"({what}, and what the file says of itself); give more, or choose a smaller model."
    )


def _said(made: Plan, classes: tuple[str, ...]) -> int:
    """Bytes of index, learn spec and class names; an upper bound, whichever layers are learned."""
    open_to_sums = [part for part in made if part.layer and not part.learned]
    entries = [[name, "float32", [*shape]] for part in made for name, shape in part.learned.items()]
    entries += [[f"{part.name}_{end}", "float32", [*part.shape]] for part in open_to_sums for end in "AB"]
    entries += [[buffer.name, str(buffer.dtype), [*buffer.shape]] for buffer in made.buffers]
    index = len(zlib.compress(json.dumps(entries).encode(), 9))
    names = [*classes, *[[part.homes[0][0], 9999] for part in open_to_sums]]
    return index + len(json.dumps(json.dumps(names)))


def _costs(net: nn.Module, patterns: tuple[str, ...], dtype: Precision | None) -> dict[str, list[int]]:
    """What each further rank of every layer costs, to the last that is worth its bytes.

    Layers are in the model's order; one inside another is a part of that.
    """
    made = plan(net, Learn(rank=dict.fromkeys(patterns, 1) or 1))
    owners: dict[str, list[list[int]]] = {}
    for part in made:
        if part.rank:
            name = part.homes[0][0]
            owner = next((other for other in owners if matches(name, other)), name)
            most = max(1, min(full_rank(part.shape), part.numel // part.learned_numel))
            sizes = [made.bytes_of(replace(part, rank=rank), dtype) for rank in range(1, most + 1)]
            owners.setdefault(owner, []).append(sizes)
    found = {}
    for owner, parts in owners.items():
        whole = [sum(sizes[min(n, len(sizes) - 1)] for sizes in parts) for n in range(max(map(len, parts)))]
        found[owner] = [size - before for size, before in zip(whole, [0, *whole], strict=False)]
    return found
