"""What of the comparison is run: its jobs, each after those that it needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sparsetune.comparison.methods import FAMILIES, rows_of
from sparsetune.comparison.presets import HELD_OUT, PRESETS, Ground
from sparsetune.errors import ConfigError, UnknownNameError
from sparsetune.reproduce.jobs import DEFAULTS, Job, Settings, based, check_seeds, in_order


@dataclass(frozen=True)
class Entry:
    """A method on a ground, with a final training for each seed.

    Attributes:
        ground: The ground's name.
        family: The method's family.
        name: The method's.
        jobs: One a seed.
    """

    ground: str
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
    def grounds(self) -> dict[str, Ground]:
        """By name."""
        return PRESETS[self.preset]

    @property
    def entries(self) -> list[Entry]:
        """Every method on every ground, in the order in which they are drawn."""
        return [*self._entries()]

    @property
    def groups(self) -> dict[str, list[Job]]:
        """Jobs by ground and family, with those that they need."""
        found: dict[str, list[Job]] = {}
        for entry in self.entries:
            found.setdefault(f"{entry.ground}: {FAMILIES[entry.family].title}", []).extend(entry.jobs)
        found |= {f"{ground}: time of a step": [pace] for ground, pace in self.paces.items()}
        return {name: [*in_order(jobs)] for name, jobs in found.items()}

    @property
    def paces(self) -> dict[str, Job]:
        """What takes the time of a step of each method, by ground; they need the first seed's trainings."""
        found, entries = {}, self.entries
        for name, ground in self.grounds.items():
            first = tuple(entry.jobs[0] for entry in entries if entry.ground == name)
            own = {"kind": "pace", "of": [job.id for job in first], "machine": self.machine}
            found[name] = Job({**self._based(ground.settings), **own}, first)
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
        lists = {name: tuple(value[name]) for name in ("only", "seeds") if value.get(name)}
        return cls(**{**value, **lists})

    def _based(self, settings: Settings) -> Settings:
        return based({**DEFAULTS, **settings}, self.digests, self.version)

    def _entries(self) -> Iterator[Entry]:
        for name, ground in self.grounds.items():
            for family in self.only or FAMILIES:
                for method, settings in rows_of(family, ground.budgets).items():
                    yield Entry(name, family, method, self._trainings(ground, settings))

    def _trainings(self, ground: Ground, method: Settings) -> tuple[Job, ...]:
        """The final trainings of a method; they need those that tune its learning rate."""
        common = self._based({**ground.settings, **method})
        start: tuple[Job, ...] = ()
        if ground.backbone is not None:
            start = (Job(self._based(ground.backbone)),)
            common["init_from"] = start[0].id
        tuning = tuple(
            Job({**common, "lr": rate, "held_out": HELD_OUT, "seed": seed}, start)
            for seed in ground.tuned
            for rate in ground.rates
        )
        found = {**common, "lr": None, "of": [job.id for job in tuning]}
        return tuple(Job({**found, "seed": seed}, (*start, *tuning)) for seed in self.seeds)
