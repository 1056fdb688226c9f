"""How sure a difference is, with other seeds and other test pictures, and what that decides."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum, inf, pi, sqrt, tan
from statistics import NormalDist, fmean
from typing import Any, Literal

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


@dataclass(frozen=True, eq=False)
class Measured:
    """An accuracy in percent, or what is computed from several, by seed and test picture.

    Attributes:
        by_seed: Seed -> its value for each test picture, ``(pictures,)``, or for all of them, ``(1,)``.
    """

    by_seed: Mapping[int, Scores]

    @property
    def mean(self) -> float:
        """Over pictures and seeds."""
        return fmean(float(value.mean()) for value in self.by_seed.values())

    @property
    def reach(self) -> float | None:
        """How far the truth may be from the mean, to either side; see :func:`reach`."""
        values = [*self.by_seed.values()]
        if len({len(value) for value in values}) > 1:
            values = [value.mean(keepdims=True) for value in values]
        return reach(np.stack(values).astype(np.float64))

    @property
    def low(self) -> float:
        """What the truth is hardly below; with a single seed anything may be."""
        return self.mean - (inf if self.reach is None else self.reach)

    @property
    def high(self) -> float:
        """What it is hardly above."""
        return self.mean + (inf if self.reach is None else self.reach)

    def combined(self, other: Measured | float, act: Callable[[Scores, Any], Scores]) -> Measured:
        """Compute something of two, picture by picture, for the seeds that both have."""
        if not isinstance(other, Measured):
            return Measured({seed: act(value, other) for seed, value in self.by_seed.items()})
        both = {}
        for seed in self.by_seed.keys() & other.by_seed.keys():
            one, two = self.by_seed[seed], other.by_seed[seed]
            if len(one) != len(two):
                one, two = one.mean(keepdims=True), two.mean(keepdims=True)
            both[seed] = act(one, two)
        return Measured(both)

    def __add__(self, other: Measured | float) -> Measured:
        return self.combined(other, operator.add)

    __radd__ = __add__

    def __sub__(self, other: Measured | float) -> Measured:
        return self.combined(other, operator.sub)

    def __rsub__(self, other: float) -> Measured:
        return other + -1 * self

    def __mul__(self, factor: float) -> Measured:
        return self.combined(factor, operator.mul)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Measured:
        return self * (1 / divisor)

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if self.reach is None else f"{self.mean:.1f} ± {self.reach:.1f}"


def average(values: Iterable[Measured]) -> Measured:
    """Return the mean of several."""
    first, *rest = values
    return sum(rest, first) / (1 + len(rest))


def seed_by_seed(act: Callable[..., float], *values: Measured) -> Measured:
    """Compute, for each seed that all have, a number from their means that no sum of pictures gives."""
    seeds = set.intersection(*({*value.by_seed} for value in values))
    given = {seed: [float(value.by_seed[seed].mean()) for value in values] for seed in seeds}
    return Measured({seed: np.array([act(*means)]) for seed, means in given.items()})


@dataclass(frozen=True)
class Evidence:
    """What a rule looks at.

    Attributes:
        margins: Differences in percent points, of which the claim says that each is above zero.
        said: The numbers, for people.
        needed: How many of them have to be; all if left out.
    """

    margins: Sequence[Measured]
    said: str
    needed: int | None = None


Mark = Literal["holds", "does not", "too close to tell", "not run"]


@dataclass(frozen=True)
class Verdict:
    """What became of a claim.

    Attributes:
        mark: In a word.
        said: The numbers that say so.
        margin: That on which it hangs, in percent points, with how far the truth may be from it, 95 % sure.
        seeds: With how many seeds it was decided.
    """

    mark: Mark
    said: str = ""
    margin: str = ""
    seeds: int = 0


def judge(evidence: Evidence) -> Verdict:
    """Decide a claim.

    It holds where so many margins as are needed are above zero by more than chance, with other seeds and
    other test pictures, would explain; it does not where too many are as surely below. One seed says nothing
    of others, so it leaves every claim open.
    """
    margins = evidence.margins
    if not all(each.by_seed for each in margins):
        return Verdict("not run")
    needed = evidence.needed or len(margins)
    enough = sorted(margins, key=lambda each: each.low)[-needed]
    too_many = sorted(margins, key=lambda each: each.high)[len(margins) - needed]
    mark: Mark = "too close to tell"
    deciding = sorted(margins, key=lambda each: each.mean)[-needed]
    if enough.low > 0:
        mark, deciding = "holds", enough
    elif too_many.high < 0:
        mark, deciding = "does not", too_many
    return Verdict(mark, evidence.said, str(deciding), min(len(each.by_seed) for each in margins))
