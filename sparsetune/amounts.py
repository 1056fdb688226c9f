"""How much of a layer is learned: one amount for all, or amounts by module-name pattern."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

Pairs = tuple[tuple[str, float], ...]
ByName = Mapping[str, float] | Pairs
"""Numbers by module-name pattern; inside a ``Learn`` they are pairs, in their order."""

MOST = 4096
"""Patterns of one ``Learn`` at most; a file may be a stranger's."""
SHOWN = 3
"""Patterns that a description spells out."""


def matches(name: str, pattern: str) -> bool:
    """Whether ``pattern`` matches the module ``name`` or one that it lies under."""
    if not any(sign in pattern for sign in "*?["):
        return name == pattern or name.startswith(pattern + ".")
    pieces = name.split(".")
    return any(fnmatchcase(".".join(pieces[:i]), pattern) for i in range(1, len(pieces) + 1))


def first_match(pairs: Pairs, name: str) -> float | None:
    """Return the number of the first pattern that covers the module ``name``."""
    return next((number for pattern, number in pairs if matches(name, pattern)), None)


def frozen_pairs(value: Any) -> Any:
    """Return a mapping as pairs, and anything else as it is."""
    return tuple(value.items()) if isinstance(value, Mapping) else value


def pairs_from_json(value: Any) -> Any:
    """Return a list of two-item lists as pairs, and anything else as it is."""
    if isinstance(value, list) and all(isinstance(item, list) and len(item) == 2 for item in value):
        return tuple((pattern, number) for pattern, number in value)
    return value


def pair_problems(kind: str, pairs: tuple[Any, ...]) -> list[str]:
    """Say what is wrong with the form of amounts by pattern; their numbers are not looked at."""
    formed = all(isinstance(item, tuple) and len(item) == 2 for item in pairs)
    names = [item[0] for item in pairs] if formed else []
    if not names or not all(isinstance(name, str) and name for name in names):
        return [
            f"{kind} {reprlib.repr(pairs)} does not give numbers by module name; write {{'block3': 2}}, or "
            "one number for all layers."
        ]
    if len(names) > MOST:
        return [
            f"{kind} names {len(names)} patterns; {MOST} are the most, so let patterns cover several layers."
        ]
    twice = [name for name, count in Counter(names).items() if count > 1]
    return [f"{kind} names '{shown(twice[0])}' twice; keep one."] if twice else []


def shown(value: object) -> str:
    """Return a value for a sentence: in one printable piece, whatever a stranger wrote."""
    text = str(value)
    return text if text.isprintable() and len(text) <= 60 else reprlib.repr(value)


def amount_words(kind: str, amount: Any) -> str:
    """Return an amount in words: ``fraction 0.1``, ``2 filters``, ``rank 8 in block1, 2 in block3``."""
    if not isinstance(amount, tuple):
        return _words(kind, amount)
    (pattern, number), *others = amount
    said = [f"{_words(kind, number)} in {pattern}"]
    said += [f"{number:g} in {pattern}" for pattern, number in others[: SHOWN - 1]]
    left = len(amount) - SHOWN
    return ", ".join([*said, f"and so on for {left} more patterns"] if left > 0 else said)


def _words(kind: str, number: float) -> str:
    return f"{number:g} filters" if kind == "filters" else f"{kind} {number:g}"
