"""Ways to spend a budget on a model's layers: which unit, by which rule, at which depth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from sparsetune.allocation import Rule, Unit, allocate
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
CANDIDATES = (*WAYS,)[:5]
"""What ``--budget`` chooses among: those that were as good as the best somewhere; the default first."""
DEFAULT = CANDIDATES[0]


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
    unit, rule, thirds = WAYS[name]
    base = base or Learn(filters=0)
    layers = [] if thirds == ALL else _layers(net, base, *thirds)
    if (rule == "signal" and gradients is None) or (thirds != ALL and not layers):
        return None
    return allocate(
        net, nbytes, unit, rule, gradients=gradients, layers=layers, base=base, classes=tuple(classes)
    )


def _layers(net: nn.Module, base: Learn, start: int, stop: int) -> list[str]:
    """Modules of these thirds of the depth that may get a share, in the model's order."""
    names = [*dict.fromkeys(part.homes[0][0] for part in plan(net, base) if part.layer)]
    return names[len(names) * start // 3 : len(names) * stop // 3]
