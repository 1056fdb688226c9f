"""Which recipe a training follows, what that makes of a model and its pictures, and how a rate is found."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from sparsetune.backbone import device_of, drawn_head, origin_of
from sparsetune.data import Augment, Data, Feed, Split, balanced, count_steps, split_by_content, split_in_two
from sparsetune.errors import ConfigError, DataError, DivergedError
from sparsetune.host import pick_device
from sparsetune.parts import ADAPTED, is_norm, keeps_statistics, unwrapped
from sparsetune.sliced import Adapted
from sparsetune.spec import PAPER, SLICES, SUBSPACE, FitConfig, Learn, Recipe, transfer
from sparsetune.train.metrics import predict_logits


def is_trained(net: nn.Module) -> bool:
    """Whether a model stands on trained values: published weights, a checkpoint, or a model that has learned.

    Models that ``create`` did not make are told by normalisation whose weights are no longer all alike.
    """
    net = unwrapped(net)
    state, origin = getattr(net, ADAPTED, None), origin_of(net)
    if isinstance(state, Adapted):
        kind = state.backbone.root.kind if state.backbone.kind != "zero" else "zero"
    elif origin is not None:
        kind = origin.backbone.root.kind
    else:
        kind = "module"
    if kind != "module":
        return kind in ("pretrained", "file")
    weights = [
        weight
        for m in net.modules()
        if is_norm(m) and isinstance(weight := getattr(m, "weight", None), Tensor)
    ]
    return any(bool((weight != weight.flatten()[:1]).any()) for weight in weights if not weight.is_meta)


def recipe_for(net: nn.Module, data: Data, config: FitConfig, learn: Learn) -> Recipe:
    """Return the recipe that ``config`` follows for a model, its pictures, and what is learned."""
    if data.train is None or not is_trained(net):
        return PAPER if learn.dimensions is None else SUBSPACE
    given = {name: getattr(config, name) for name in config.given}
    recipe = transfer(len(data.train), len(data.classes), given, learn)
    if pick_device(config.device).type == "cpu" and _runs_faster_channels_last(net, learn):
        recipe = replace(recipe, settings={**recipe.settings, "channels_last": True})
    return recipe


def _runs_faster_channels_last(net: nn.Module, learn: Learn) -> bool:
    """Whether a CPU does: but for slices of whole convolutions, whose own kernels want channels apart."""
    sliced = any(amount for kind, amount in learn.amounts.items() if kind in SLICES)
    return not sliced or any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in net.modules())


def parted(data: Data, config: FitConfig) -> Data:
    """Return the data with validation pictures, where it has none and some shall be held out for that.

    The content of a picture decides, so that adding pictures moves none across.
    """
    if not config.val_share or data.validation is not None or data.train is None:
        return data
    train, validation = split_by_content(data.train, config.val_share, VALIDATING)
    return replace(data, train=train, validation=validation) if len(validation) else data


def augmented(data: Data, config: FitConfig) -> Data:
    """Return the data with what its training pictures go through."""
    if not config.aug:
        return replace(data, augment=Augment())
    changes = {name: value for name in ("scale", "aa", "reprob") if (value := getattr(config, name))}
    return replace(data, augment=replace(data.augment, **changes))


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """Return what a picture of each class counts, so that all classes count alike and pictures 1 on average.

    Args:
        labels: Of the training pictures, ``(N,)`` int64.
        classes: How many there are; one without a picture counts 0.
    """
    counts = torch.bincount(labels, minlength=classes).float()
    present = counts > 0
    return torch.where(present, len(labels) / (present.sum() * counts.clamp_min(1)), 0.0)


def oversampled(train: Split) -> Split:
    """Return training pictures with those of rarer classes repeated, until all classes have equally many."""
    members = [np.flatnonzero(train.labels == label) for label in train.labels.unique()]
    most = max(len(own) for own in members)
    return train.take(np.sort(np.concatenate([np.resize(own, most) for own in members])))


def settled(learn: Learn, recipe: Recipe) -> Learn:
    """Return what is learned, with running statistics that are frozen where it leaves that to the recipe."""
    if recipe.frozen_statistics and learn.norm_stats is None and learn.frozen != "zero":
        return replace(learn, norm_stats="frozen")
    return learn


def start_(net: nn.Module, recipe: Recipe, learn: Learn) -> None:
    """Put an adapted model where a recipe has it start.

    Args:
        net: The model.
        recipe: Its recipe: where it says so, a classifier that was drawn anew starts at zero, and layers that
            keep running statistics go into evaluation mode, in which training leaves them.
        learn: What the model learns, which may say otherwise of the statistics.
    """
    if recipe.zero_head:
        with torch.no_grad():
            for value in drawn_head(net):
                value.zero_()
    if recipe.frozen_statistics and learn.norm_stats is None:
        if not net.training:
            net.train()
        for module in net.modules():
            if keeps_statistics(module):
                module.eval()


VALIDATING = 1
"""Seed of the choice of validation pictures; a reader's of test pictures is 0 if it is not told."""
SHARE = 0.08
"""Most of the training's steps that finding a learning rate may take: in time, starts included, a tenth."""
LEAST = 60
"""Steps of a trial from which it tells which rate a whole training would prefer."""
FACTORS = (1.0, 1 / 3, 3.0)
"""Rates that are tried, over the usual one."""
USUAL = {"adamw": 5e-4, "momentum": 0.03, "sgd": 0.03, "nesterov": 0.03}
"""The rate that an optimiser usually wants over a trained backbone with batches of 16 to 64 pictures."""
HELD_OUT, HELD_SHARE = 512, 0.2
"""Training pictures that trials are judged by: so many, or that share where it is fewer."""


@dataclass(frozen=True)
class RateTrial:
    """One learning rate, and how it did.

    Attributes:
        lr: The rate.
        steps: Training steps; 0 if it was not tried.
        loss: Mean cross-entropy over held-out training pictures, in nats; ``None`` if not tried or diverged.
    """

    lr: float
    steps: int = 0
    loss: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Rate:
    """The learning rate that was found.

    Attributes:
        lr: The rate.
        why: One sentence.
        trials: Every rate that was a candidate.
    """

    lr: float
    why: str
    trials: tuple[RateTrial, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values."""
        return {**asdict(self), "trials": [trial.to_json() for trial in self.trials]}

    def lines(self) -> Iterator[str]:
        """Say how it was found."""
        for trial in self.trials:
            said = "diverged" if trial.loss is None else f"held-out loss {trial.loss:.3f}"
            yield f"trial  lr {trial.lr:.2g}: {said} after {trial.steps} steps"
        yield f"chosen  lr {self.lr:.2g}: {self.why}"

    @classmethod
    def from_json(cls, value: Any) -> Rate:
        """Rebuild from :meth:`to_json`'s result.

        Raises:
            ConfigError: When ``value`` is not such a result.
        """
        try:
            return cls(**{**value, "trials": tuple(RateTrial(**each) for each in value["trials"])})
        except (KeyError, TypeError) as error:
            raise ConfigError("the recorded learning rate cannot be read; start anew.") from error


def set_aside(train: Split, seed: int) -> tuple[Split, Split]:
    """Return the training pictures that trials learn, and those that they are judged by."""
    return split_in_two(train, min(HELD_SHARE, HELD_OUT / len(train)), seed)


def decide(default: str, losses: Mapping[str, Tensor]) -> tuple[str, str]:
    """Choose the candidate of the least loss, if that is below the default's by more than noise.

    Args:
        default: A candidate's name.
        losses: Of each that did not diverge, on the same pictures, ``(N,)``.

    Returns:
        A candidate's name, and why it is chosen.
    """
    best = min(losses, key=lambda name: losses[name].mean().item(), default=default)
    if best == default:
        return default, "no candidate has a lower held-out loss."
    if default not in losses:
        return best, f"{default} diverged, and this has the lowest held-out loss."
    gaps = losses[default] - losses[best]
    gap, error = gaps.mean().item(), gaps.std().item() / math.sqrt(len(gaps))
    said = f"{gap:.3f} ± {error:.3f}"
    if gap > error:
        return best, f"its held-out loss is below that of {default} by {said}."
    return default, f"{best} has a lower held-out loss by {said}, which is within the noise."


def usual_rate(opt: str) -> float:
    """Return the learning rate that an optimiser usually wants over a trained backbone."""
    return USUAL.get(opt, USUAL["adamw"])


def find_rate(
    net: nn.Module, data: Data, config: FitConfig, trained: Callable[[nn.Module, Data, FitConfig], object]
) -> Rate:
    """Find a learning rate by short trainings of copies on a part of the training pictures.

    Three rates are tried, a factor of three apart, each with the whole schedule in its few steps, and judged
    by the loss on other training pictures. Another than the usual one is taken if its loss is lower by more
    than the standard error. All of it takes at most 8 % of the training's steps; where these are too few,
    the usual rate is taken untried.

    Args:
        net: An adapted model; it is not changed.
        data: What it shall learn; test and validation pictures are not looked at.
        config: The training that will follow.
        trained: Trains a model on data as settings say.

    Returns:
        The rate; the same for the same arguments.
    """
    if data.train is None:
        raise DataError(f"{data.name} has no training pictures; fit needs some.")
    usual = usual_rate(config.opt)
    part, held = set_aside(data.train, config.seed)
    extra = math.ceil(len(held) / config.step_size / 3)
    limit = int(SHARE * config.epochs * count_steps(len(data.train), config.step_size))
    steps = limit // len(FACTORS) - extra
    rates = [usual * factor for factor in FACTORS]
    if steps < LEAST:
        needed = len(FACTORS) * (LEAST + extra)
        return Rate(usual, f"{SHARE:.0%} of the training is {limit} steps, and trials need about {needed}.")
    few = replace(data, train=part)
    losses: dict[str, Tensor] = {}
    for rate in rates:
        found = tried(copy.deepcopy(net), few, held, config.but(lr=rate), steps, trained)
        if found is not None:
            losses[_named(rate)] = found[0]
    best, why = decide(_named(usual), losses)
    means = {name: each.mean().item() for name, each in losses.items()}
    trials = tuple(RateTrial(rate, steps, means.get(_named(rate))) for rate in sorted(rates))
    return Rate(next(rate for rate in rates if _named(rate) == best), why, trials)


ALONE: dict[str, Any] = {"compile": False, "val_share": 0.0, "keep": "last", "patience": 0, "log": ()}
"""What a trial, which has no validation pictures and tells nobody, does without."""


def tried(
    net: nn.Module,
    data: Data,
    held: Split,
    config: FitConfig,
    steps: int,
    trained: Callable[[nn.Module, Data, FitConfig], object],
    moving: bool = False,
) -> tuple[Tensor, float] | None:
    """Train a model for a few steps, with the whole schedule of ``config`` in these, and judge it.

    Args:
        net: An adapted model; it is trained in place.
        data: Its training pictures are learned, as many as ``steps`` take, evenly of each class.
        held: Pictures to judge by.
        config: The training that the trial stands for.
        steps: Training steps.
        trained: Trains a model on data as settings say.
        moving: Whether running statistics move: then it is judged with the normalisation of each batch, since
            so few steps settle none.

    Returns:
        The cross-entropy of each picture held, in nats, ``(N,)`` in float64, and the share classified
        rightly; ``None`` where the training diverged.
    """
    if data.train is None:
        raise DataError(f"{data.name} has no training pictures; a trial needs some.")
    part, wanted, epochs = data.train, steps * config.step_size, 1
    if wanted < len(part):
        part = balanced(part, wanted, config.seed, "the trial's limit")
    else:
        epochs = steps // count_steps(len(part), config.step_size)
    warmup = config.warmup_epochs / config.epochs * epochs
    unread = held.take(np.arange(1))  # a training tests; all are judged here
    few = replace(data, train=part, test=unread, validation=None)
    try:
        trained(net, few, config.but(epochs=epochs, warmup_epochs=warmup, **ALONE))
        if moving:
            forget_statistics_(net)
        judged = Feed(
            held,
            data.preprocessing,
            device_of(net),
            batch_size=config.batch_size,
            workers=config.workers,
            channels_last=config.channels_last,
        )
        logits, labels = predict_logits(net, judged.epoch(config.seed if moving else None))
    except DivergedError:
        return None
    losses = F.cross_entropy(logits.double(), labels, reduction="none")
    if not torch.isfinite(losses).all():
        return None
    return losses, (logits.argmax(1) == labels).double().mean().item()


def forget_statistics_(net: nn.Module) -> None:
    """Let batch norms go by the batch in evaluation too."""
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean = module.running_var = None


def _named(rate: float) -> str:
    return f"lr {rate:.2g}"
