"""A budget of bytes, spent on a model's layers one rank at a time: on which of them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from typing import Any, Literal, get_args
import torch
from torch import Tensor, nn
from sparsetune.spec import matches
from sparsetune.errors import ConfigError
from sparsetune.spec import Learn
from sparsetune.parts import Part, full_rank
from sparsetune.parts import Plan, plan
from sparsetune.parts import Precision
from collections.abc import Iterable
from dataclasses import replace
from torch import nn
from sparsetune.backbone import origin_of
from sparsetune.parts import plan


Unit = Literal["filters", "rank"]
Rule = Literal["number", "fraction", "bytes", "signal"]
RULES: tuple[Rule, ...] = get_args(Rule)

RESERVE = 2200
"""Bytes of a file kept for what it says of itself, but for its index, learn spec and class names."""


@dataclass(frozen=True)
class _Layer:
    """A layer that may get units.

    Attributes:
        name: Its module's name.
        costs: Bytes of its first ``i + 1`` units.
        gains: What each unit is worth, where that is known.
    """

    name: str
    costs: tuple[int, ...]
    gains: tuple[float, ...]

    def cost(self, have: int) -> int:
        """Bytes of the next unit, when it has so many."""
        return self.costs[have] - (self.costs[have - 1] if have else 0)

    def priority(self, have: int, rule: Rule) -> float:
        """How much that unit is wanted."""
        if rule == "signal":
            return self.gains[have] / max(self.cost(have), 1)
        wanted = {"number": have + 1, "fraction": (have + 1) / len(self.costs), "bytes": self.costs[have]}
        return -float(wanted[rule])


def allocate(
    net: nn.Module,
    nbytes: int,
    unit: Unit = "rank",
    rule: Rule = "number",
    *,
    gradients: Mapping[str, Tensor] | None = None,
    layers: Iterable[str] = (),
    base: Learn | None = None,
    classes: Iterable[str] = (),
    dtype: Precision | None = None,
    reserve: int = RESERVE,
) -> Learn:
    """Spend a budget on a model: what it always needs first, then units of its layers until nothing fits.

    A unit is one more filter of a layer, or one more rank of its low-rank sum. By ``number`` each layer has
    as many units as any other until it is full, by ``fraction`` the same share of its own, by ``bytes`` units
    of the same size together. By ``signal`` the next unit goes where it gains most for each byte: the
    squared norm of a filter's gradient, or the next squared singular value of the weight's gradient as a
    matrix with a row for each filter.

    Args:
        net: A plain model; its tensors are not read.
        nbytes: The most that the delta may take, all that it says of itself included.
        unit: What is spent on: ``filters`` or ``rank``.
        rule: Which layer gets the next one.
        gradients: For ``signal``: the gradient of each weight by its name, of the weight's shape.
        layers: Module-name patterns of the layers that may get any; all if empty.
        base: What is learned beside the layers; ``Learn(filters=0)`` if left out.
        classes: Class names that the file will hold.
        dtype: As the delta will be saved; ``None`` for all bits.
        reserve: Bytes for what the file says of itself, but for its index, learn spec and class names.

    Returns:
        A spec by layer, or of one number where all layers have the same. Normalisation's scale and shift are
        frozen in it where they do not fit.

    Raises:
        ConfigError: When running statistics and head alone are more than ``nbytes``, or ``rule`` has no
            gradients to go by.
        UnknownNameError: When a pattern matches no layer.
    """
    if rule == "signal" and gradients is None:
        raise ConfigError(
            "rule 'signal' needs gradients; pass those of mean_gradients in sparsetune.gradients."
        )
    base, left = _affordable(net, nbytes, base or Learn(filters=0), tuple(classes), dtype, reserve)
    found = _layers(net, unit, tuple(layers), gradients or {}, dtype)
    have = dict.fromkeys((layer.name for layer in found), 0)
    heap = [(-layer.priority(0, rule), i, layer) for i, layer in enumerate(found)]
    heapify(heap)
    while heap:
        _, i, layer = heappop(heap)
        cost = layer.cost(have[layer.name])
        if cost > left:
            continue
        left -= cost
        have[layer.name] += 1
        if have[layer.name] < len(layer.costs):
            heappush(heap, (-layer.priority(have[layer.name], rule), i, layer))
    return _spec(base, unit, {name: count for name, count in have.items() if count}, len(have), bool(layers))


def _spec(base: Learn, unit: Unit, have: dict[str, int], count: int, some: bool) -> Learn:
    if not have:
        return base
    alike = len(have) == count and len({*have.values()}) == 1 and not some
    amount = next(iter(have.values())) if alike else tuple(have.items())
    amounts: dict[str, Any] = {"filters": None, unit: amount}
    return replace(base, **amounts)


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
    parts = [part for part in made if part.learned or part.layer]
    entries = [[f"{part.name}_{end}", "float32", [*part.shape]] for part in parts for end in "AB"]
    entries += [[buffer.name, str(buffer.dtype), [*buffer.shape]] for buffer in made.buffers]
    index = len(zlib.compress(json.dumps(entries).encode(), 9))
    names = [*classes, *[[part.homes[0][0], 9999] for part in parts if part.layer]]
    return index + len(json.dumps(json.dumps(names)))


def _layers(
    net: nn.Module,
    unit: Unit,
    patterns: tuple[str, ...],
    gradients: Mapping[str, Tensor],
    dtype: Precision | None,
) -> list[_Layer]:
    """Every layer that may get units, in the model's order; one inside another is a part of that."""
    once, twice = (plan(net, _units(unit, patterns, count)) for count in (1, 2))
    owners: dict[str, list[tuple[Part, list[int]]]] = {}
    for one, two in zip(once, twice, strict=True):
        if one.layer and one.learned:
            name = one.homes[0][0]
            owner = next((other for other in owners if matches(name, other)), name)
            first, second = once.bytes_of(one, dtype), twice.bytes_of(two, dtype)
            costs = [first + (second - first) * n for n in range(_most(one))]
            owners.setdefault(owner, []).append((one, costs))
    found = []
    for name, parts in owners.items():
        most = max(len(costs) for _, costs in parts)
        gains = [_gains(one, gradients[one.name]) for one, _ in parts if one.name in gradients]
        costs = _together([costs for _, costs in parts], most)
        found.append(_Layer(name, tuple(costs), tuple(_summed(gains, most))))
    return found


def _units(unit: Unit, patterns: tuple[str, ...], count: int) -> Learn:
    amounts: dict[str, Any] = {unit: dict.fromkeys(patterns, count) or count}
    return Learn(**amounts)


def _most(one: Part) -> int:
    """Of a part with one unit: how many it can have, to the last that is worth its bytes."""
    if one.rank:
        return max(1, min(full_rank(one.shape), one.numel // one.learned_numel))
    return 1 if one.whole else one.size


def _gains(part: Part, gradient: Tensor) -> list[float]:
    matrix = gradient.double().movedim(part.dim, 0).flatten(int(gradient.dim() > 1))
    if part.rank:
        matrix = matrix if len(matrix) <= matrix.shape[1] else matrix.t()
        values: list[float] = torch.linalg.eigvalsh(matrix @ matrix.t()).flip(0).clamp(min=0).tolist()
        return values
    rows: list[float] = matrix.square().view(len(matrix), -1).sum(1).tolist()
    return [sum(rows)] if part.whole else rows


def _together(costs: list[list[int]], most: int) -> list[int]:
    """Of parts that get their units together; a part that is full costs no more."""
    return [sum(part[min(n, len(part) - 1)] for part in costs) for n in range(most)]


def _summed(gains: list[list[float]], most: int) -> list[float]:
    return [sum(part[n] for part in gains if n < len(part)) for n in range(most)]


UNIFORM, LATER, MIDDLE = "low rank, uniform", "low rank, last two thirds", "low rank, middle third"
WAYS = {UNIFORM: (0, 3), LATER: (1, 3), "low rank, last third": (2, 3), MIDDLE: (1, 2)}
"""From which third of the depth to which. Slices, and where the gradient gains most a byte, were measured too
and were the best nowhere."""
ROOM = 2
"""Rank in every layer that a budget must have room for to be spent on all of a random backbone's."""


def is_random(net: nn.Module) -> bool:
    """Whether a plain model stands on a backbone that is rebuilt from a seed."""
    origin = origin_of(net)
    return origin is not None and origin.backbone.kind == "seed"


def candidates(
    net: nn.Module,
    nbytes: int,
    *,
    base: Learn | None = None,
    classes: Iterable[str] = (),
    dtype: Precision | None = None,
    reserve: int = RESERVE,
) -> dict[str, Learn]:
    """Spend a budget in each of the ways that ``--budget`` chooses among.

    Over a random backbone that is every layer first, and then the last two thirds of the depth; where there
    is no room for a rank of two in every layer, the middle third alone, as the paper found a middle block to
    be the better one to learn. Over any other backbone the last two thirds are first, as tasks share a
    network's first layers.

    Args:
        net: A plain model.
        nbytes: The most that the delta may take.
        base: As for :func:`spend`.
        classes: Likewise.
        dtype: Likewise.
        reserve: Likewise.

    Returns:
        What to learn by the way's name, the default first; none twice.

    Raises:
        ConfigError: As :func:`allocate` does.
    """
    base = base or Learn(filters=0)
    names: tuple[str, ...] = (LATER, UNIFORM)
    if is_random(net):
        least = plan(net, replace(base, filters=None, rank=ROOM)).bytes_in(dtype)
        names = (UNIFORM, LATER) if least <= nbytes else (MIDDLE,)
    found: dict[Learn, str] = {}
    for name in names:
        learn = spend(name, net, nbytes, base=base, classes=classes, dtype=dtype, reserve=reserve)
        found.setdefault(learn or base, name)
    return {name: learn for learn, name in found.items()}


def spend(
    name: str,
    net: nn.Module,
    nbytes: int,
    *,
    base: Learn | None = None,
    classes: Iterable[str] = (),
    dtype: Precision | None = None,
    reserve: int = RESERVE,
) -> Learn | None:
    """Spend a budget in one of the ways.

    Args:
        name: A key of ``WAYS``.
        net: A plain model.
        nbytes: The most that the delta may take.
        base: What is learned beside the layers; ``Learn(filters=0)`` if left out.
        classes: Class names that the file will hold.
        dtype: As the delta will be saved; ``None`` for all bits.
        reserve: As for :func:`allocate`.

    Returns:
        What to learn; ``None`` where the model has no layer at that depth.

    Raises:
        ConfigError: As :func:`allocate` does.
    """
    start, stop = WAYS[name]
    base = base or Learn(filters=0)
    names = [*dict.fromkeys(part.homes[0][0] for part in plan(net, base) if part.layer)]
    layers = names[len(names) * start // 3 : len(names) * stop // 3]
    if names and not layers:
        return None
    some = [] if layers == names else layers
    return allocate(net, nbytes, layers=some, base=base, classes=tuple(classes), dtype=dtype, reserve=reserve)
