"""``choose``: which layers deserve how much of a budget, told by short trainings on the user's pictures."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from sparsetune.data import Data, Split, count_steps
from sparsetune.delta import file_bytes, longest_noted
from sparsetune.errors import ConfigError, DataError
from sparsetune.parts import Plan, plan
from sparsetune.runs.spend import LEAST_SAID, is_random, spend, ways
from sparsetune.sliced import adapt_
from sparsetune.spec import AUTO, FitConfig, Learn, Precision
from sparsetune.train import (
    Processes,
    decide,
    fit_quietly,
    pictures_for,
    processes,
    recipe_for,
    set_aside,
    settled,
    tried,
    usual_rate,
)

SHARE = 0.1
"""Most of the training's steps that the comparison may take."""
LEAST, LEAST_RANDOM = 50, 200
"""Steps of a trial from which it tells which of the candidates a whole training would prefer; over a random
backbone shorter ones tell which starts faster."""
SETUP = 10
"""Steps that a trial takes as long as before it is at full speed: a new model, undecoded pictures."""
SLACK = 256
"""Bytes by which a file may differ from what is told before the training: which code a vector has."""
FEW = 32_000
"""Bytes of a budget from which on values are kept in int8, and below in int6: more values are worth more."""
SLOW = ("momentum", "sgd", "nesterov", "yellowfin")
"""Optimisers that trials do not take: under them a low-rank sum starts slowly, for one of its factors starts
at zero, and short trials would tell little of it."""


@dataclass(frozen=True)
class Trial:
    """One candidate, and how it did.

    Attributes:
        name: What it is.
        learn: What it learns.
        learned_parameters: Learned values.
        delta_bytes: Bytes of these and of the running statistics, in the precision in which they are kept.
        steps: Training steps of its last trial; 0 if it was not tried.
        loss: Mean cross-entropy over the held-out pictures after it, in nats; ``None`` if not tried or
            diverged.
        top1: Share of them classified rightly; likewise.
    """

    name: str
    learn: Learn
    learned_parameters: int
    delta_bytes: int
    steps: int = 0
    loss: float | None = None
    top1: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values."""
        return {**vars(self), "learn": self.learn.to_json()}


@dataclass(frozen=True)
class Choice:
    """What a budget is spent on.

    Attributes:
        name: Of the candidate chosen.
        learn: What to learn.
        why: One sentence.
        budget: Most bytes of the delta.
        steps: Training steps that the comparison took.
        trials: Every candidate.
        dtype: The precision in which the delta is to be saved; ``None`` for all bits.
    """

    name: str
    learn: Learn
    why: str
    budget: int
    steps: int
    trials: tuple[Trial, ...]
    dtype: Precision | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the choice as plain JSON values."""
        trials = [trial.to_json() for trial in self.trials]
        return {**vars(self), "learn": self.learn.to_json(), "trials": trials}

    @classmethod
    def from_json(cls, value: Any) -> Choice:
        """Rebuild from :meth:`to_json`'s result.

        Raises:
            ConfigError: When ``value`` is not such a result.
        """
        try:
            trials = tuple(Trial(**{**t, "learn": Learn.from_json(t["learn"])}) for t in value["trials"])
            return cls(**{**value, "learn": Learn.from_json(value["learn"]), "trials": trials})
        except (KeyError, TypeError) as error:
            raise ConfigError("the recorded choice of a budget cannot be read; choose anew.") from error


Choosing = Callable[["Trial | Choice"], None]
"""Called after each trial, and with the choice."""


def kept_in(nbytes: int) -> Precision:
    """Return how a delta that has a budget is kept."""
    return "int8" if nbytes >= FEW else "int6"


def choose(
    net: nn.Module,
    data: Data,
    config: FitConfig,
    nbytes: int,
    *,
    dtype: Precision | None = None,
    base: Learn | None = None,
    training: Mapping[str, Any] | None = None,
    watch: Callable[[Trial], None] | None = None,
) -> Choice:
    """Choose what to learn of ``net`` on ``data`` within a budget of bytes.

    Candidates, which all take the whole budget, are each trained for a few steps on a part of the training
    pictures, with the whole schedule of ``config``, but AdamW in place of SGD. They are judged by the loss
    on other pictures, which are training pictures too. Another than the default of ``candidates`` is chosen
    if its loss is lower by more than the standard error of the mean over these. All steps together, and
    those that setting up and judging take as long as, are at most a tenth of the training's; where they are
    too few, the default is chosen untried.

    Args:
        net: A plain model; it is not changed.
        data: What it shall learn; test pictures are not looked at.
        config: The training that will follow.
        nbytes: The most that the delta's file may take, all that it says of itself included.
        dtype: As it will be saved: ``int8`` has room for nearly four times as many values as ``None``, which
            keeps all bits.
        base: What is learned beside the layers; ``Learn(filters=0)`` if left out. Where it does not say what
            becomes of running statistics, the recipe does.
        training: The longest summary that the file may hold; ``config`` if left out.
        watch: Called after each trial; of several processes, by the main one.

    Returns:
        The choice; the same for the same arguments.

    Raises:
        ConfigError: When the budget is below the least that a delta of the model takes, or as ``fit`` raises.
        DataError: When there are no training pictures, or one cannot be read.
    """
    data = pictures_for(net, data)
    if data.train is None:
        raise DataError(f"{data.name} has no training pictures; fit needs some.")
    base = base or Learn(filters=0)
    base = settled(base, recipe_for(net, data, config, base))
    with processes(config.device, config.amp) as group:
        made: Choice = group.from_main(
            _Comparison(net, data, data.train, config, group, watch, training).choice(nbytes, dtype, base)
        )
        return made


class _Comparison:
    """The pictures of a comparison, and its steps so far."""

    def __init__(
        self,
        net: nn.Module,
        data: Data,
        train: Split,
        config: FitConfig,
        group: Processes,
        watch: Callable[[Trial], None] | None,
        training: Mapping[str, Any] | None,
    ) -> None:
        self.net, self.whole, self.config, self.group, self.watch = net, data, config, group, watch
        self.training = training
        part, self.held = set_aside(train, config.seed)
        self.data = replace(data, train=part)
        self.least = LEAST_RANDOM if is_random(net) else LEAST
        self.steps = 0
        self.losses: dict[str, Tensor] = {}

    def following(self, learn: Learn) -> FitConfig:
        """Return the training of what a candidate learns."""
        return self.config.following(recipe_for(self.net, self.whole, self.config, learn))

    def choice(self, nbytes: int, dtype: Precision | None, base: Learn | None) -> Choice:
        """Run the trials and choose."""
        trials = self._candidates(nbytes, dtype, base)
        default, *others = trials
        config = self.following(trials[default].learn)
        pictures = len(self.whole.train or ())
        limit = int(SHARE * config.epochs * count_steps(pictures, config.step_size, self.group.count))
        extra = SETUP + math.ceil(len(self.held) / config.step_size / 3)
        steps = limit // len(trials) - extra
        if not others:
            name, why = default, f"{nbytes:,} bytes leave no choice."
        elif steps < self.least:
            needed = len(trials) * (self.least + extra)
            short = f"a tenth of the training is {limit} steps, and a comparison needs about {needed}"
            name, why = default, f"{short}; this one is the best in most cases."
        else:
            trials |= {name: self._try(trial, steps) for name, trial in trials.items()}
            name, why = decide(default, self.losses)
        return Choice(name, trials[name].learn, why, nbytes, self.steps, tuple(trials.values()), dtype)

    def _candidates(self, nbytes: int, dtype: Precision | None, base: Learn | None) -> dict[str, Trial]:
        """Every candidate, untried."""
        trials: dict[str, Trial] = self.group.from_main(
            {
                name: Trial(name, one.learn, one.learned_parameters, one.bytes_in(dtype))
                for name, one in self._fitting(nbytes, dtype, base).items()
            }
        )
        return trials

    def _fitting(self, nbytes: int, dtype: Precision | None, base: Learn | None) -> dict[str, Plan]:
        """What each candidate learns, so that the file keeps the budget whatever it says of itself."""
        options: dict[str, Any] = {"base": base, "classes": self.data.classes, "dtype": dtype}
        found: dict[str, Plan] = {}
        for name in ways(self.net, nbytes, base=base, dtype=dtype):
            reserve, excess = LEAST_SAID, 1
            while excess > 0:
                learn = spend(name, self.net, nbytes, reserve=reserve, **options)
                made = plan(self.net, learn or base or Learn(filters=0))
                excess = self._bytes(made, nbytes, dtype) + SLACK - nbytes
                reserve += excess
            if made not in found.values():
                found[name] = made
        return found

    def _bytes(self, made: Plan, nbytes: int, dtype: Precision | None) -> int:
        usual = {"config": self.following(made.learn).decisive, **longest_noted(nbytes)}
        return file_bytes(
            self.net,
            made,
            classes=self.data.classes,
            preprocessing=self.data.preprocessing,
            training=self.training or usual,
            dtype=dtype,
        )

    def _try(self, trial: Trial, steps: int) -> Trial:
        self.steps += steps
        config = self.following(trial.learn)
        found = try_out(self.net, trial.learn, self.data, self.held, config, steps)
        loss = top1 = None
        if found is not None:
            self.losses[trial.name], top1 = found
            loss = self.losses[trial.name].mean().item()
        done: Trial = self.group.from_main(replace(trial, steps=steps, loss=loss, top1=top1))
        if self.watch and self.group.is_main:
            self.watch(done)
        return done


def try_out(
    net: nn.Module,
    learn: Learn,
    data: Data,
    held: Split,
    config: FitConfig,
    steps: int,
) -> tuple[Tensor, float] | None:
    """Train a copy of a plain model for a few steps and judge it.

    The trial has the whole schedule of ``config`` in its few steps, and AdamW in place of SGD. It is judged
    with the normalisation of each batch where running statistics move, since so few steps settle none.

    Args:
        net: A plain model; it is not changed.
        learn: What the copy learns.
        data: Its training pictures are learned, as many as ``steps`` take, evenly of each class.
        held: Pictures to judge by.
        config: The training that the trial stands for.
        steps: Training steps.

    Returns:
        The cross-entropy of each picture held, in nats, ``(N,)`` in float64, and the share classified
        rightly; ``None`` where the training diverged.

    Raises:
        ConfigError: As ``fit`` raises.
        DataError: When there are no training pictures, or one cannot be read.
    """
    if config.lr == AUTO:
        config = config.but(lr=usual_rate(config.opt))
    if config.opt in SLOW:
        config = config.but(opt="adamw", lr=config.rate / 10)
    moving = learn.norm_stats != "frozen"
    return tried(adapt_(copy.deepcopy(net), learn), data, held, config, steps, fit_quietly, moving)
