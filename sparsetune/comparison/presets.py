"""Where the methods compete: a network, what it stands on, the data and the length of a training."""

from __future__ import annotations

from dataclasses import dataclass

from sparsetune.reproduce.jobs import Settings

HELD_OUT = 0.2
"""Share of the training pictures on which learning rates are chosen."""

SMALL: Settings = {"model": "wrn28_4", "model_kwargs": {"depth": 10, "width": 2}}
PAPERS: Settings = {"model": "wrn28_4"}


@dataclass(frozen=True)
class Ground:
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
_ON_CIFAR10, _ON_TINY = _BEFORE, {**_BEFORE, "data": "tiny-imagenet"}
_BYTES = (60_000,)
_THRICE = (0, 1, 2)
_WHOLE: Settings = {**PAPERS, "epochs": 10}

PRESETS: dict[str, dict[str, Ground]] = {
    "smoke": {
        "random": Ground("WRN-10-1, random backbone, digits: does it work?", _SMOKE, (0.1,), (30_000,)),
        "trained": Ground(
            "WRN-10-1, backbone trained on digits, digits: does it work?",
            _SMOKE,
            (0.1,),
            (30_000,),
            backbone={**_SMOKE, "fraction": 1.0},
        ),
    },
    "digits": {
        "random": Ground(
            "WRN-28-4, random backbone, digits",
            {**PAPERS, "data": "digits", "epochs": 4, "batch_size": 32},
            (0.03, 0.1, 0.3, 1.0),
        )
    },
    "small": {
        "digits": Ground("WRN-10-2, random backbone, digits", _DIGITS, budgets=_BYTES, tuned=_THRICE),
        "digits-trained": Ground(
            "WRN-10-2, backbone trained on Tiny-ImageNet, digits",
            _DIGITS,
            backbone=_ON_TINY,
            budgets=_BYTES,
            tuned=_THRICE,
        ),
        "cifar10": Ground(
            "WRN-10-2, random backbone, CIFAR-10 at 12x12", _SUBSET, budgets=_BYTES, tuned=_THRICE
        ),
        "cifar10-trained": Ground(
            "WRN-10-2, backbone trained on Tiny-ImageNet, CIFAR-10 at 12x12",
            _SUBSET,
            backbone=_ON_TINY,
            budgets=_BYTES,
            tuned=_THRICE,
        ),
        "tiny": Ground(
            "WRN-10-2, random backbone, 10 classes of Tiny-ImageNet at 12x12",
            _TINY,
            budgets=_BYTES,
            tuned=_THRICE,
        ),
        "tiny-trained": Ground(
            "WRN-10-2, backbone trained on CIFAR-10, 10 classes of Tiny-ImageNet at 12x12",
            _TINY,
            backbone=_ON_CIFAR10,
            budgets=_BYTES,
            tuned=_THRICE,
        ),
    },
    "full": {
        "random": Ground("WRN-28-4, random backbone, CIFAR-10", _WHOLE),
        "trained": Ground(
            "WRN-28-4, backbone trained on Tiny-ImageNet, CIFAR-10",
            _WHOLE,
            (0.01, 0.03, 0.1),
            backbone={**PAPERS, "data": "tiny-imagenet", "fraction": 1.0, "size": 32, "epochs": 30},
        ),
    },
}
"""Preset -> name of a ground -> the ground."""
