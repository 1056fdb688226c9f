"""``Learn``: the frozen value that says which part of each layer is learned, as one amount or by layer."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any, Literal

from sparsetune.errors import ConfigError
from sparsetune.spec.option import option, options_of, shown

Pairs = tuple[tuple[str, float], ...]
ByName = Mapping[str, float] | Pairs
"""Numbers by module-name pattern; inside a ``Learn`` they are pairs, in their order."""

MOST = 4096
"""Patterns of one ``Learn`` at most; a file may be a stranger's."""
SHOWN = 3
"""Patterns that a description spells out."""


def matches(name: str, pattern: str) -> bool:
    """Whether ``pattern`` matches the module ``name`` or one that it lies under."""
    if not any(sign in pattern for sign in "*?["):
        return name == pattern or name.startswith(pattern + ".")
    pieces = name.split(".")
    return any(fnmatchcase(".".join(pieces[:i]), pattern) for i in range(1, len(pieces) + 1))


def first_match(pairs: Pairs, name: str) -> float | None:
    """Return the number of the first pattern that covers the module ``name``."""
    return next((number for pattern, number in pairs if matches(name, pattern)), None)


def frozen_pairs(value: Any) -> Any:
    """Return a mapping as pairs, and anything else as it is."""
    return tuple(value.items()) if isinstance(value, Mapping) else value


def pairs_from_json(value: Any) -> Any:
    """Return a list of two-item lists as pairs, and anything else as it is."""
    if isinstance(value, list) and all(isinstance(item, list) and len(item) == 2 for item in value):
        return tuple((pattern, number) for pattern, number in value)
    return value


def pair_problems(kind: str, pairs: tuple[Any, ...]) -> list[str]:
    """Say what is wrong with the form of amounts by pattern; their numbers are not looked at."""
    formed = all(isinstance(item, tuple) and len(item) == 2 for item in pairs)
    names = [item[0] for item in pairs] if formed else []
    if not names or not all(isinstance(name, str) and name for name in names):
        return [
            f"{kind} {reprlib.repr(pairs)} does not give numbers by module name; write {{'block3': 2}}, or "
            "one number for all layers."
        ]
    if len(names) > MOST:
        return [
            f"{kind} names {len(names)} patterns; {MOST} are the most, so let patterns cover several layers."
        ]
    twice = [name for name, count in Counter(names).items() if count > 1]
    return [f"{kind} names '{shown(twice[0])}' twice; keep one."] if twice else []


def amount_words(kind: str, amount: Any) -> str:
    """Return an amount in words: ``fraction 0.1``, ``2 filters``, ``rank 8 in block1, 2 in block3``."""
    if not isinstance(amount, tuple):
        return _words(kind, amount)
    (pattern, number), *others = amount
    said = [f"{_words(kind, number)} in {pattern}"]
    said += [f"{number:g} in {pattern}" for pattern, number in others[: SHOWN - 1]]
    left = len(amount) - SHOWN
    return ", ".join([*said, f"and so on for {left} more patterns"] if left > 0 else said)


def _words(kind: str, number: float) -> str:
    return f"{number:g} filters" if kind == "filters" else f"{kind} {number:g}"


Dim = Literal["out", "in", "height", "width"]
Frozen = Literal["random", "zero", "pretrained"]
NormStats = Literal["frozen", "updated"]

DIMS: tuple[Dim, ...] = ("out", "in", "height", "width")
FROZEN: tuple[Frozen, ...] = ("random", "zero", "pretrained")
NORM_STATS: tuple[NormStats, ...] = ("frozen", "updated")
KINDS = ("fraction", "filters", "rank", "dimensions")
"""What an amount may be an amount of."""
SLICES = ("fraction", "filters")
"""Those that are of slices."""
ADDED = {"rank": "a rank", "dimensions": "a vector"}
"""Those of what is added to a frozen weight, and what they are amounts of."""
USUAL = {"fraction": 0.1}
"""How much ``sparsetune fit`` learns where nothing says it."""


@dataclass(frozen=True, kw_only=True)
class Learn:
    """Which slice of each layer is learned (paper, Section 3); all else stays at the backbone's values.

    A slice is the first ``k`` indices along one dimension of a weight. Instead of slices, low-rank sums can
    be learned: ``W + B @ A`` in place of each layer's frozen weight ``W`` (LoRA, Hu et al., 2021). Or a short
    vector, spread over the weights: each is moved by one of its values, with a sign, and a seed says by which
    (a random subspace of so many dimensions; Li et al., 2018).

    Exactly one of ``fraction``, ``filters``, ``rank`` and ``dimensions`` says how much, as one number for all
    layers. Or each of them is a mapping from module-name pattern to number, such as
    ``rank={"block1": 8, "block3.*": 2}``: in each the first pattern that covers a layer counts, a layer that
    none covers is frozen, and a layer may be covered in one of them only. They are kept as tuples of pairs.

    Args:
        fraction: ``k = floor(fraction * size)`` of each layer, from 0 to 1; 1 learns layers whole.
        filters: ``k = min(filters, size)`` for every layer; 0 learns no slice at all.
        rank: Rows of ``A`` and columns of ``B``, at least 1; in each layer at most the smaller side of its
            weight as a matrix with a row for each filter. Biases of layers are frozen.
        dimensions: Length of the vector, at least 1. One number is of all layers together, and is shared out
            evenly; a classifier that is not learned whole takes part. By layer it is that layer's own.
            Biases of layers are frozen.
        dim: The sliced dimension: ``out`` (filters), ``in`` (inputs of each filter), ``height`` or ``width``
            (positions inside the kernel). Slices along the last three hold at least one index.
        layers: Beside one number, module-name patterns (``block3``, ``layer*.0``); a pattern covers all that
            is under the modules that it matches. Only layers covered are sliced. ``None``: all of them.
        norm: Learn the affine parameters of normalisation layers.
        head: Learn the classifier, whole.
        frozen: What stands in the rest of the sliced layers. ``zero`` sets it to zero (the paper's †);
            ``random`` and ``pretrained`` state what the backbone must be; ``None`` takes it as it is.
        norm_stats: What running statistics of batch normalisation do while the model trains. ``frozen``:
            they stay at the backbone's and normalise training batches too, and no file holds them.
            ``updated``: they follow the batches, and are saved. ``None`` is ``updated``, but that ``fit``
            leaves those of a trained backbone as they are.
        projection_seed: Which random subspace ``dimensions`` are of.
        depthwise_sums: Whether ``rank`` is also of depthwise convolutions, as it was in files of format 3 and
            4; they are frozen otherwise.

    Raises:
        ConfigError: For settings out of range, all problems together.

    Example:
        ``Learn(fraction=0.1)`` is the paper's 10 %; ``Learn(filters=0, head=False)`` is batch-norm only;
        ``Learn(layers=["block3"], fraction=1.0, head=False)`` is a row of its Table 1.
    """

    fraction: float | ByName | None = field(
        default=None,
        metadata=option(
            "Learn this fraction of each layer's filters; 0.1 is 10 %.",
            kind=float,
            least=0,
            most=1,
            remedy="0.1 learns 10 % of each layer",
        ),
    )
    filters: int | ByName | None = field(
        default=None,
        metadata=option("Learn this many filters of each layer instead.", kind=int, least=0),
    )
    rank: int | ByName | None = field(
        default=None,
        metadata=option(
            "Learn a low-rank sum over each layer's frozen weight instead.",
            kind=int,
            least=1,
            remedy="filters=0 learns no layer",
            late=True,
        ),
    )
    dimensions: int | ByName | None = field(
        default=None,
        metadata=option(
            "Learn a vector of this length, spread over the weights of all layers, instead.",
            kind=int,
            least=1,
            remedy="filters=0 learns no layer",
            late=True,
        ),
    )
    dim: Dim = field(
        default="out",
        metadata=option("Sliced dimension: out (filters), in, height or width.", choices=DIMS),
    )
    layers: tuple[str, ...] | None = field(
        default=None,
        metadata=option(
            "Slice only layers under modules of this name or pattern; may be repeated.", kind=list[str]
        ),
    )
    norm: bool = field(default=True, metadata=option("Learn normalisation's scale and shift."))
    head: bool = field(default=True, metadata=option("Learn the classifier."))
    frozen: Frozen | None = field(
        default=None,
        metadata=option(
            "What the rest of sliced layers must be: random, zero or pretrained.", kind=str, choices=FROZEN
        ),
    )
    norm_stats: NormStats | None = field(
        default=None,
        metadata=option(
            "Running statistics of normalisation: frozen at the backbone's, or updated. "
            "If left out, frozen over trained weights.",
            kind=str,
            choices=NORM_STATS,
            late=True,
        ),
    )

    projection_seed: int = field(
        default=0, metadata=option("Seed of the random subspace of --dimensions.", least=0, late=True)
    )
    depthwise_sums: bool = field(default=False, compare=False, metadata=option())

    def __post_init__(self) -> None:
        if isinstance(self.layers, list):
            object.__setattr__(self, "layers", tuple(self.layers))
        for kind, amount in self.amounts.items():
            object.__setattr__(self, kind, frozen_pairs(amount))
        ConfigError.collect(self._problems())

    @property
    def amounts(self) -> dict[str, Any]:
        """The given ones among ``KINDS``, by that name."""
        given = {kind: getattr(self, kind) for kind in KINDS}
        return {kind: amount for kind, amount in given.items() if amount is not None}

    @property
    def by_layer(self) -> bool:
        """Whether amounts are given by module-name pattern."""
        return any(isinstance(amount, tuple) for amount in self.amounts.values())

    def _problems(self) -> Iterator[str]:
        given = self.amounts
        if len(given) > 1 and not all(isinstance(amount, tuple) for amount in given.values()):
            said = [f"{kind} {'by layer' if isinstance(n, tuple) else shown(n)}" for kind, n in given.items()]
            yield f"{' and '.join(said)} each say how much to learn; keep one."
        if not given:
            remedy = "give fraction (0.1 is 10 % of each layer), filters, rank or dimensions"
            yield f"nothing says how much to learn; {remedy}."
        for kind, amount in given.items():
            wrong = pair_problems(kind, amount) if isinstance(amount, tuple) else []
            yield from wrong or _out_of_range(kind, amount)
        if self.by_layer and self.layers is not None:
            named = reprlib.repr(self.layers)
            yield f"layers {named} and amounts by layer both name layers; leave layers out."
        others = [word for kind, word in ADDED.items() if kind in given]
        if others and len(others) == len(given) and self.dim != "out":
            yield f"dim '{shown(self.dim)}' is of slices, and {others[0]} has none; leave dim out."
        if others and self.frozen == "zero":
            yield f"frozen 'zero' leaves nothing that {others[0]} could add to; use fraction or filters."
        for name in ("dim", "frozen", "norm_stats", "projection_seed"):
            value = getattr(self, name)
            if reason := OPTIONS[name].wrong(value):
                yield f"{name} '{shown(value)}' {reason}"
        if self.layers is not None and not _is_patterns(self.layers):
            named = reprlib.repr(self.layers)
            yield f"layers {named} is not a list of module-name patterns such as ['block3']."
        elif self.layers is not None and len(self.layers) > MOST:
            yield (
                f"layers names {len(self.layers)} patterns; {MOST} are the most, so let patterns cover "
                "several layers."
            )

    @property
    def head_alone(self) -> bool:
        """Whether nothing but the classifier is learned."""
        return self.head and not self.norm and not any(self.amounts.values())

    @property
    def patterns(self) -> tuple[str, ...]:
        """Every module-name pattern, each once."""
        named = [pattern for amount in self.amounts.values() if self.by_layer for pattern, _ in amount]
        return tuple(dict.fromkeys([*(self.layers or ()), *named]))

    def at(self, name: str) -> Learn | None:
        """Return the spec, with one number, that counts for the layer of that module name.

        Returns:
            ``None`` where no pattern covers it, so that it is frozen.

        Raises:
            ConfigError: When patterns of two amounts cover it.
        """
        if not self.by_layer:
            covered = self.layers is None or any(matches(name, pattern) for pattern in self.layers)
            return self if covered else None
        found = {kind: first_match(amount, name) for kind, amount in self.amounts.items()}
        found = {kind: number for kind, number in found.items() if number is not None}
        if len(found) > 1:
            said = " and ".join(amount_words(kind, number) for kind, number in found.items())
            raise ConfigError(f"patterns give layer '{name}' {said}; let one amount alone cover it.")
        dim: Dim = self.dim if {*found} & {*SLICES} else "out"
        amounts: dict[str, Any] = {**dict.fromkeys(KINDS), **found}
        return replace(self, dim=dim, **amounts) if found else None

    def size(self, whole: int) -> int:
        """Return ``k``, the number of learned indices along a dimension of ``whole`` indices.

        The fraction is read as the decimal that was written, so 0.29 of 100 is 29 although the binary
        product is just below. Of amounts by layer, :meth:`at` gives those of one.
        """
        if isinstance(self.filters, int):
            return min(self.filters, whole)
        fraction = self.fraction if isinstance(self.fraction, (int, float)) else 0
        wanted = int(Fraction(repr(float(fraction))) * whole)
        at_least = 1 if self.dim != "out" and self.fraction else 0
        return max(wanted, at_least)

    @property
    def everything(self) -> bool:
        """Whether all layers are learned whole."""
        return self.layers is None and self.fraction == 1

    @property
    def amount(self) -> str:
        """How much of each layer is learned, in words: ``fraction 0.1``, ``2 filters`` or ``rank 4``."""
        return "; ".join(amount_words(kind, amount) for kind, amount in self.amounts.items())

    def describe(self) -> str:
        """Return a few plain words, such as ``fraction 0.1 along out, norm, head``."""
        sliced = not {*self.amounts}.isdisjoint(SLICES)
        along = f"{'; slices' if self.by_layer else ''} along {self.dim}" if sliced else ""
        words = [self.amount + along]
        words += [f"layers {' '.join(self.layers)}"] if self.layers else []
        words += ["norm" if self.norm else "no norm", "head" if self.head else "no head"]
        words += [f"frozen {self.frozen}"] if self.frozen else []
        words += ["frozen statistics"] if self.norm_stats == "frozen" else []
        return ", ".join(words)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values; those that came late only where they are given.

        Amounts by layer are a list of ``[pattern, number]``: their order counts, and that of an object's keys
        would not survive a writer that sorts them.
        """
        values = {k: v for k, v in asdict(self).items() if not (OPTIONS[k].late and v == OPTIONS[k].default)}
        if self.rank is None or self.depthwise_sums:
            del values["depthwise_sums"]
        for kind, amount in self.amounts.items():
            values[kind] = [list(pair) for pair in amount] if isinstance(amount, tuple) else amount
        values["layers"] = None if self.layers is None else list(self.layers)
        return values

    @classmethod
    def from_json(cls, value: Any) -> Learn:
        """Rebuild from :meth:`to_json`'s result.

        Raises:
            ConfigError: When ``value`` is not such a result.
        """
        if not isinstance(value, dict) or not value.keys() <= OPTIONS.keys():
            raise ConfigError(
                f"learn spec {reprlib.repr(value)} is not a mapping with keys among "
                f"{', '.join(sorted(OPTIONS))}."
            )
        for name, item in value.items():
            if OPTIONS[name].kind is bool and not isinstance(item, bool):
                raise ConfigError(f"learn spec has {name} = {reprlib.repr(item)}; expected true or false.")
        amounts = {kind: pairs_from_json(value[kind]) for kind in KINDS if kind in value}
        wrong = next((kind for kind, amount in amounts.items() if isinstance(amount, (list, dict))), None)
        if wrong:
            said = reprlib.repr(value[wrong])
            raise ConfigError(f"learn spec has {wrong} = {said}; expected a number, or pattern-number pairs.")
        before = {"depthwise_sums": True} if "rank" in value else {}
        return cls(**{**before, **value, **amounts})


OPTIONS = options_of(Learn)
"""What is said of each field."""


def _out_of_range(kind: str, amount: Any) -> Iterator[str]:
    for pattern, number in amount if isinstance(amount, tuple) else [(None, amount)]:
        if reason := OPTIONS[kind].wrong(number):
            where = "" if pattern is None else f" in '{shown(pattern)}'"
            yield f"{kind} {shown(number)}{where} {reason}"


def _is_patterns(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(item, str) and item for item in value)
