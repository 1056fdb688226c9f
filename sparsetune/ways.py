"""Ways to spend a budget on a model's layers: a low-rank sum of one rank, in which part of the depth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from sparsetune.allocation import RESERVE, allocate
from sparsetune.backbone import origin_of
from sparsetune.learn import Learn
from sparsetune.plan import plan
from sparsetune.precision import Precision

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
