"""What is compared: the methods, each by what differs from the defaults, on which benchmarks, as jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sparsetune.errors import ConfigError, UnknownNameError
from sparsetune.runs import WAYS
from sparsetune.studies.jobs import DEFAULTS, Job, based, check_seeds, in_order, with_tuples
from sparsetune.studies.sources import KNOWN
from sparsetune.studies.store import Settings


@dataclass(frozen=True)
class Family:
    """Methods of one kind, drawn in one colour.

    Attributes:
        title: For people.
        colour: In the drawing.
        rows: Name of a method -> its settings.
    """

    title: str
    colour: str
    rows: dict[str, Settings]


RANKS = (1, 2, 4, 8, 16)
LATE, MIDDLE = ["block2", "block3"], ["block2"]
BLOCKS = (
    [("block1", p) for p in (0.1, 0.25, 1.0)] + [("block2", p) for p in (0.1, 0.25, 0.5)] + [("block3", 0.1)]
)


def _ranks(kind: str, name: str, layers: list[str] | None = None) -> dict[str, Settings]:
    where = {} if layers is None else {"layers": layers}
    return {f"{name} {rank}": {"kind": kind, "rank": rank, **where} for rank in RANKS}


FAMILIES = {
    "head": Family("head alone", "#8a8a8a", {"head": {"kind": "ours", "filters": 0, "norm": False}}),
    "norm": Family("norm and head", "#1b1b1b", {"norm and head": {"kind": "ours", "filters": 0}}),
    "filters": Family(
        "filters of each layer",
        "#5aa0e0",
        {f"{k} filter{'s' * (k > 1)}": {"kind": "ours", "filters": k} for k in (1, 2, 4)},
    ),
    "fraction": Family(
        "a fraction of each layer",
        "#1f5fa8",
        {f"{p:.0%}": {"kind": "ours", "fraction": p} for p in (0.02, 0.05, 0.1, 0.25)},
    ),
    "block": Family(
        "a fraction of one block",
        "#2e8b57",
        {f"{p:.0%} of {block}": {"kind": "ours", "fraction": p, "layers": [block]} for block, p in BLOCKS},
    ),
    "rank": Family("low rank", "#7d3c98", _ranks("ours", "rank")),
    "late": Family("low rank in the later blocks", "#b57edc", _ranks("ours", "late rank", LATE)),
    "middle": Family("low rank in the middle block", "#5b2c6f", _ranks("ours", "middle rank", MIDDLE)),
    "spread": Family("one budget, spread otherwise", "#17a2a2", {}),
    "budget": Family("what --budget chooses", "#e377c2", {}),
    "everything": Family("everything", "#d98200", {"everything": {"kind": "ours", "fraction": 1.0}}),
    "lora": Family("PEFT LoRA", "#c0392b", _ranks("lora", "LoRA")),
    "late-lora": Family("PEFT LoRA in the later blocks", "#ef8a80", _ranks("lora", "late LoRA", LATE)),
    "middle-lora": Family("PEFT LoRA in the middle block", "#7b241c", _ranks("lora", "middle LoRA", MIDDLE)),
}
"""By the name that ``--only`` takes. Sizes are such that ours and PEFT's meet between 40 KB and 2.5 MB with
WRN-28-4, whose three blocks these are; normalisation and head are learned by all but ``head``."""

THEIRS = ("lora", "late-lora", "middle-lora")
WHOLE, CHOSEN, SPREAD = "everything", "budget", "spread"
"""The families that are PEFT's, the one that is no delta of a part but the yardstick of both sides, and the
two that spend the budgets of a benchmark: as ``--budget`` chooses, and the first in each of ``WAYS``."""


def rows_of(family: str, budgets: Sequence[int]) -> dict[str, Settings]:
    """Return the methods of a family by name.

    Args:
        family: A name out of ``FAMILIES``.
        budgets: The bytes that may be spent on this benchmark.
    """
    if family == CHOSEN:
        return {f"budget {n / 1000:,.0f} KB": {"kind": "ours", "budget": n} for n in sorted(budgets)}
    if family == SPREAD:
        return {name: {"kind": "ours", "budget": budgets[0], "spread": name} for name in WAYS}
    return FAMILIES[family].rows


HELD_OUT = 0.2
"""Share of the training pictures on which learning rates are chosen."""

SMALL: Settings = {"model": "wrn28_4", "model_kwargs": {"depth": 10, "width": 2}}
PAPERS: Settings = {"model": "wrn28_4"}


@dataclass(frozen=True)
class Benchmark:
    """One comparison.

    Attributes:
        title: For people.
        settings: Of every training on it; only what differs from the defaults.
        rates: Learning rates that are tried for each method.
        budgets: Bytes that ``--budget`` may spend; the first is spent in every other way too.
        backbone: The training that gives the backbone; ``None`` for random values.
        tuned: Seeds with which learning rates are chosen, each with its own pictures held out; several where
            these are few.
    """

    title: str
    settings: Settings
    rates: tuple[float, ...] = (0.03, 0.1, 0.3)
    budgets: tuple[int, ...] = (160_000, 40_000, 80_000, 320_000, 640_000, 2_500_000)
    backbone: Settings | None = None
    tuned: tuple[int, ...] = (0,)


_SMOKE: Settings = {
    "model": "wrn28_4",
    "model_kwargs": {"depth": 10, "width": 1},
    "data": "digits",
    "train_limit": 120,
    "test_limit": 50,
    "batch_size": 32,
    "epochs": 1,
}
_DIGITS: Settings = {**SMALL, "data": "digits", "epochs": 15, "batch_size": 16}
_SUBSET: Settings = {
    **SMALL,
    "train_limit": 2000,
    "test_limit": 1000,
    "size": 12,
    "batch_size": 12,
    "epochs": 9,
}
_TINY: Settings = {**_SUBSET, "data": "tiny-imagenet", "classes": 10, "test_limit": 500}
_BEFORE: Settings = {**_SUBSET, "fraction": 1.0, "train_limit": 20_000, "batch_size": 64, "epochs": 10}
_WHOLE: Settings = {**PAPERS, "epochs": 10}

PRESETS: dict[str, dict[str, Benchmark]] = {
    "smoke": {
        "random": Benchmark("WRN-10-1, random backbone, digits: does it work?", _SMOKE, (0.1,), (30_000,)),
        "trained": Benchmark(
            "WRN-10-1, backbone trained on digits, digits: does it work?",
            _SMOKE,
            (0.1,),
            (30_000,),
            backbone={**_SMOKE, "fraction": 1.0},
        ),
    },
    "digits": {
        "random": Benchmark(
            "WRN-28-4, random backbone, digits",
            {**PAPERS, "data": "digits", "epochs": 4, "batch_size": 32},
            (0.03, 0.1, 0.3, 1.0),
        )
    },
    "small": {
        name + "-trained" * (backbone is not None): Benchmark(
            f"WRN-10-2, {start}, {what}", settings, backbone=backbone, budgets=(60_000,), tuned=(0, 1, 2)
        )
        for name, what, settings, other in (
            ("digits", "digits", _DIGITS, "tiny-imagenet"),
            ("cifar10", "CIFAR-10 at 12x12", _SUBSET, "tiny-imagenet"),
            ("tiny", "10 classes of Tiny-ImageNet at 12x12", _TINY, "cifar10"),
        )
        for start, backbone in (
            ("random backbone", None),
            (f"backbone trained on {KNOWN[other].title}", {**_BEFORE, "data": other}),
        )
    },
    "full": {
        "random": Benchmark("WRN-28-4, random backbone, CIFAR-10", _WHOLE),
        "trained": Benchmark(
            "WRN-28-4, backbone trained on Tiny-ImageNet, CIFAR-10",
            _WHOLE,
            (0.01, 0.03, 0.1),
            backbone={**PAPERS, "data": "tiny-imagenet", "fraction": 1.0, "size": 32, "epochs": 30},
        ),
    },
}
"""Preset -> name of a benchmark -> the benchmark."""


@dataclass(frozen=True)
class Entry:
    """A method on a benchmark, with a final training for each seed.

    Attributes:
        benchmark: The benchmark's name.
        family: The method's family.
        name: The method's.
        jobs: One a seed.
    """

    benchmark: str
    family: str
    name: str
    jobs: tuple[Job, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Which methods are compared, and where.

    Args:
        preset: A name out of ``PRESETS``.
        only: Families out of ``FAMILIES``; ``None`` for all of them.
        seeds: Each method is trained once with each; a seed gives the order of pictures, the head and, where
            the backbone is random, that.
        digests: Of the data, by name.
        version: Of results; ``None`` for those of before there was one.
        machine: That which takes the times of steps; ``None`` for times of before it was told.

    Raises:
        UnknownNameError: When there is no such preset or family.
        ConfigError: When a seed is no whole number of 0 or more, or is there twice.
    """

    preset: str = "digits"
    only: tuple[str, ...] | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    digests: Mapping[str, str] = field(default_factory=dict)
    version: int | None = None
    machine: str | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise UnknownNameError("preset", self.preset, PRESETS)
        for name in self.only or ():
            if name not in FAMILIES:
                raise UnknownNameError("family of methods", name, FAMILIES)
        ConfigError.collect(check_seeds(self.seeds))

    @property
    def benchmarks(self) -> dict[str, Benchmark]:
        """By name."""
        return PRESETS[self.preset]

    @property
    def entries(self) -> list[Entry]:
        """Every method on every benchmark, in the order in which they are drawn."""
        return [
            Entry(name, family, method, self._trainings(benchmark, settings))
            for name, benchmark in self.benchmarks.items()
            for family in self.only or FAMILIES
            for method, settings in rows_of(family, benchmark.budgets).items()
        ]

    @property
    def groups(self) -> dict[str, list[Job]]:
        """Jobs by benchmark and family, with those that they need."""
        found: dict[str, list[Job]] = {}
        for entry in self.entries:
            found.setdefault(f"{entry.benchmark}: {FAMILIES[entry.family].title}", []).extend(entry.jobs)
        found |= {f"{benchmark}: time of a step": [pace] for benchmark, pace in self.paces.items()}
        return {name: [*in_order(jobs)] for name, jobs in found.items()}

    @property
    def paces(self) -> dict[str, Job]:
        """What takes the time of a step of each method, by benchmark; they need its first trainings."""
        found, entries = {}, self.entries
        for name, benchmark in self.benchmarks.items():
            first = tuple(entry.jobs[0] for entry in entries if entry.benchmark == name)
            own = {"kind": "pace", "of": [job.id for job in first], "machine": self.machine}
            found[name] = Job({**self._based(benchmark.settings), **own}, first)
        return found

    @property
    def jobs(self) -> list[Job]:
        """Every job once, each after those that it needs."""
        return [*in_order([*(job for entry in self.entries for job in entry.jobs), *self.paces.values()])]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Comparison:
        """Rebuild from :meth:`to_json`'s result."""
        return cls(**with_tuples(value))

    def _based(self, settings: Settings) -> Settings:
        return based({**DEFAULTS, **settings}, self.digests, self.version)

    def _trainings(self, benchmark: Benchmark, method: Settings) -> tuple[Job, ...]:
        """The final trainings of a method; they need those that tune its learning rate."""
        common = self._based({**benchmark.settings, **method})
        start: tuple[Job, ...] = ()
        if benchmark.backbone is not None:
            start = (Job(self._based(benchmark.backbone)),)
            common["init_from"] = start[0].id
        tuning = tuple(
            Job({**common, "lr": rate, "held_out": HELD_OUT, "seed": seed}, start)
            for seed in benchmark.tuned
            for rate in benchmark.rates
        )
        found = {**common, "lr": None, "of": [job.id for job in tuning]}
        return tuple(Job({**found, "seed": seed}, (*start, *tuning)) for seed in self.seeds)
