"""Choosing on some seeds and test pictures and judging on the others, and how far the outcome may be off.

Of many methods that differ by noise alone the best looks better than it is where it was chosen; the more
there are, the more. So nothing is judged by a seed or a picture that chose it.
"""

from __future__ import annotations

from itertools import product
from math import fsum, pi, sqrt, tan
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating]
"""Whether a picture is classified rightly, ``(methods, seeds, pictures)``; where no more is known, the share
of all as that of one picture."""

SURE = 0.95


def chances(scores: Scores) -> Scores:
    """Return each method's mean where it may be chosen, for each part to judge: ``(parts, methods)``."""
    return np.stack([scores[:, seeds, pictures].mean((1, 2)) for (seeds, pictures), _ in _parts(scores)])


def judged(scores: Scores, picks: NDArray[np.integer]) -> Scores:
    """Return what was chosen for each part, there, ``(seeds, pictures)``.

    Args:
        scores: Of all methods.
        picks: The number of the method that was chosen for each part, by :func:`chances`.
    """
    found = np.empty(scores.shape[1:])
    for (_, part), pick in zip(_parts(scores), picks, strict=True):
        found[part] = scores[pick][part]
    return found


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


Part = tuple[slice, slice]


def _parts(scores: Scores) -> list[tuple[Part, Part]]:
    """Where a method is chosen, and where it is then judged: other seeds, and other pictures.

    Every seed and picture is judged once. A single one of either both chooses and judges.
    """
    _, seeds, pictures = scores.shape
    return [
        ((chosen, some), (judge, other))
        for (chosen, judge), (some, other) in product(_halves(seeds), _halves(pictures))
    ]


def _halves(count: int) -> list[tuple[slice, slice]]:
    even, odd = slice(0, None, 2), slice(1, None, 2)
    return [(odd, even), (even, odd)] if count > 1 else [(slice(None), slice(None))]
