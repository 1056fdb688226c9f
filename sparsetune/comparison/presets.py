"""Where the methods compete: a network, what it stands on, the data and the length of a training."""

from __future__ import annotations

from dataclasses import dataclass

from sparsetune.reproduce.jobs import Settings

HELD_OUT = 0.2
"""Share of the training pictures on which learning rates are chosen."""

SMALL: Settings = {"model": "wrn28_4", "model_kwargs": {"depth": 16, "width": 2}}
PAPERS: Settings = {"model": "wrn28_4"}
TINY: Settings = {"data": "tiny-imagenet", "fraction": 1.0}


@dataclass(frozen=True)
class Ground:
    """One comparison.

    Attributes:
        title: For people.
        settings: Of every training on it; only what differs from the defaults.
        rates: Learning rates that are tried for each method.
        backbone: The training that gives the backbone; ``None`` for random values.
    """

    title: str
    settings: Settings
    rates: tuple[float, ...] = (0.03, 0.1, 0.3)
    backbone: Settings | None = None


_SMOKE: Settings = {
    "model": "wrn28_4",
    "model_kwargs": {"depth": 10, "width": 1},
    "data": "digits",
    "train_limit": 120,
    "test_limit": 50,
    "batch_size": 32,
    "epochs": 1,
}
_CPU: Settings = {
    **SMALL,
    "train_limit": 4000,
    "test_limit": 2000,
    "size": 16,
    "batch_size": 64,
    "epochs": 6,
}
_WHOLE: Settings = {**PAPERS, "epochs": 10}

PRESETS: dict[str, dict[str, Ground]] = {
    "smoke": {
        "random": Ground("WRN-10-1, random backbone, digits: does it work?", _SMOKE, (0.1,)),
        "trained": Ground(
            "WRN-10-1, backbone trained on digits, digits: does it work?",
            _SMOKE,
            (0.1,),
            {**_SMOKE, "fraction": 1.0},
        ),
    },
    "digits": {
        "random": Ground(
            "WRN-28-4, random backbone, digits",
            {**PAPERS, "data": "digits", "epochs": 4, "batch_size": 32},
        )
    },
    "cifar10": {"random": Ground("WRN-16-2, random backbone, CIFAR-10 at 16x16", _CPU)},
    "transfer": {
        "trained": Ground(
            "WRN-16-2, backbone trained on Tiny-ImageNet, CIFAR-10 at 16x16",
            _CPU,
            backbone={**SMALL, **TINY, "train_limit": 20_000, "test_limit": 2000, "size": 16, "epochs": 10},
        )
    },
    "full": {
        "random": Ground("WRN-28-4, random backbone, CIFAR-10", _WHOLE),
        "trained": Ground(
            "WRN-28-4, backbone trained on Tiny-ImageNet, CIFAR-10",
            _WHOLE,
            (0.01, 0.03, 0.1),
            {**PAPERS, **TINY, "size": 32, "epochs": 30},
        ),
    },
}
"""Preset -> name of a ground -> the ground."""
