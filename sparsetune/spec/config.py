"""``FitConfig``: the settings of one training; and in how many bits its outcome may be kept."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from typing import Any, ClassVar, Literal, Self

from sparsetune.errors import ConfigError, SparsetuneError, UnknownNameError
from sparsetune.host import bytes_from
from sparsetune.spec.option import option, options_of, out_of_range, shown
from sparsetune.spec.recipe import Recipe

Sched = Literal["cosine", "tanh", "poly", "multistep", "none"]
SCHEDS: tuple[Sched, ...] = ("cosine", "tanh", "poly", "multistep", "none")
Amp = Literal["bf16", "fp16"]
AMPS: tuple[Amp, ...] = ("bf16", "fp16")
ClassWeights = Literal["balanced", "oversample"]
CLASS_WEIGHTS: tuple[ClassWeights, ...] = ("balanced", "oversample")
Keep = Literal["last", "best"]
KEEPS: tuple[Keep, ...] = ("last", "best")
Precision = Literal["bf16", "fp16", "int8", "int6"]
PRECISIONS: tuple[Precision, ...] = ("bf16", "fp16", "int8", "int6")

BITS = {"bf16": 16, "fp16": 16, "int8": 8, "root8": 8, "int6": 6, "line4": 4, "curve4": 4}
"""Name of a code -> bits of each of its numbers, the most that they take in a file; each stands for a float32
value."""
SHORT = ("int6", "line4", "curve4")
"""Codes whose scales have two bytes in place of four, and whose numbers a file holds entropy-coded."""

YELLOWFIN = "yellowfin"
"""The name of the one optimiser here that timm does not have."""

AUTO: Literal["auto"] = "auto"
"""The learning rate that short trials find."""

_NUMBER = r"\d+(\.\d+)?"
POLICY = re.compile(
    rf"rand(-(m\d+|n[1-9]|p{_NUMBER}|mstd{_NUMBER}|mmax[1-9]\d*|inc[01]|t(weights|3a|3aw)))*"
    rf"|augmix(-(m\d+|w[1-9]|d[1-9]|a{_NUMBER}|b[01]|mstd{_NUMBER}))*"
    rf"|(original|originalr|v0|v0r|3a)(-mstd{_NUMBER})?"
)
"""How timm writes a policy of augmentation."""


LOGS = ("tensorboard", "wandb", "mlflow", "trackio")
"""Libraries that can take a training's numbers, by the names of their modules and packages."""

FREE = ("workers", "device", "channels_last", "log", "cache")
"""Settings that change where and how fast a training runs, not what it comes to but for rounding."""


def optimisers() -> list[str]:
    """Return the names of all optimisers: timm's, and our own."""
    from timm.optim import list_optimizers  # imports torch, which reading an option does not need

    return sorted({*list_optimizers(), YELLOWFIN})


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How to train; names follow timm's ``train.py``.

    The defaults are the paper's recipe. Over a trained backbone ``fit`` puts those of
    :data:`~sparsetune.spec.recipe.TRANSFER` in the place of settings that were left out here.

    Args:
        epochs: Passes over the training pictures.
        batch_size: Pictures a step.
        opt: Name of one of timm's optimisers, or ``yellowfin``; ``momentum`` is the paper's, SGD with it.
        lr: Learning rate at the start, or ``auto`` for one that short trials find. The default suits
            ``momentum``; Adam and its kin want about 0.001.
        sched: How it falls, step by step, to zero at the end; ``multistep`` lowers it at milestones, ``none``
            keeps it.
        warmup_epochs: Epochs, or a part of one, in which it rises first.
        decay_milestones: Epochs after which ``multistep`` lowers it.
        decay_rate: The factor of each lowering.
        weight_decay: On learned weights; biases and normalisation are left out, as timm does.
        momentum: For the optimisers that have it.
        smoothing: Share of each label that is spread over all classes, for the loss (Szegedy et al., 2016).
        scale: Least share of a training picture that a random crop of it has, which is then resized; ``None``
            for the crop and flips that the data came with.
        aug: Whether anything happens to training pictures.
        aa: One of timm's policies of augmentation, such as ``rand-m9-mstd0.5-inc1``, after crop and flip.
        reprob: Share of training pictures of which a rectangle is replaced by noise (Zhong et al., 2017).
        mixup: Each training picture is mixed with another one, and so are the labels, by shares from a beta
            distribution with this parameter (Zhang et al., 2017); 0 for never.
        cutmix: Likewise, by a rectangle of the other one (Yun et al., 2019). Where both are given, each batch
            takes one of them at random.
        class_weights: ``balanced`` lets a picture of a rare class count more, by the inverse of its class'
            share of the training pictures; ``oversample`` repeats it until all classes have equally many,
            which makes an epoch longer, and augments each repeat anew; ``None`` lets all count alike.
        views: How many views of each training picture there are, over which epochs go in turn; 0 for a new
            one in each epoch. What frozen layers before the first learned one make of a view is kept.
        cache: Most that this may take on disk, in a temporary file, where it takes more than a quarter of the
            free memory, such as ``2GB``; ``None`` for nothing: it is then computed anew.
        clip_grad: Longest norm of all gradients together; 0 for no limit.
        grad_accum_steps: Batches whose gradients make one step of the optimiser together.
        layer_decay: Factor by which the learning rate of each of timm's layers is below that of the next;
            ``None`` for the same rate everywhere.
        model_ema: Evaluate and keep moving averages of the learned values, over steps of the optimiser.
        model_ema_decay: What an average keeps of itself in a step, at most: ``1 - n ** (-2 / 3)`` in the
            ``n``-th one, as timm's averages warm up.
        val_share: Share of the training pictures to validate on instead, where the data has no validation
            split; the content of a picture decides.
        keep: ``last`` keeps the values after the last epoch, ``best`` those after the epoch whose validation
            loss is least.
        patience: Epochs without a lower validation loss after which to stop; 0 for never.
        seed: Order of pictures, augmentation and dropout.
        amp: Mixed precision of training steps, or ``None``; tests are always in full precision.
        compile: Use ``torch.compile``.
        channels_last: Lay the channels of a pixel side by side in memory, which many models run faster with.
        grad_checkpointing: Compute activations anew in the backward pass, for less memory at more time.
        workers: Processes that decode pictures; results do not depend on it.
        device: ``cpu``, ``cuda``, …; ``None`` takes what there is.
        log: Libraries of ``LOGS`` that are also told each epoch's numbers. What they write lies beside the
            checkpoint, or in ``runs`` where there is none.

    Raises:
        ConfigError: For settings out of range, all problems together.
        UnknownNameError: When the only problem is an optimiser that timm does not have.
    """

    epochs: int = field(
        default=10, metadata=option("Passes over the training pictures.", least=1, follows=True)
    )
    batch_size: int = field(
        default=64, metadata=option("Pictures a step.", short="-b", least=1, follows=True)
    )
    opt: str = field(
        default="momentum",
        metadata=option(
            "One of timm's optimisers, such as momentum, or adamw with --lr 0.001; or yellowfin.",
            names=optimisers,
            follows=True,
        ),
    )
    lr: float | Literal["auto"] = field(
        default=0.1,
        metadata=option(
            "Learning rate at the start; auto finds one by short trials.",
            choices=(AUTO,),
            least=0,
            follows=True,
        ),
    )
    sched: Sched = field(
        default="cosine",
        metadata=option("How it falls to zero: cosine, tanh or poly; or multistep, or none.", choices=SCHEDS),
    )
    warmup_epochs: float = field(
        default=0.0,
        metadata=option(
            "Epochs, or a part of one, in which it rises first.", least=0, follows=True, late=True
        ),
    )
    decay_milestones: tuple[int, ...] = field(
        default=(),
        metadata=option("An epoch after which multistep lowers it; may be repeated.", kind=list[int]),
    )
    decay_rate: float = field(default=0.1, metadata=option("By which factor multistep does.", least=0))
    weight_decay: float = field(default=5e-4, metadata=option("On learned weights.", least=0, follows=True))
    momentum: float = field(default=0.9, metadata=option(least=0))
    smoothing: float = field(
        default=0.0,
        metadata=option(
            "Share of each label that is spread over all classes.", least=0, most=1, follows=True, late=True
        ),
    )
    scale: float | None = field(
        default=None,
        metadata=option(
            "Crop training pictures at random, to this share of their area or more, and resize them.",
            kind=float,
            least=0.01,
            most=1,
            follows=True,
            late=True,
        ),
    )
    aug: bool = field(
        default=True,
        metadata=option("Crop and flip training pictures at random.", follows=True, late=True),
    )
    aa: str | None = field(
        default=None,
        metadata=option(
            "One of timm's policies of augmentation, such as rand-m9-mstd0.5-inc1, augmix or v0.",
            kind=str,
            late=True,
        ),
    )
    reprob: float = field(
        default=0.0,
        metadata=option(
            "Share of training pictures that lose a rectangle to noise.", least=0, most=1, late=True
        ),
    )
    mixup: float = field(
        default=0.0,
        metadata=option(
            "Mix training pictures in pairs: alpha of the shares, such as 0.2.", least=0, late=True
        ),
    )
    cutmix: float = field(
        default=0.0,
        metadata=option(
            "Put a rectangle of one training picture into another: alpha of its area, such as 1.",
            least=0,
            late=True,
        ),
    )
    class_weights: ClassWeights | None = field(
        default=None,
        metadata=option(
            "Let pictures of rare classes count more (balanced), or come more often (oversample).",
            kind=str,
            choices=CLASS_WEIGHTS,
            late=True,
        ),
    )
    views: int = field(
        default=0,
        metadata=option(
            "Views of each training picture, kept from epoch to epoch behind frozen layers; 0: always new.",
            least=0,
            follows=True,
            late=True,
        ),
    )
    cache: str | None = field(
        default=None,
        metadata=option(
            "Most that kept views may take on disk, where memory is short, such as 2GB.", kind=str, late=True
        ),
    )
    clip_grad: float = field(
        default=0.0, metadata=option("Longest norm of all gradients together; 0: any.", least=0, late=True)
    )
    grad_accum_steps: int = field(
        default=1, metadata=option("Batches that make one step of the optimiser.", least=1, late=True)
    )
    layer_decay: float | None = field(
        default=None,
        metadata=option(
            "Factor on the learning rate from each layer to the one before, such as 0.75.",
            kind=float,
            least=0.01,
            most=1,
            late=True,
        ),
    )
    model_ema: bool = field(
        default=False, metadata=option("Keep moving averages of what is learned.", late=True)
    )
    model_ema_decay: float = field(
        default=0.9998,
        metadata=option("What such an average keeps in a step, at most.", least=0, most=1, late=True),
    )
    val_share: float = field(
        default=0.0,
        metadata=option(
            "Share of the training pictures to validate on, where the data has no validation split.",
            panel="Data",
            least=0,
            most=0.9,
            follows=True,
            late=True,
        ),
    )
    keep: Keep = field(
        default="last",
        metadata=option(
            "Which epoch's values to keep: last, or best on validation.", choices=KEEPS, late=True
        ),
    )
    patience: int = field(
        default=0,
        metadata=option(
            "Epochs without better validation after which to stop; 0: never.", least=0, late=True
        ),
    )
    seed: int = field(
        default=0, metadata=option("Seed of the training: order, augmentation, dropout.", least=0)
    )
    amp: Amp | None = field(
        default=None, metadata=option("Mixed precision: bf16 or fp16.", kind=str, choices=AMPS)
    )
    compile: bool = field(default=False, metadata=option("Use torch.compile."))
    channels_last: bool = field(
        default=False,
        metadata=option(
            "Lay the channels of a pixel side by side, which many models run faster with.",
            follows=True,
            late=True,
        ),
    )
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
    log: tuple[str, ...] = field(
        default=(),
        metadata=option(
            "Also tell each epoch's numbers to tensorboard, wandb, mlflow or trackio; may be repeated.",
            kind=list[str],
            panel="Run",
            choices=LOGS,
            late=True,
        ),
    )

    given: ClassVar[frozenset[str]] = frozenset()
    """Names of the settings that were given to this one."""

    def __new__(cls, **given: Any) -> Self:
        """Note which settings are given, for :meth:`following`."""
        self = super().__new__(cls)
        object.__setattr__(self, "given", frozenset(given))
        return self

    def __post_init__(self) -> None:
        for name in ("decay_milestones", "log"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
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
        if self.aa is not None and not (isinstance(self.aa, str) and POLICY.fullmatch(self.aa)):
            yield (
                f"aa '{shown(self.aa)}' is not one of timm's policies, "
                "such as rand-m9-mstd0.5-inc1, augmix-m3-w3 or v0."
            )
        for name in ("aa", "reprob"):
            if self.aug is False and getattr(self, name):
                yield f"{name} changes training pictures, which aug=False (--no-aug) keeps; leave one out."
        for name in ("mixup", "cutmix"):
            if self.views and getattr(self, name):
                yield f"{name} makes new pictures in each step, and views keeps a few; leave one out."
        for name in self.log if isinstance(self.log, tuple) else ():
            if name in LOGS and not _is_installed(name):
                yield f"log '{name}' needs a library that is not here; pip install {name}, or leave it out."

        if self.cache is not None:
            try:
                bytes_from(str(self.cache))
            except ConfigError as error:
                yield f"cache: {error}"

    @property
    def cache_bytes(self) -> int:
        """``cache`` in bytes."""
        return 0 if self.cache is None else bytes_from(self.cache)

    def describe(self) -> str:
        """Return a few plain words, such as ``adamw, lr 0.001, 10 epochs of batches of 16``."""
        words = [self.opt, f"lr {self.lr if self.lr == AUTO else format(self.lr, '.2g')}", self.sched]
        words += [f"{self.epochs} epoch{'s' * (self.epochs != 1)} of batches of {self.batch_size}"]
        words += [f"{self.warmup_epochs:g} of warm-up"] if self.warmup_epochs else []
        words += [f"smoothing {self.smoothing:g}"] if self.smoothing else []
        if not self.aug:
            words.append("no augmentation")
        elif self.scale is not None:
            words.append(f"crops of {self.scale:.0%} or more")
        words += [self.aa] if self.aa else []
        for name in ("reprob", "mixup", "cutmix", "layer_decay"):
            words += [f"{name} {value:g}"] if (value := getattr(self, name)) else []
        words += [f"{self.grad_accum_steps} batches a step"] if self.grad_accum_steps > 1 else []
        words += ["averaged"] if self.model_ema else []
        return ", ".join(words)

    def following(self, recipe: Recipe) -> FitConfig:
        """Return the settings with a recipe's in the place of those that were left out; none is then."""
        left = {name: value for name, value in recipe.settings.items() if name not in self.given}
        return FitConfig(**{**vars_of(self), **left})

    def but(self, **changes: Any) -> FitConfig:
        """Return the settings with changes; what was left out still is."""
        kept = {name: value for name, value in vars_of(self).items() if name in self.given}
        return FitConfig(**{**kept, **changes})

    @property
    def complete(self) -> bool:
        """Whether every setting is given."""
        return self.given == {*vars_of(self)}

    @property
    def step_size(self) -> int:
        """Pictures of a step of the optimiser, over all its batches."""
        return self.batch_size * self.grad_accum_steps

    @property
    def rate(self) -> float:
        """The learning rate, once it is found.

        Raises:
            ConfigError: When it is not.
        """
        if self.lr == AUTO:
            raise ConfigError("lr 'auto' stands for no number yet; fit finds one, or give a number.")
        return float(self.lr)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values; of those that came late, what is not the default."""
        said = options_of(FitConfig)
        held = {k: v for k, v in vars_of(self).items() if not (said[k].late and v == said[k].default)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in held.items()}

    @property
    def decisive(self) -> dict[str, Any]:
        """The settings that the outcome depends on, as plain JSON values."""
        return {name: value for name, value in self.to_json().items() if name not in FREE}


def vars_of(settings: Any) -> dict[str, Any]:
    """Return the fields of a settings' value by name, as they are."""
    return {each.name: getattr(settings, each.name) for each in fields(settings)}


def _is_installed(name: str) -> bool:
    """Whether there is such a library; a folder of its name here, as such libraries make, is none."""
    found = find_spec(name)
    return found is not None and found.origin is not None


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
    return {"int8": rows_of(shape), "root8": 1, "int6": rows_of(shape), "line4": 2, "curve4": 2}.get(code, 0)


def rows_of(shape: tuple[int, ...]) -> int:
    """Return the number of filters of a weight; a vector is one."""
    return shape[0] if len(shape) > 1 else 1


def stored_bytes(shape: tuple[int, ...], precision: Precision | None, statistic: bool = False) -> int:
    """Return the most bytes that float32 values of a shape take, scales included; ``None`` keeps all bits.

    Args:
        shape: Of the values.
        precision: How many bits.
        statistic: Whether they are a running statistic, which ``int6`` keeps in fewer.

    Raises:
        ConfigError: When there is no such precision.
    """
    check_precision(precision)
    code = "line4" if statistic and precision == "int6" else precision
    return 4 * math.prod(shape) if code is None else coded_bytes(code, shape)


def coded_bytes(code: str, shape: tuple[int, ...]) -> int:
    """Return the most bytes that values of a shape take in a code, scales included."""
    return -(-BITS[code] * math.prod(shape) // 8) + (2 if code in SHORT else 4) * scales(code, shape)
