"""Counts, sizes, durations and errors, in words; sizes and durations from words."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from math import isfinite
from typing import Any

from sparsetune.errors import ConfigError

BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}
DIGITS = 300
"""Most digits of a whole number in a stranger's JSON: any such fits a float, and takes no time to read."""
UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What no text of a stranger may hold: control characters, line ends, reversed writing, half characters."""


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


def listed(names: Sequence[str], before_more: str = " and ") -> str:
    """Return the first three names with commas, and how many more there are."""
    more = f"{before_more}{len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def reason(error: BaseException, most: int | None = 200) -> str:
    """Return what a library says went wrong, on one printable line without a full stop, for parentheses.

    Args:
        error: What it raised; the name of its class stands for one that says nothing.
        most: Characters that are kept; ``None`` for all.
    """
    return shown(error, most).rstrip(".") or type(error).__name__


def shown(value: object, most: int | None = 200) -> str:
    """Return a value of a stranger as it may stand in a message: on one printable line, and not too long."""
    return UNSHOWN.sub("?", " ".join(str(value).split()))[:most]


def json_from(text: str | bytes) -> Any:
    """Read a stranger's JSON: its numbers are finite, and short enough to compute with, and its text is text.

    Raises:
        ValueError: When it is not such JSON, or nested too deep to be read.
    """
    try:
        value = json.loads(text, parse_constant=_finite, parse_float=_finite, parse_int=_whole)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if b"\\ud" in (text.encode() if isinstance(text, str) else text).lower():
        json.dumps(value, ensure_ascii=False).encode()  # which half characters cannot be
    return value


def _finite(text: str) -> float:
    if not isfinite(float(text)):
        raise ValueError(f"{text[:20]} is not a finite number")
    return float(text)


def _whole(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"{text[:10]}… has {len(text)} digits")
    return int(text)


def bytes_from(text: str) -> int:
    """Read a size: a number with B, KB, MB, GB (of 1,000) or KiB, MiB, GiB (of 1,024) behind it, or bytes.

    Raises:
        ConfigError: When ``text`` is not one, or less than a byte.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?) ?((?:[KMG]I?)?B|)", text.strip().upper(), re.ASCII)
    size = int(float(match[1]) * BYTES[match[2]]) if match else 0
    if size < 1:
        raise ConfigError(f"size '{text}' is not a number with KB, MB, KiB or MiB behind it, such as 200KB.")
    return size


def seconds_from(text: str) -> float:
    """Read a duration: a number with ``s``, ``m`` or ``h`` behind it; a bare number is seconds.

    Raises:
        ConfigError: When ``text`` is not one.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip(), re.ASCII)
    if match is None:
        raise ConfigError(f"duration '{text}' is not a number with s, m or h behind it, such as 90s or 9m.")
    return float(match[1]) * SECONDS[match[2]]
