"""``Learn``: the frozen value that says which slices of a model are learned."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from typing import Any, Literal

from sparsetune.errors import ConfigError

Dim = Literal["out", "in", "height", "width"]
Frozen = Literal["random", "zero", "pretrained"]

DIMS: tuple[Dim, ...] = ("out", "in", "height", "width")
FROZEN: tuple[Frozen, ...] = ("random", "zero", "pretrained")


@dataclass(frozen=True, kw_only=True)
class Learn:
    """Which slice of each layer is learned (paper, Section 3); all else stays at the backbone's values.

    A slice is the first ``k`` indices along one dimension of a weight. Instead of slices, low-rank sums can
    be learned: ``W + B @ A`` in place of each layer's frozen weight ``W`` (LoRA, Hu et al., 2021). Exactly
    one of ``fraction``, ``filters`` and ``rank`` says how much.

    Args:
        fraction: ``k = floor(fraction * size)`` of each layer, from 0 to 1; 1 learns layers whole.
        filters: ``k = min(filters, size)`` for every layer; 0 learns no slice at all.
        rank: Rows of ``A`` and columns of ``B``, at least 1; in each layer at most the smaller side of its
            weight as a matrix with a row for each filter. Biases of layers are frozen.
        dim: The sliced dimension: ``out`` (filters), ``in`` (inputs of each filter), ``height`` or ``width``
            (positions inside the kernel). Slices along the last three hold at least one index.
        layers: Module-name patterns (``block3``, ``layer*.0``); a pattern covers everything under the
            modules that it matches. Only layers covered are sliced. ``None``: all of them.
        norm: Learn the affine parameters of normalisation layers. Running statistics always update.
        head: Learn the classifier, whole.
        frozen: What stands in the rest of the sliced layers. ``zero`` sets it to zero (the paper's †);
            ``random`` and ``pretrained`` state what the backbone must be; ``None`` takes it as it is.

    Raises:
        ConfigError: For settings out of range, all problems together.

    Example:
        ``Learn(fraction=0.1)`` is the paper's 10 %; ``Learn(filters=0, head=False)`` is batch-norm only;
        ``Learn(layers=["block3"], fraction=1.0, head=False)`` is a row of its Table 1.
    """

    fraction: float | None = None
    filters: int | None = None
    rank: int | None = None
    dim: Dim = "out"
    layers: tuple[str, ...] | None = None
    norm: bool = True
    head: bool = True
    frozen: Frozen | None = None

    def __post_init__(self) -> None:
        if isinstance(self.layers, list):
            object.__setattr__(self, "layers", tuple(self.layers))
        ConfigError.collect(self._problems())

    def _problems(self) -> list[str]:
        problems = []
        sizes = {"fraction": self.fraction, "filters": self.filters, "rank": self.rank}
        given = [f"{name} {size}" for name, size in sizes.items() if size is not None]
        if len(given) > 1:
            problems.append(f"{' and '.join(given)} each say how much to learn; keep one.")
        if not given:
            problems.append(
                "nothing says how much to learn; give fraction (0.1 is 10 % of each layer), filters or rank."
            )
        if self.fraction is not None and not (_is_number(self.fraction) and 0 <= self.fraction <= 1):
            problems.append(
                f"fraction {self.fraction} is not between 0 and 1; 0.1 learns 10 % of each layer."
            )
        if self.filters is not None and not (_is_count(self.filters) and self.filters >= 0):
            problems.append(f"filters {self.filters} is not a whole number of 0 or more.")
        if self.rank is not None and not (_is_count(self.rank) and self.rank >= 1):
            problems.append(
                f"rank {self.rank} is not a whole number of 1 or more; filters=0 learns no layer."
            )
        if self.rank is not None and self.dim != "out":
            problems.append(f"dim '{self.dim}' is of slices, and a rank has none; leave dim out.")
        if self.rank is not None and self.frozen == "zero":
            problems.append("frozen 'zero' leaves nothing that a rank could add to; use fraction or filters.")
        if self.dim not in DIMS:
            problems.append(f"dim '{self.dim}' is not one of {', '.join(DIMS)}.")
        if self.frozen is not None and self.frozen not in FROZEN:
            problems.append(f"frozen '{self.frozen}' is not one of {', '.join(FROZEN)}.")
        if self.layers is not None and not _is_patterns(self.layers):
            problems.append(
                f"layers {self.layers!r} is not a list of module-name patterns such as ['block3']."
            )
        return problems

    def size(self, whole: int) -> int:
        """Return ``k``, the number of learned indices along a dimension of ``whole`` indices.

        The fraction is read as the decimal that was written, so 0.29 of 100 is 29 although the binary
        product is just below.
        """
        if self.filters is not None:
            return min(self.filters, whole)
        wanted = int(Fraction(repr(float(self.fraction or 0))) * whole)
        at_least = 1 if self.dim != "out" and self.fraction else 0
        return max(wanted, at_least)

    @property
    def everything(self) -> bool:
        """Whether all layers are learned whole."""
        return self.layers is None and self.fraction == 1

    @property
    def amount(self) -> str:
        """How much of each layer is learned, in words: ``fraction 0.1``, ``2 filters`` or ``rank 4``."""
        if self.rank is not None:
            return f"rank {self.rank}"
        return f"fraction {self.fraction:g}" if self.fraction is not None else f"{self.filters} filters"

    def describe(self) -> str:
        """Return a few plain words, such as ``fraction 0.1 along out, norm, head``."""
        words = [self.amount if self.rank is not None else f"{self.amount} along {self.dim}"]
        words += [f"layers {' '.join(self.layers)}"] if self.layers else []
        words += ["norm" if self.norm else "no norm", "head" if self.head else "no head"]
        words += [f"frozen {self.frozen}"] if self.frozen else []
        return ", ".join(words)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values; ``rank`` only where there is one."""
        values = asdict(self)
        if self.rank is None:
            del values["rank"]
        values["layers"] = None if self.layers is None else list(self.layers)
        return values

    @classmethod
    def from_json(cls, value: Any) -> Learn:
        """Rebuild from :meth:`to_json`'s result.

        Raises:
            ConfigError: When ``value`` is not such a result.
        """
        known = {field.name for field in fields(cls)}
        if not isinstance(value, dict) or not set(value) <= known:
            raise ConfigError(
                f"learn spec {value!r} is not a mapping with keys among {', '.join(sorted(known))}."
            )
        flags = [name for name in ("norm", "head") if not isinstance(value.get(name, True), bool)]
        if flags:
            raise ConfigError(f"learn spec has {flags[0]} = {value[flags[0]]!r}; expected true or false.")
        return cls(**value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_patterns(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(item, str) and item for item in value)
