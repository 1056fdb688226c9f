"""What becomes of the law that random values follow when torch computes with them."""

from __future__ import annotations

import math
import operator
from statistics import NormalDist
from typing import Any

from sparsetune.seeding import Law

_ARITHMETIC = {"mul": operator.mul, "div": operator.truediv, "add": operator.add, "sub": operator.sub}
_SQRT_HALF = math.sqrt(0.5)
_UNCLAMPED = "erfinv_ of a uniform draw, without the clamp_ that ends a truncated normal draw"


def after(name: str, law: Law, why: str, *numbers: Any) -> tuple[Law, str] | None:
    """Return law and reservation of the values of ``law`` after one more operation, ``None`` if it has none.

    Args:
        name: The operation's name in torch, without the underscore that says in place.
        law: What the values follow.
        why: Why the law cannot be used yet; empty if it can.
        *numbers: The operation's other operands.
    """
    if not all(isinstance(number, (int, float)) for number in numbers):
        return None
    if name == "erfinv" and law.kind == "uniform" and -1 <= law.a < law.b <= 1:
        inverse = NormalDist(0, _SQRT_HALF).inv_cdf
        ends = (math.copysign(math.inf, x) if abs(x) == 1 else inverse((x + 1) / 2) for x in (law.a, law.b))
        return Law("trunc_normal", 0.0, _SQRT_HALF, *ends), _UNCLAMPED
    if name == "clamp" and why == _UNCLAMPED and len(numbers) == 2:
        below = NormalDist(law.a, law.b).cdf
        near = all(abs(below(x) - below(y)) < 1e-9 for x, y in zip(numbers, (law.low, law.high), strict=True))
        return (Law(law.kind, law.a, law.b, *map(float, numbers)), "") if near else None
    if name in ("neg", "rsub"):
        law, name, numbers = _arithmetic("mul", law, -1), "add", numbers or (0,)
    if name not in _ARITHMETIC or len(numbers) != 1 or (name in ("mul", "div") and not numbers[0]):
        return None
    return _arithmetic(name, law, *numbers), why


def _arithmetic(name: str, law: Law, number: float) -> Law:
    a, b, low, high = (_ARITHMETIC[name](value, number) for value in (law.a, law.b, law.low, law.high))
    if law.kind == "uniform":
        return Law("uniform", min(a, b), max(a, b))
    std = abs(b) if name in ("mul", "div") else law.b
    if (name, law.b) == ("mul", _SQRT_HALF):
        std = float(f"{std:.15g}")  # of a truncated normal draw, which multiplies by std * sqrt(2)
    return Law(law.kind, a, std, min(low, high), max(low, high))
