"""The stable generator: (seed, tensor name, shape, law) to the same float32 bytes on every machine.

Raw integers come from Philox, which NumPy keeps stable for ever, keyed by a hash of version, seed and name.
Each value takes 16 bits of them and looks up one of the law's 65,536 quantiles, at (i + 1/2) / 65536. The
quantiles come from + - * / and square root of IEEE doubles in a fixed order, and from ``decimal``, whose
results a specification fixes; the ``log`` or ``cos`` of a library differs in the last bits from CPU to CPU.

So a normal law's values lie within 4.33 standard deviations, and their variance is 2e-5 too small.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from functools import lru_cache
from hashlib import sha256
from math import inf, isfinite, isnan
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparsetune.backbone.source import GENERATOR_VERSION
from sparsetune.errors import ConfigError
from sparsetune.host import DIGITS

Floats = NDArray[np.float64]

_LEVELS = 65_536
_CHUNK = 8_192
"""64-bit words drawn at a time: they, their values and the table stay in a core's cache."""

_FAR = 12
"""Standard deviations beyond which a normal law holds no mass (2e-33)."""

_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")
_LN2_HIGH, _LN2_LOW = 0.693147180369123816490, 1.90821492927058770002e-10
_SQRT_HALF = 0.70710678118654752440

# Wichura (1988), algorithm AS 241, PPND16: numerators and denominators, highest power first.
_CENTRE = (
    "2509.0809287301226727 33430.575583588128105 67265.770927008700853 45921.953931549871457"
    " 13731.693765509461125 1971.5909503065514427 133.14166789178437745 3.387132872796366608",
    "5226.495278852854561 28729.085735721942674 39307.89580009271061 21213.794301586595867"
    " 5394.1960214247511077 687.1870074920579083 42.313330701600911252 1",
)
_TAIL = (
    "7.7454501427834140764e-4 0.0227238449892691845833 0.24178072517745061177 1.27045825245236838258"
    " 3.64784832476320460504 5.7694972214606914055 4.6303378461565452959 1.42343711074968357734",
    "1.05075007164441684324e-9 5.475938084995344946e-4 0.0151986665636164571966 0.14810397642748007459"
    " 0.68976733498510000455 1.6763848301838038494 2.05319162663775882187 1",
)
_FAR_TAIL = (
    "2.01033439929228813265e-7 2.71155556874348757815e-5 0.0012426609473880784386 0.026532189526576123093"
    " 0.29656057182850489123 1.7848265399172913358 5.4637849111641143699 6.6579046435011037772",
    "2.04426310338993978564e-15 1.4215117583164458887e-7 1.8463183175100546818e-5 7.868691311456132591e-4"
    " 0.0148753612908506148525 0.13692988092273580531 0.59983220655588793769 1",
)


@dataclass(frozen=True)
class Law:
    """How the values of one tensor are distributed.

    Attributes:
        kind: ``uniform``, ``normal``, or ``trunc_normal``: normal, given that the value is within bounds.
        a: Lowest value of ``uniform``; otherwise the mean (of the normal before truncation).
        b: Highest value of ``uniform``; otherwise the standard deviation (of the normal before truncation).
        low: Lower bound of ``trunc_normal``.
        high: Upper bound of ``trunc_normal``.

    Raises:
        ConfigError: When no distribution has these numbers.
    """

    kind: Literal["uniform", "normal", "trunc_normal"]
    a: float
    b: float
    low: float = -inf
    high: float = inf

    def __post_init__(self) -> None:
        if self.kind not in ("uniform", "normal", "trunc_normal"):
            raise ConfigError(f"law {self.kind!r} is unknown; use uniform, normal or trunc_normal.")
        finite = isfinite(self.a) and isfinite(self.b)
        if not finite or (self.b < self.a if self.kind == "uniform" else self.b < 0):
            raise ConfigError(
                f"law {self} is impossible; give finite numbers, uniform's low <= high, and std >= 0."
            )
        if isnan(self.low) or isnan(self.high):
            raise ConfigError(f"law {self} has a bound that is not a number; give low < high.")
        bounded = (self.low, self.high) != (-inf, inf)
        if bounded and (self.kind != "trunc_normal" or self.b == 0 or self.low >= self.high):
            raise ConfigError(f"law {self} has wrong bounds; only trunc_normal has any: low < high, std > 0.")


def draw(seed: int, name: str, shape: Sequence[int], law: Law) -> Tensor:
    """Draw one tensor; equal arguments give equal bytes everywhere.

    Value ``j`` (row by row) depends on ``seed``, ``name``, ``law`` and ``j`` only: a smaller tensor is the
    beginning of a larger one, and other tensors do not matter.

    Args:
        seed: Any whole number >= 0.
        name: The tensor's name; each name has its own stream.
        shape: The tensor's shape.
        law: How values are distributed.

    Returns:
        A float32 tensor on the CPU.

    Raises:
        ConfigError: When ``seed`` is no whole number >= 0, or the law's bounds hold no mass.
    """
    values = torch.empty(tuple(shape), dtype=torch.float32, device="cpu")
    draw_(values, seed, name, law)
    return values


def draw_(values: Tensor, seed: int, name: str, law: Law) -> None:
    """Fill a contiguous float32 tensor on the CPU with what :func:`draw` gives for its shape.

    Raises:
        ConfigError: As :func:`draw` does.
    """
    flat = values.view(-1).numpy()
    stream, standard = _stream(seed, name), _standard(law)
    small = flat.size < _LEVELS
    table = standard if small else _scaled(law, standard)
    taken = np.empty(flat.size) if small else flat
    for start in range(0, flat.size, 4 * _CHUNK):
        chunk = taken[start : start + 4 * _CHUNK]
        words = stream.random_raw(-(-chunk.size // 4)).astype("<u8", copy=False)
        np.take(table, words.view("<u2")[: chunk.size], out=chunk, mode="wrap")
    if small:
        flat[:] = _scaled(law, taken)


def draw_signs(seed: int, name: str, count: int) -> Tensor:
    """Draw 1 or -1, the same everywhere: int8 of shape ``(count,)``, from a bit each."""
    words = _stream(seed, name).random_raw(-(-count // 64)).astype("<u8", copy=False)
    drawn = np.unpackbits(words.view(np.uint8), count=count, bitorder="little").view(np.int8)
    return torch.from_numpy(np.subtract(1, 2 * drawn, dtype=np.int8))


def draw_below(seed: int, name: str, count: int, limit: int) -> Tensor:
    """Draw whole numbers from 0 to ``limit`` - 1, the same everywhere: int64 of shape ``(count,)``."""
    words = _stream(seed, name).random_raw(count).astype("<u8", copy=False)
    return torch.from_numpy((words % np.uint64(limit)).astype(np.int64))


@lru_cache(maxsize=16)
def normal_quantiles(low: float = -inf, high: float = inf) -> Floats:
    """Return the 65,536 quantiles, at midpoints, of the standard normal law within ``low`` and ``high``.

    Opposite bounds give an exactly antisymmetric table. The result is cached and cannot be written.

    Raises:
        ConfigError: When the bounds hold no mass.
    """
    with localcontext(Context(prec=80, rounding=ROUND_HALF_EVEN, traps=[])):
        below, up_to = _phi(low), _phi(high)
        mass, above = float(up_to - below), float(1 - up_to)
    if not mass > 0:
        raise ConfigError(f"a normal law holds nothing from {low} to {high} std; widen the bounds.")
    middle = _midpoints()
    lower, upper = float(below) + mass * middle, above + mass * middle[::-1]
    table = np.clip(_quantile(lower, upper), low, high)
    table.flags.writeable = False
    return table


def check_seed(seed: int) -> int:
    """Return ``seed``.

    Raises:
        ConfigError: When it is no whole number >= 0, or has more digits than a file may hold.
    """
    if type(seed) is not int or not 0 <= seed < 10**DIGITS:
        raise ConfigError(f"seed {reprlib.repr(seed)} is not a whole number >= 0; give one, such as 0.")
    return seed


def _stream(seed: int, name: str) -> np.random.Philox:
    check_seed(seed)
    digest = sha256(f"sparsetune\0{GENERATOR_VERSION}\0{seed}\0{name}".encode()).digest()
    return np.random.Philox(key=np.frombuffer(digest[:16], "<u8").astype(np.uint64))


def _standard(law: Law) -> Floats:
    """The quantiles of ``law`` before :func:`_scaled`."""
    if law.kind == "uniform":
        return _midpoints()
    if law.kind == "normal" or law.b == 0:
        return normal_quantiles()
    return normal_quantiles((law.low - law.a) / law.b, (law.high - law.a) / law.b)


def _scaled(law: Law, values: Floats) -> NDArray[np.float32]:
    """Shift + scale * values in float64, within bounds, rounded once to float32."""
    scale = law.b - law.a if law.kind == "uniform" else law.b
    scaled = values * scale
    scaled += law.a
    if law.kind == "trunc_normal":
        np.clip(scaled, law.low, law.high, out=scaled)
    return scaled.astype(np.float32)


@lru_cache(maxsize=1)
def _midpoints() -> Floats:
    table = (np.arange(_LEVELS) + 0.5) / _LEVELS
    table.flags.writeable = False
    return table


def _phi(x: float) -> Decimal:
    """Probability that a standard normal value is below ``x``; the caller sets the precision.

    1/2 + density(x) * (x + x^3/3 + x^5/(3*5) + ...).
    """
    if abs(x) >= _FAR:
        return Decimal(int(x > 0))
    exact = Decimal(x)
    square = exact * exact
    term = total = exact
    odd = 1
    while total + term != total:
        odd += 2
        term = term * square / odd
        total += term
    return Decimal("0.5") + total * (-square / 2).exp() / (2 * _PI).sqrt()


def _quantile(lower: Floats, upper: Floats) -> Floats:
    """Standard normal values with probability ``lower`` below and ``upper`` above, which sum to 1."""
    centre = (lower - upper) / 2
    square = 0.180625 - centre * centre
    near = centre * _ratio(_CENTRE, square)
    root = np.sqrt(-_log(np.minimum(lower, upper)))
    far = np.where(root <= 5, _ratio(_TAIL, root - 1.6), _ratio(_FAR_TAIL, root - 5))
    return np.where(np.abs(centre) <= 0.425, near, np.where(centre < 0, -far, far))


def _ratio(polynomials: tuple[str, str], x: Floats) -> Floats:
    top, bottom = (_polynomial(map(float, text.split()), x) for text in polynomials)
    return top / bottom


def _polynomial(coefficients: Iterable[float], x: Floats) -> Floats:
    """Horner's scheme, highest power first."""
    total = np.zeros_like(x)
    for coefficient in coefficients:
        total = total * x + coefficient
    return total


def _log(x: Floats) -> Floats:
    """Natural logarithm: exponent * ln 2 + 2 * atanh((m - 1) / (m + 1)), m within a factor sqrt(2) of 1."""
    mantissa, exponent = np.frexp(x)
    small = mantissa < _SQRT_HALF
    mantissa = np.where(small, 2 * mantissa, mantissa)
    power = (exponent - small).astype(np.float64)
    s = (mantissa - 1) / (mantissa + 1)
    series = _polynomial((1 / odd for odd in range(25, 0, -2)), s * s)
    low: Floats = power * _LN2_LOW + 2 * s * series
    return power * _LN2_HIGH + low
