"""A duration such as ``9m`` in seconds."""

from __future__ import annotations

import re

from sparsetune.errors import ConfigError

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


def seconds_from(text: str) -> float:
    """Read a duration: a number with ``s``, ``m`` or ``h`` behind it; a bare number is seconds.

    Raises:
        ConfigError: When ``text`` is not one.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip(), re.ASCII)
    if match is None:
        raise ConfigError(f"duration '{text}' is not a number with s, m or h behind it, such as 90s or 9m.")
    return float(match[1]) * UNITS[match[2]]
