"""``FitConfig``: the settings of one training."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sparsetune.errors import ConfigError, SparsetuneError, UnknownNameError

Sched = Literal["cosine", "tanh", "poly", "multistep", "none"]
SCHEDS: tuple[Sched, ...] = ("cosine", "tanh", "poly", "multistep", "none")
Amp = Literal["bf16", "fp16"]
AMPS: tuple[Amp, ...] = ("bf16", "fp16")


YELLOWFIN = "yellowfin"
"""The name of the one optimiser here that timm does not have."""

FREE = ("workers", "device")
"""Settings that change where and how fast a training runs, not what it comes to."""


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How to train; names follow timm's ``train.py``.

    Args:
        epochs: Passes over the training pictures.
        batch_size: Pictures a step.
        opt: Name of one of timm's optimisers, or ``yellowfin``; ``momentum`` is the paper's, SGD with it.
        lr: Learning rate at the start. The default suits ``momentum``; Adam and its kin want about 0.001.
        sched: How it falls, step by step, to zero at the end; ``multistep`` lowers it at milestones, ``none``
            keeps it.
        decay_milestones: Epochs after which ``multistep`` lowers it.
        decay_rate: The factor of each lowering.
        weight_decay: On learned weights; biases and normalisation are left out, as timm does.
        momentum: For the optimisers that have it.
        seed: Order of pictures, augmentation and dropout.
        amp: Mixed precision of training steps, or ``None``; tests are always in full precision.
        compile: Use ``torch.compile``.
        grad_checkpointing: Compute activations anew in the backward pass, for less memory at more time.
        workers: Processes that decode pictures; results do not depend on it.
        device: ``cpu``, ``cuda``, …; ``None`` takes what there is.

    Raises:
        ConfigError: For settings out of range, all problems together.
        UnknownNameError: When the only problem is an optimiser that timm does not have.
    """

    epochs: int = 10
    batch_size: int = 64
    opt: str = "momentum"
    lr: float = 0.1
    sched: Sched = "cosine"
    decay_milestones: tuple[int, ...] = ()
    decay_rate: float = 0.1
    weight_decay: float = 5e-4
    momentum: float = 0.9
    seed: int = 0
    amp: Amp | None = None
    compile: bool = False
    grad_checkpointing: bool = False
    workers: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.decay_milestones, list):
            object.__setattr__(self, "decay_milestones", tuple(self.decay_milestones))
        counts = {"epochs": 1, "batch_size": 1, "seed": 0, "workers": 0}
        problems: list[SparsetuneError] = [
            ConfigError(f"{name} {getattr(self, name)!r} is not a whole number of {low} or more.")
            for name, low in counts.items()
            if type(getattr(self, name)) is not int or getattr(self, name) < low
        ]
        problems += [
            ConfigError(f"{name} {getattr(self, name)!r} is not a number of 0 or more.")
            for name in ("lr", "decay_rate", "weight_decay", "momentum")
            if not _is_amount(getattr(self, name))
        ]
        if self.sched not in SCHEDS:
            problems.append(ConfigError(f"sched '{self.sched}' is not one of {', '.join(SCHEDS)}."))
        if not _is_milestones(self.decay_milestones):
            problems.append(
                ConfigError(
                    f"decay_milestones {self.decay_milestones!r} is not a list of epochs in rising order."
                )
            )
        if self.sched == "multistep" and self.decay_milestones == ():
            problems.append(ConfigError("sched 'multistep' lowers lr at decay_milestones; give some."))
        if self.amp is not None and self.amp not in AMPS:
            problems.append(ConfigError(f"amp '{self.amp}' is not one of {', '.join(AMPS)}."))
        from timm.optim import list_optimizers  # imports torch, which reading an option does not need

        known = sorted({*list_optimizers(), YELLOWFIN})
        if self.opt not in known:
            remedy = "timm.optim.list_optimizers() lists them all."
            problems.append(UnknownNameError("optimiser", str(self.opt), known, remedy))
        if len(problems) == 1:
            raise problems[0]
        ConfigError.collect(map(str, problems))

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return {**asdict(self), "decay_milestones": list(self.decay_milestones)}

    @property
    def decisive(self) -> dict[str, Any]:
        """The settings that the outcome depends on, as plain JSON values."""
        return {name: value for name, value in self.to_json().items() if name not in FREE}


def _is_amount(value: object) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= 0  # type: ignore[arg-type, operator]


def _is_milestones(value: object) -> bool:
    counts = isinstance(value, tuple) and all(type(epoch) is int and epoch > 0 for epoch in value)
    return counts and sorted(set(value)) == list(value)  # type: ignore[call-overload]
