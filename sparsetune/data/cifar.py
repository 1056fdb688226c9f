"""CIFAR-10 and CIFAR-100 as their authors publish them, through torchvision."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from sparsetune.data.images import ArrayImages
from sparsetune.data.splits import Split, Splits
from sparsetune.errors import DataError

NAMES = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}


def read(name: str, cache: Path) -> Splits:
    """Read one of the two sets, downloading it on first use; torchvision checks each file's MD5.

    Args:
        name: ``cifar10`` or ``cifar100``.
        cache: The folder that keeps the download.

    Raises:
        DataError: When it is not there and cannot be downloaded.
    """
    from torchvision import datasets

    kind = getattr(datasets, NAMES[name])
    try:
        with redirect_stdout(sys.stderr):
            parts = [kind(cache, train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(
            f"{name} is not in {str(cache)!r} and cannot be downloaded ({reason}); "
            f"connect to the network, or put {kind.filename} there."
        ) from error
    train, test = (_split(part) for part in parts)
    return Splits(train, test, tuple(parts[0].classes))


def _split(part: Any) -> Split:
    return Split.whole(ArrayImages(np.ascontiguousarray(part.data)), np.asarray(part.targets))
