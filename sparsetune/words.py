"""Counts, sizes and names in words."""

from __future__ import annotations

from collections.abc import Sequence


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


def duration(seconds: float) -> str:
    """Say how long, such as ``40 s``, ``12 min`` or ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def listed(names: Sequence[str], most: int = 3) -> str:
    """Return the first names with commas, and how many others there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
