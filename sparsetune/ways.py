"""Ways to spend a budget on a model's layers: which unit, by which rule, at which depth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from sparsetune.allocation import Rule, Unit, allocate
from sparsetune.learn import Learn
from sparsetune.plan import plan

WAYS: dict[str, tuple[Unit, Rule, int | None]] = {
    "low rank, uniform": ("rank", "number", None),
    "low rank, last third": ("rank", "number", 2),
    "low rank, middle third": ("rank", "number", 1),
    "slices, middle third": ("filters", "fraction", 1),
    "slices, last third": ("filters", "fraction", 2),
    "slices, uniform": ("filters", "fraction", None),
    "slices, first third": ("filters", "fraction", 0),
    "low rank, by signal": ("rank", "signal", None),
    "slices, by signal": ("filters", "signal", None),
}
"""Unit, rule and third of the depth."""
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
    unit, rule, third = WAYS[name]
    base = base or Learn(filters=0)
    layers = [] if third is None else _third(net, base, third)
    if (rule == "signal" and gradients is None) or (third is not None and not layers):
        return None
    return allocate(
        net, nbytes, unit, rule, gradients=gradients, layers=layers, base=base, classes=tuple(classes)
    )


def _third(net: nn.Module, base: Learn, third: int) -> list[str]:
    """Modules of that third of the depth that may get a share, in the model's order."""
    names = [*dict.fromkeys(part.homes[0][0] for part in plan(net, base) if part.layer)]
    return names[len(names) * third // 3 : len(names) * (third + 1) // 3]
