"""Which of the paper's rows are wanted, and what was found for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, stdev
from typing import Any

import numpy as np

from sparsetune.errors import ConfigError, UnknownNameError
from sparsetune.studies.intervals import Measured, Scores, Verdict, unpacked
from sparsetune.studies.jobs import Job, based, check_seeds, in_order, job, with_tuples
from sparsetune.studies.paper.experiments import BEYOND, EVERY, EXPERIMENTS, NAMES, Experiment
from sparsetune.studies.sources import KNOWN, class_count
from sparsetune.studies.store import Row, Settings

_TWENTY: Settings = {
    "data": "tiny-imagenet",
    "classes": 20,
    "size": 32,
    "train_limit": 10_000,
    "test_limit": 1_000,
}
SHORT = ("table1", "fig1", "fig3", "fig2", "table4", "fig4")
LONG = ("table2", "fig5", "table3", "fig6")


@dataclass(frozen=True)
class Preset:
    """A named selection.

    Attributes:
        experiments: Ids, in the order in which they are run.
        about: What stands for the paper's models and data, in a sentence; empty where they are its own.
        changes: Settings in place of the paper's.
        epochs: At most so many for each training.
        instead: By the name and the paper's value of a setting: those that stand for it.
        titles: What those stand-ins are called, by the paper's name.
        decides: Whether the claims are decided by its results.
    """

    experiments: tuple[str, ...]
    about: str = ""
    changes: Settings = field(default_factory=dict)
    epochs: int | None = None
    instead: Mapping[str, Mapping[Any, Settings]] = field(default_factory=dict)
    titles: Mapping[str, str] = field(default_factory=dict)
    decides: bool = True


PRESETS = {
    "smoke": Preset(
        SHORT + LONG,
        "All ran on a few small digits, to show that it works; accuracies say nothing about the paper.",
        {"data": "digits", "train_limit": 128, "test_limit": 100},
        epochs=1,
        decides=False,
    ),
    "laptop": Preset(
        (*SHORT, *LONG, *BEYOND),
        "Smaller networks stand for the paper's, with the same structure: WRN-16-1 for WRN-28-4, WRN-10-2 "
        "for WRN-28-10, DenseNet-BC-16-12 for densenet (BC-100-12), VGG-19 with a quarter of its filters. "
        "They learn 10,000 pictures of CIFAR-10 in batches of 32; the first 20 classes of Tiny-ImageNet, at "
        "32x32, stand for CIFAR-100 and for Tiny-ImageNet. An eleventh experiment is ours.",
        {"val_share": 0.02},
        instead={
            "model": {
                "wrn28_4": {"model_kwargs": {"depth": 16, "width": 1}},
                "wrn28_10": {"model_kwargs": {"depth": 10, "width": 2, "drop_rate": 0.3}},
                "densenet100_12": {"model_kwargs": {"depth": 16}},
                "vgg19_cifar": {"model_kwargs": {"width": 0.25}},
                "vgg19_bn_cifar": {"model_kwargs": {"width": 0.25}},
            },
            "data": {
                "cifar10": {"train_limit": 10_000, "test_limit": 5_000},
                "cifar100": _TWENTY,
                "tiny-imagenet": _TWENTY,
            },
            "epochs": {
                1: {"epochs": 2},
                10: {"epochs": 8},
                45: {"epochs": 9, "decay_milestones": [3, 6]},
                200: {"epochs": 10, "decay_milestones": [3, 6, 8]},
                300: {"epochs": 10, "decay_milestones": [5, 8]},
            },
            "batch_size": {128: {"batch_size": 32}, 64: {"batch_size": 32}},
            "lr": {0.1: {"lr": 0.05}},
        },
        titles={
            "wrn28_4": "WRN-16-1",
            "wrn28_10": "WRN-10-2",
            "densenet100_12": "DenseNet-16",
            "vgg19_bn_cifar": "VGG-19/4 with BN",
            "vgg19_cifar": "VGG-19/4 without BN",
            "cifar100": "Tiny-ImageNet-20",
            "tiny-imagenet": "Tiny-ImageNet-20",
        },
    ),
    "short": Preset(SHORT),
    "full": Preset(SHORT + LONG),
}


def _with(experiment: str) -> str:
    """The largest preset that has an experiment."""
    return [name for name, preset in PRESETS.items() if experiment in preset.experiments][-1]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which experiments are run, and how they differ from the paper's.

    Args:
        preset: A name out of ``PRESETS``.
        only: Experiments out of the preset's; ``None`` for all of them.
        seeds: Each training is run once with each; a seed gives the random weights and the order of pictures.
        epochs: At most so many for each training.
        train_limit: Use so many training pictures.
        test_limit: Likewise for test pictures.
        digests: Of the data, by name.
        version: Of results; ``None`` for those of before there was one.

    Raises:
        UnknownNameError: When there is no such preset or experiment.
        ConfigError: When a number is out of range, or an experiment is not the preset's.
    """

    preset: str = "short"
    only: tuple[str, ...] | None = None
    seeds: tuple[int, ...] = (0,)
    epochs: int | None = None
    train_limit: int | None = None
    test_limit: int | None = None
    digests: Mapping[str, str] = field(default_factory=dict)
    version: int | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise UnknownNameError("preset", self.preset, PRESETS)
        for name in self.only or ():
            if name not in EVERY:
                raise UnknownNameError("experiment", name, EVERY)
        problems = [
            f"{name} is not in preset {self.preset}; choose --preset {_with(name)}."
            for name in dict.fromkeys(self.only or ())
            if name not in PRESETS[self.preset].experiments
        ]
        for name in ("epochs", "train_limit", "test_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                problems.append(f"{name} {value!r} is not a whole number of 1 or more.")
        ConfigError.collect([*problems, *check_seeds(self.seeds)])

    @property
    def experiments(self) -> list[Experiment]:
        """Those that are run, in that order."""
        chosen = self.only or PRESETS[self.preset].experiments
        return [EVERY[name] for name in PRESETS[self.preset].experiments if name in chosen]

    def adjusted(self, settings: Settings) -> Settings:
        """Return the settings that are run in place of the paper's ``settings``."""
        preset = PRESETS[self.preset]
        limits = {"train_limit": self.train_limit, "test_limit": self.test_limit}
        changes = dict(preset.changes)
        for name, stand_ins in preset.instead.items():
            changes |= stand_ins.get(settings[name], {})
        changes |= {name: value for name, value in limits.items() if value is not None}
        caps = [changes.get("epochs", settings["epochs"]), preset.epochs, self.epochs]
        return {**settings, **changes, "epochs": min(cap for cap in caps if cap is not None)}

    def job(self, settings: Settings, seed: int) -> Job:
        """Return the job that stands for the paper's ``settings``."""
        changed = {**self.adjusted(settings), "seed": seed}
        return job(based(changed, self.digests, self.version))

    def jobs(self, experiment: Experiment | None = None) -> list[Job]:
        """Return every job of an experiment, or of all; once each, each after those that it needs."""
        chosen = self.experiments if experiment is None else [experiment]
        points = (self.job(point, seed) for each in chosen for seed in self.seeds for point in each.points)
        return [*in_order(points)]

    @property
    def groups(self) -> dict[str, list[Job]]:
        """Jobs by experiment, with those that they need."""
        return {each.id: self.jobs(each) for each in self.experiments}

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Selection:
        """Rebuild from :meth:`to_json`'s result."""
        return cls(**with_tuples(value))


@dataclass(frozen=True)
class Spread:
    """Accuracies of one row over seeds, in percent.

    Attributes:
        values: One a seed; a training that did not converge counts as chance.
        diverged: How many did not.
    """

    values: tuple[float, ...]
    diverged: int = 0

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds; ``None`` for a single one."""
        return stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        shown = f"{self.mean:.2f}"
        return shown if self.deviation is None else f"{shown} ± {self.deviation:.2f}"


class Results:
    """Results of one selection.

    Args:
        rows: Of any selection; those of others, of other data and of other versions are left aside.
        selection: Which settings stand for the paper's. Its seeds are all those that ``rows`` hold.
    """

    def __init__(self, rows: Sequence[Row], selection: Selection) -> None:
        self.selection = selection
        self.by_id = {row.id: row for row in rows if self._is_of(row.settings)}
        seeds = {row.settings["seed"] for row in rows if row.settings["init_from"] is None}
        self.seeds = sorted(seeds | set(selection.seeds))

    def _is_of(self, settings: Settings) -> bool:
        """Whether a result is of the selection's data and version."""
        wanted = based(settings, self.selection.digests, self.selection.version)
        return all(settings.get(name) == wanted[name] for name in ("digest", "version"))

    def rows(self, settings: Settings) -> list[Row]:
        """Return the results that stand for the paper's ``settings``, one a seed."""
        found = (self.by_id.get(self.selection.job(settings, seed).id) for seed in self.seeds)
        return [row for row in found if row is not None]

    def spread(self, settings: Settings, key: str = "top1") -> Spread | None:
        """Return accuracies over seeds, or ``None`` where nothing was run."""
        chance = self.chance(settings)
        rows = self.rows(settings)
        values = tuple(100 * row.result[key] if key in row.result else chance for row in rows)
        return Spread(values, sum("diverged" in row.result for row in rows)) if values else None

    def measured(self, settings: Settings, key: str = "top1") -> Measured | None:
        """Return accuracies by seed and, where a result tells them, by test picture."""
        chance = self.chance(settings)
        by_seed: dict[int, Scores] = {}
        for row in self.rows(settings):
            of = self._members(row) if key == "mean_top1" else [row.result]
            if all("right" in each for each in of):
                value = np.mean([unpacked(each["right"], each["test_pictures"]) for each in of], 0)
            else:
                value = np.array([row.result.get(key, chance / 100)])
            by_seed[row.settings["seed"]] = 100 * value
        return Measured(by_seed) if by_seed else None

    def _members(self, row: Row) -> list[dict[str, Any]]:
        found = [self.by_id.get(name) for name in row.settings["of"] or ()]
        return [{} if each is None else each.result for each in found] or [{}]

    @property
    def preset(self) -> Preset:
        """That of the selection."""
        return PRESETS[self.selection.preset]

    def title(self, name: str) -> str:
        """Return what a model or data set of the paper, or its stand-in, is called."""
        return self.preset.titles.get(name) or NAMES.get(name) or KNOWN[name].title

    def counted(self, settings: Settings) -> Settings:
        """Return the settings whose parameters are counted: the paper's, or those of stand-ins."""
        return self.selection.adjusted(settings) if self.preset.instead else settings

    def chance(self, settings: Settings) -> float:
        """Accuracy of guessing, in percent."""
        return 100 / class_count(self.selection.adjusted(settings))

    def points(self, experiment: str, **where: Any) -> list[Settings]:
        """Return an experiment's rows, as in the paper, whose settings have the given values."""
        return [
            point
            for point in EVERY[experiment].points
            if all(point[name] == value for name, value in where.items())
        ]

    def best(self, points: Sequence[Settings]) -> tuple[Settings, Spread] | None:
        """Return the row of highest accuracy, and that."""
        found = [(point, spread) for point in points if (spread := self.spread(point))]
        return max(found, key=lambda each: each[1].mean, default=None)

    def one(self, experiment: str, **where: Any) -> Spread | None:
        """Return the accuracies of the one row with the given values; of several the best."""
        best = self.best(self.points(experiment, **where))
        return best and best[1]

    def top1(self, experiment: str, **where: Any) -> float | None:
        """Return the mean of these, in percent."""
        found = self.one(experiment, **where)
        return found.mean if found else None

    def finished(self, experiment: str) -> tuple[int, int]:
        """Return how many of an experiment's rows have results, and how many there are."""
        points = EVERY[experiment].points
        return sum(bool(self.rows(point)) for point in points), len(points)

    @property
    def as_in_paper(self) -> bool:
        """Whether data and lengths of all trainings are the paper's own."""
        points = (point for each in EXPERIMENTS.values() for point in each.points)
        return all(self.selection.adjusted(point) == point for point in points)


class _Noting(Results):
    """Notes which results are asked for."""

    asked: frozenset[str] = frozenset()

    def rows(self, settings: Settings) -> list[Row]:
        found = super().rows(settings)
        self.asked |= {row.id for row in found}
        return found


def deciding(selection: Selection, verdicts: Iterable[Callable[[Results], Verdict]]) -> list[frozenset[str]]:
    """Return, for each verdict that a selection's results would give, the ids of the jobs it rests on."""
    some = {"top1": 0.5, "mean_top1": 0.5, "layers": [{"mean": 1.0}]}
    rows = [Row(job.id, job.settings, some, {}) for job in selection.jobs()]
    asked = []
    for verdict in verdicts:
        noting = _Noting(rows, selection)
        if verdict(noting).mark != "not run":
            asked.append(noting.asked)
    return asked
