"""``FitConfig``: the settings of one training."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import timm.optim

from sparsetune.errors import ConfigError, UnknownNameError

Sched = Literal["cosine", "tanh", "poly", "none"]
SCHEDS: tuple[Sched, ...] = ("cosine", "tanh", "poly", "none")
Amp = Literal["bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How to train; names follow timm's ``train.py``.

    Args:
        epochs: Passes over the training pictures.
        batch_size: Pictures a step.
        opt: Name of one of timm's optimisers; ``momentum`` is the paper's SGD with momentum.
        lr: Learning rate at the start.
        sched: How it falls, step by step, to zero at the end; ``none`` keeps it.
        weight_decay: On learned weights; biases and normalisation are left out, as timm does.
        momentum: For the optimisers that have it.
        seed: Order of pictures, augmentation and dropout.
        amp: Mixed precision, or ``None``.
        compile: Use ``torch.compile``.
        workers: Processes that decode pictures; results do not depend on it.
        device: ``cpu``, ``cuda``, …; ``None`` takes what there is.

    Raises:
        ConfigError: For settings out of range, all problems together.
        UnknownNameError: For an optimiser that timm does not have.
    """

    epochs: int = 10
    batch_size: int = 64
    opt: str = "momentum"
    lr: float = 0.1
    sched: Sched = "cosine"
    weight_decay: float = 5e-4
    momentum: float = 0.9
    seed: int = 0
    amp: Amp | None = None
    compile: bool = False
    workers: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        counts = {"epochs": 1, "batch_size": 1, "seed": 0, "workers": 0}
        problems = [
            f"{name} {getattr(self, name)!r} is not a whole number of {low} or more."
            for name, low in counts.items()
            if type(getattr(self, name)) is not int or getattr(self, name) < low
        ]
        problems += [
            f"{name} {getattr(self, name)!r} is not a number of 0 or more."
            for name in ("lr", "weight_decay", "momentum")
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0)
        ]
        if self.sched not in SCHEDS:
            problems.append(f"sched '{self.sched}' is not one of {', '.join(SCHEDS)}.")
        if self.amp not in (None, "bf16", "fp16"):
            problems.append(f"amp '{self.amp}' is not bf16 or fp16.")
        ConfigError.collect(problems)
        known = timm.optim.list_optimizers()
        if self.opt not in known:
            raise UnknownNameError("optimiser", self.opt, known)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return asdict(self)
