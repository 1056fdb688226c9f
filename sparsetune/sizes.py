"""A size such as ``200KB`` in bytes."""

from __future__ import annotations

import re

from sparsetune.errors import ConfigError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def bytes_from(text: str) -> int:
    """Read a size: a number with B, KB, MB, GB (of 1,000) or KiB, MiB, GiB (of 1,024) behind it, or bytes.

    Raises:
        ConfigError: When ``text`` is not one, or less than a byte.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?) ?((?:[KMG]I?)?B|)", text.strip().upper(), re.ASCII)
    size = int(float(match[1]) * UNITS[match[2]]) if match else 0
    if size < 1:
        raise ConfigError(f"size '{text}' is not a number with KB, MB, KiB or MiB behind it, such as 200KB.")
    return size
