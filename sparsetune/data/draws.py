"""Random integers that depend on their name alone: no global state, the same for ever and everywhere."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray


def draws(count: int, *name: str | int) -> NDArray[np.uint64]:
    """Draw ``count`` integers from the Philox stream whose key is a hash of ``name``.

    Element ``i`` does not depend on ``count``. NumPy keeps these raw integers stable across releases.

    Args:
        count: How many integers.
        *name: What the stream is for, for example ``("order", seed, epoch)``.

    Returns:
        Uniform uint64 of shape (count,).
    """
    key = blake2b("/".join(map(str, name)).encode(), digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)


def shuffled(count: int, *name: str | int) -> NDArray[np.int64]:
    """Give the numbers from 0 to ``count - 1`` in the order that ``name`` fixes."""
    return np.argsort(draws(count, *name), kind="stable")
