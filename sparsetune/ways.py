"""Ways to spend a budget on a model's layers: which unit, by which rule, at which depth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from sparsetune.allocation import Rule, Unit, allocate
from sparsetune.backbone import origin_of
from sparsetune.learn import Learn
from sparsetune.plan import plan

ALL = (0, 3)
"""All thirds of the depth."""
WAYS: dict[str, tuple[Unit, Rule, tuple[int, int]]] = {
    "low rank, uniform": ("rank", "number", ALL),
    "low rank, last two thirds": ("rank", "number", (1, 3)),
    "low rank, last third": ("rank", "number", (2, 3)),
    "low rank, middle third": ("rank", "number", (1, 2)),
    "slices, middle third": ("filters", "fraction", (1, 2)),
    "slices, last third": ("filters", "fraction", (2, 3)),
    "slices, uniform": ("filters", "fraction", ALL),
    "slices, first third": ("filters", "fraction", (0, 1)),
    "low rank, by signal": ("rank", "signal", ALL),
    "slices, by signal": ("filters", "signal", ALL),
}
"""Unit, rule, and from which third of the depth to which."""
UNIFORM, LATER, MIDDLE = "low rank, uniform", "low rank, last two thirds", "low rank, middle third"


def candidates(net: nn.Module) -> tuple[str, ...]:
    """Return the ways that ``--budget`` chooses among, by their names, the default first.

    That is uniform over a random backbone, whose first layers are worth learning too, the more of them there
    are, and the last two thirds over any other, whose first layers other tasks share. Slices, which start
    faster and end lower than low rank, would mislead short trials, and signal was the best nowhere that it
    was measured.

    Args:
        net: A plain model.
    """
    origin = origin_of(net)
    is_random = origin is not None and origin.backbone.kind == "seed"
    return (UNIFORM, LATER, MIDDLE) if is_random else (LATER, UNIFORM, MIDDLE)


def spend(
    name: str,
    net: nn.Module,
    nbytes: int,
    *,
    gradients: Mapping[str, Tensor] | None = None,
    base: Learn | None = None,
    classes: Iterable[str] = (),
) -> Learn | None:
    """Spend a budget in one of the ways.

    Args:
        name: A key of ``WAYS``.
        net: A plain model.
        nbytes: The most that a float32 delta may take.
        gradients: As for :func:`allocate`.
        base: What is learned beside the layers; ``Learn(filters=0)`` if left out.
        classes: Class names that the file will hold.

    Returns:
        What to learn; ``None`` where the model has no layer at that depth, or gradients are missing.

    Raises:
        ConfigError: As :func:`allocate` does.
    """
    unit, rule, (start, stop) = WAYS[name]
    base = base or Learn(filters=0)
    names = [*dict.fromkeys(part.homes[0][0] for part in plan(net, base) if part.layer)]
    layers = names[len(names) * start // 3 : len(names) * stop // 3]
    if (rule == "signal" and gradients is None) or (names and not layers):
        return None
    if layers == names:
        layers = []
    return allocate(
        net, nbytes, unit, rule, gradients=gradients, layers=layers, base=base, classes=tuple(classes)
    )
