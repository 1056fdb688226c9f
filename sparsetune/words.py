"""Counts and sizes in words."""

from __future__ import annotations


def size(count: float) -> str:
    """Return a number of bytes as text in B, KiB, MiB or GiB."""
    for unit, digits in (("B", 0), ("KiB", 1), ("MiB", 2)):
        if count < 1024:
            return f"{count:.{digits}f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def share(part: int, whole: int) -> str:
    """Return how many values of how many, and their share, as text."""
    return f"{part:,} of {whole:,} values ({part / max(whole, 1):.1%})"
