"""What of the paper is run, and with what in place of the paper's data and lengths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sparsetune.errors import ConfigError, UnknownNameError
from sparsetune.reproduce.experiments import EXPERIMENTS, Experiment
from sparsetune.reproduce.jobs import Job, Settings, based, check_seeds, in_order, job

SHORT = ("table1", "fig1", "fig3", "fig2", "table4", "fig4")
LONG = ("table2", "fig5", "table3", "fig6")


@dataclass(frozen=True)
class Preset:
    """A named selection.

    Attributes:
        experiments: Ids, in the order in which they are run.
        changes: Settings in place of the paper's.
        epochs: At most so many for each training.
    """

    experiments: tuple[str, ...]
    changes: Settings
    epochs: int | None = None


PRESETS = {
    "smoke": Preset(SHORT + LONG, {"data": "digits", "train_limit": 128, "test_limit": 100}, 1),
    "short": Preset(SHORT, {}),
    "full": Preset(SHORT + LONG, {}),
}


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
            if name not in EXPERIMENTS:
                raise UnknownNameError("experiment", name, EXPERIMENTS)
        own = PRESETS[self.preset].experiments
        problems = [
            f"{name} is not in preset {self.preset}; choose --preset full."
            for name in self.only or ()
            if name not in own
        ]
        problems += [
            f"{name} {value!r} is not a whole number of 1 or more."
            for name, value in (
                ("epochs", self.epochs),
                ("train_limit", self.train_limit),
                ("test_limit", self.test_limit),
            )
            if value is not None and value < 1
        ]
        ConfigError.collect([*problems, *check_seeds(self.seeds)])

    @property
    def experiments(self) -> list[Experiment]:
        """Those that are run, in that order."""
        chosen = self.only or PRESETS[self.preset].experiments
        return [EXPERIMENTS[name] for name in PRESETS[self.preset].experiments if name in chosen]

    def adjusted(self, settings: Settings) -> Settings:
        """Return the settings that are run in place of the paper's ``settings``."""
        preset = PRESETS[self.preset]
        limits = {"train_limit": self.train_limit, "test_limit": self.test_limit}
        caps = [count for count in (settings["epochs"], preset.epochs, self.epochs) if count is not None]
        changes = {**preset.changes, **{name: value for name, value in limits.items() if value is not None}}
        return {**settings, **changes, "epochs": min(caps)}

    def job(self, settings: Settings, seed: int) -> Job:
        """Return the job that stands for the paper's ``settings``."""
        changed = {**self.adjusted(settings), "seed": seed}
        return job(based(changed, self.digests, self.version))

    def jobs(self, experiment: Experiment | None = None) -> list[Job]:
        """Return every job of an experiment, or of all; once each, each after those that it needs."""
        chosen = self.experiments if experiment is None else [experiment]
        return [
            *in_order(
                [self.job(point, seed) for each in chosen for seed in self.seeds for point in each.points]
            )
        ]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Selection:
        """Rebuild from :meth:`to_json`'s result."""
        lists = {name: tuple(value[name]) for name in ("only", "seeds") if value.get(name)}
        return cls(**{**value, **lists})
