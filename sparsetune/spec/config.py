"""``FitConfig``: the settings of one training; and in how many bits its outcome may be kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sparsetune.errors import ConfigError, SparsetuneError, UnknownNameError
from sparsetune.spec.option import option, out_of_range

Sched = Literal["cosine", "tanh", "poly", "multistep", "none"]
SCHEDS: tuple[Sched, ...] = ("cosine", "tanh", "poly", "multistep", "none")
Amp = Literal["bf16", "fp16"]
AMPS: tuple[Amp, ...] = ("bf16", "fp16")
Precision = Literal["bf16", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("bf16", "fp16", "int8")

WIDTHS = {"bf16": 2, "fp16": 2, "int8": 1, "root8": 1}
"""Name of a code -> bytes of each of its numbers; each stands for a float32 value."""


YELLOWFIN = "yellowfin"
"""The name of the one optimiser here that timm does not have."""

FREE = ("workers", "device")
"""Settings that change where and how fast a training runs, not what it comes to."""


def optimisers() -> list[str]:
    """Return the names of all optimisers: timm's, and our own."""
    from timm.optim import list_optimizers  # imports torch, which reading an option does not need

    return sorted({*list_optimizers(), YELLOWFIN})


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

    epochs: int = field(default=10, metadata=option("Passes over the training pictures.", least=1))
    batch_size: int = field(default=64, metadata=option("Pictures a step.", short="-b", least=1))
    opt: str = field(
        default="momentum",
        metadata=option(
            "One of timm's optimisers, such as momentum, or adamw with --lr 0.001; or yellowfin.",
            names=optimisers,
        ),
    )
    lr: float = field(default=0.1, metadata=option("Learning rate at the start.", least=0))
    sched: Sched = field(
        default="cosine",
        metadata=option("How it falls to zero: cosine, tanh or poly; or multistep, or none.", choices=SCHEDS),
    )
    decay_milestones: tuple[int, ...] = field(
        default=(),
        metadata=option("An epoch after which multistep lowers it; may be repeated.", kind=list[int]),
    )
    decay_rate: float = field(default=0.1, metadata=option("By which factor multistep does.", least=0))
    weight_decay: float = field(default=5e-4, metadata=option("On learned weights.", least=0))
    momentum: float = field(default=0.9, metadata=option(least=0))
    seed: int = field(
        default=0, metadata=option("Seed of the training: order, augmentation, dropout.", least=0)
    )
    amp: Amp | None = field(
        default=None, metadata=option("Mixed precision: bf16 or fp16.", kind=str, choices=AMPS)
    )
    compile: bool = field(default=False, metadata=option("Use torch.compile."))
    grad_checkpointing: bool = field(
        default=False,
        metadata=option("Compute activations anew in the backward pass: less memory, more time."),
    )
    workers: int = field(
        default=0,
        metadata=option("Processes that decode pictures.", short="-j", panel="Data", least=0),
    )
    device: str | None = field(
        default=None,
        metadata=option("cpu or cuda; by default what there is.", kind=str, panel=None),
    )

    def __post_init__(self) -> None:
        if isinstance(self.decay_milestones, list):
            object.__setattr__(self, "decay_milestones", tuple(self.decay_milestones))
        problems: list[SparsetuneError] = [ConfigError(problem) for problem in self._problems()]
        ours = self.opt in (FitConfig.opt, YELLOWFIN)
        if not ours and self.opt not in (known := optimisers()):
            remedy = "timm.optim.list_optimizers() lists them all."
            problems.append(UnknownNameError("optimiser", str(self.opt), known, remedy))
        if len(problems) == 1:
            raise problems[0]
        ConfigError.collect(map(str, problems))

    def _problems(self) -> Iterator[str]:
        yield from out_of_range(self)
        if not _is_milestones(self.decay_milestones):
            yield f"decay_milestones {self.decay_milestones!r} is not a list of epochs in rising order."
        if self.sched == "multistep" and self.decay_milestones == ():
            yield "sched 'multistep' lowers lr at decay_milestones; give some."

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return {**asdict(self), "decay_milestones": list(self.decay_milestones)}

    @property
    def decisive(self) -> dict[str, Any]:
        """The settings that the outcome depends on, as plain JSON values."""
        return {name: value for name, value in self.to_json().items() if name not in FREE}


def _is_milestones(value: object) -> bool:
    counts = isinstance(value, tuple) and all(type(epoch) is int and epoch > 0 for epoch in value)
    return counts and sorted(set(value)) == list(value)  # type: ignore[call-overload]


def check_precision(name: str | None) -> None:
    """Refuse what is neither a precision nor ``None``, which stands for all bits.

    Raises:
        ConfigError: When it is.
    """
    if name not in (None, *PRECISIONS):
        raise ConfigError(f"dtype '{name}' is not one of {', '.join(PRECISIONS)}; leave it out for all bits.")


def scales(code: str, shape: tuple[int, ...]) -> int:
    """Return the number of scales that values of a shape take in a code."""
    if not math.prod(shape):
        return 0
    return {"int8": rows_of(shape), "root8": 1}.get(code, 0)


def rows_of(shape: tuple[int, ...]) -> int:
    """Return the number of filters of a weight; a vector is one."""
    return shape[0] if len(shape) > 1 else 1


def stored_bytes(shape: tuple[int, ...], precision: Precision | None) -> int:
    """Return the bytes of float32 values of a shape, scales included; ``None`` keeps all bits.

    Raises:
        ConfigError: When there is no such precision.
    """
    check_precision(precision)
    width = 4 if precision is None else WIDTHS[precision]
    return width * math.prod(shape) + 4 * scales(precision or "", shape)
