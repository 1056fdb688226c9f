"""The standard error of a difference of accuracies, where the same seeds are judged by the same pictures."""

from __future__ import annotations

from math import sqrt

import numpy as np
from numpy.typing import NDArray


def difference_error(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    """Return the standard error of the difference of two accuracies, over seeds and pictures both.

    With other seeds, and with other test pictures, both would have come out otherwise; all seeds share the
    pictures, so more seeds do not make up for few pictures. Seeds and pictures are crossed random effects:
    the variance of the means over pictures, and that of the means over seeds, each over their number, less
    the rest that both contain.

    Args:
        one: Whether a method classifies a picture rightly, ``(seeds, pictures)``.
        other: Of the other method, with the same seeds and pictures.

    Returns:
        The error, in the unit of a share; ``nan`` for fewer than two pictures.
    """
    gaps = one.astype(np.float64) - other.astype(np.float64)
    seeds, pictures = gaps.shape
    if pictures < 2:
        return float("nan")
    by_picture = gaps.mean(0)
    variance = by_picture.var(ddof=1) / pictures
    if seeds > 1:
        by_seed = gaps.mean(1)
        rest = gaps - by_picture - by_seed[:, None] + gaps.mean()
        within = (rest**2).sum() / ((seeds - 1) * (pictures - 1))
        variance += max(0.0, by_seed.var(ddof=1) / seeds - within / (seeds * pictures))
    return sqrt(variance)
