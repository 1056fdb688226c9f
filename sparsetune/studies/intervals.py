"""How sure a difference is: of test pictures that both sides were judged by, and of seeds."""

from __future__ import annotations

from math import fsum, pi, sqrt, tan
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Scores = NDArray[np.floating]
"""Whether pictures are classified rightly, 1 or 0, or the difference of such; shapes are told where used."""

SURE = 0.95


def packed(right: Tensor) -> str:
    """Write whether each picture is classified rightly, ``(N,)`` bool, as hexadecimal digits."""
    return np.packbits(right.numpy()).tobytes().hex()


def unpacked(text: str, count: int) -> Scores:
    """Read what :func:`packed` wrote of ``count`` pictures: 1 for right, 0 for wrong, ``(count,)``."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=count).astype(np.float32)


def reach(gaps: Scores) -> float | None:
    """Return how far the true difference may be from the mean of ``gaps``, to either side, 95 % sure.

    With other seeds, and with other test pictures, both sides would have come out otherwise; all seeds share
    the pictures, so more seeds do not make up for few pictures. They are crossed random effects, and the
    variance is that of the means over pictures, over their number, and that of the means over seeds, over
    theirs. Both contain what is left of either, which is on the safe side, as few seeds want it. Student's
    t has the degrees of freedom of the sum (Satterthwaite).

    Args:
        gaps: Differences, ``(seeds, pictures)``.

    Returns:
        In the unit of ``gaps``; ``None`` for fewer than two seeds.
    """
    seeds, pictures = gaps.shape
    if seeds < 2:
        return None
    means = [(gaps.mean(1), seeds)] + ([(gaps.mean(0), pictures)] if pictures > 1 else [])
    variances = [(float(each.var(ddof=1)) / count, count - 1) for each, count in means]
    total = sum(variance for variance, _ in variances)
    if total == 0:
        return 0.0
    freedom = total**2 / sum(variance**2 / free for variance, free in variances)
    return student(freedom) * sqrt(total)


def student(freedom: float) -> float:
    """Return the quantile of Student's t that 95 % lie within, to both sides, for whole degrees of freedom.

    Fractions are rounded down. One and two have closed forms; for more it is the expansion around the normal
    quantile (Abramowitz and Stegun 26.7.5), less than 1 % off for three and nothing to speak of for more.
    """
    n, share = max(1, int(freedom)), (1 + SURE) / 2
    if n == 1:
        return tan(pi * (share - 0.5))
    if n == 2:
        return (2 * share - 1) / sqrt(2 * share * (1 - share))
    x = NormalDist().inv_cdf(share)
    terms = (
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
        (79 * x**9 + 776 * x**7 + 1482 * x**5 - 1920 * x**3 - 945 * x) / 92160,
    )
    return x + fsum(term / n**power for power, term in enumerate(terms, 1))
