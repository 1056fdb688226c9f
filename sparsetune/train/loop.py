"""``fit``: the one training loop; it can be stopped anywhere and goes on exactly from there."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sparsetune.backbone import check_classifier
from sparsetune.data import Augment, Data, Feed, Seen, Split, count_steps
from sparsetune.delta import check_savable
from sparsetune.errors import ConfigError, DataError, DivergedError, notify
from sparsetune.host import is_main, keep_freed_memory
from sparsetune.parts import unwrapped
from sparsetune.sliced import Taught, adapted, taught, teach
from sparsetune.spec import AUTO, FitConfig
from sparsetune.train.checkpoint import (
    COUNT,
    DATA,
    DIGEST,
    Best,
    Position,
    Stateful,
    random_state,
    read_checkpoint,
    write_checkpoint,
)
from sparsetune.train.inputs import meet_classes, pictures_for
from sparsetune.train.metrics import Scores, joined_rows, predict_logits, score
from sparsetune.train.prefix import KeptFeed, Tail, fits, tail_of
from sparsetune.train.processes import Processes, processes
from sparsetune.train.recipe import augmented, class_weights, find_rate, parted, recipe_for, start_
from sparsetune.train.step import Stepper, recomputing

AnyFeed = Feed | KeptFeed

CHECKPOINT_SECONDS = 60.0
"""At least so often a long epoch is saved on the way."""


@dataclass(frozen=True)
class Epoch:
    """One finished epoch.

    Where the data has a validation split beside the test split, every epoch is looked at with that, and the
    test pictures are kept for the last one. Elsewhere there are no ``validation`` values.

    Attributes:
        epoch: Its number, from 1.
        lr: Learning rate of its last step.
        train_loss: Mean cross-entropy over its training pictures, in nats, as they were met.
        train_top1: Share of them classified rightly.
        test_loss: Mean cross-entropy over the test pictures after it.
        test_top1: Share of test pictures classified rightly.
        test_top5: Share whose class is among the five likeliest, where there are more classes.
        seconds: Wall time, evaluation included, of the part since the last start.
        validation_loss: As ``test_loss``, over the validation pictures.
        validation_top1: Likewise.
        validation_top5: Likewise.
        kept: Of a training's last epoch, the one whose values are kept where that is another; the test is
            theirs.
        stopped: Whether the training ended with it, before all its epochs.
    """

    epoch: int
    lr: float
    train_loss: float
    train_top1: float
    test_loss: float | None = None
    test_top1: float | None = None
    test_top5: float | None = None
    seconds: float = 0.0
    validation_loss: float | None = None
    validation_top1: float | None = None
    validation_top5: float | None = None
    kept: int | None = None
    stopped: bool | None = None

    @property
    def watched(self) -> Literal["validation", "test"]:
        """The split that every epoch is looked at with."""
        return "test" if self.validation_top1 is None else "validation"

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values, those that were measured."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Step:
    """One training step, for whoever shows progress.

    Attributes:
        epoch: The epoch it belongs to, from 1.
        step: Steps taken in the epoch.
        steps: Steps of a whole epoch.
        loss: Mean loss of the epoch so far.
    """

    epoch: int
    step: int
    steps: int
    loss: float


Watch = Callable[["Step | Epoch"], None]
Looked = Callable[[Tensor, Tensor], None]


def fit(
    net: nn.Module,
    data: Data,
    config: FitConfig | None = None,
    *,
    checkpoint: Path | None = None,
    resume: bool = False,
    time_budget: float | None = None,
    watch: Watch | None = None,
    looked: Looked | None = None,
) -> list[Epoch]:
    """Train an adapted model in place; it is left in evaluation mode, on the device that it was trained on.

    Settings that ``config`` leaves out follow the backbone: over a random one they are the paper's, over
    trained weights those of a transfer (:data:`~sparsetune.spec.recipe.TRANSFER`), where also a classifier
    that was drawn anew starts at zero, and running statistics stay as they are unless ``Learn`` says
    otherwise.

    The result depends on the model, the data and ``config`` alone: stopping and going on, or reading with
    more workers, changes no bit of it on a CPU. The caller's random state is not touched. Where the C library
    is glibc, the process keeps memory that it frees from then on: a step frees what the next one needs.

    Layers that were put into evaluation mode (``net.train(); net.bn1.eval()``) stay in it: their running
    statistics are frozen. A model that is in evaluation mode as a whole, as :func:`load` gives it, trains in
    training mode.

    Several processes that ``torchrun`` or ``accelerate launch`` started train together: each takes its rows
    of every batch, and only the learned slices' gradients and running statistics travel. Each returns the
    same model, equal but for rounding to a single process'; batch normalisation sees a process' own rows.

    Args:
        net: An adapted model.
        data: What to learn; the pictures are what :func:`~sparsetune.train.inputs.pictures_for` decides.
        config: How; left out, all as the backbone wants it.
        checkpoint: A file to keep the state in, after each epoch and every minute of a long one.
        resume: Go on from ``checkpoint`` if it exists.
        time_budget: Seconds after which to save and stop, at the end of a step.
        watch: Called after each step and each epoch.
        looked: Called with the logits ``(N, classes)`` and labels of the test pictures, in their order, once
            the last epoch has looked at them.

    Returns:
        A record for each finished epoch; fewer than ``config.epochs`` when the time ran out.

    Raises:
        ConfigError: When the model is not adapted or learns nothing, its class count is not the data's,
            model, optimiser or device cannot do what ``config`` asks.
        DivergedError: When the loss is no longer finite.
        DataError: When there are no training pictures, or one cannot be read.
        StorageError: When the checkpoint cannot be written, or is from other settings or other data.
    """
    inside = unwrapped(net)
    _check(inside, data)
    state, opened = adapted(inside), data
    data = pictures_for(inside, data)
    meet_classes(inside, data.classes)
    config = config or FitConfig()
    recipe = recipe_for(inside, data, config, state.plan.learn)
    for line in state.plan.notes if config.complete else (*state.plan.notes, *recipe.words):
        notify(line)
    config = config.following(recipe)
    data = augmented(parted(data, config), config)
    if config.lr == AUTO:
        config = config.but(lr=find_rate(inside, data, config, fit).lr)
    start_(inside, recipe, state.plan.learn)
    earlier = taught(inside).seen
    teach(inside, Taught(data.classes, data.preprocessing, opened.preprocessing, earlier))
    same = {"learn": state.plan.learn.to_json(), "fingerprint": state.fingerprint}
    history = train(
        net,
        data,
        config,
        same,
        checkpoint=checkpoint,
        resume=resume,
        time_budget=time_budget,
        watch=watch,
        looked=looked,
    )
    if is_finished(history, config) and is_main():
        teach(inside, replace(taught(inside), seen=_seen(data, earlier)))
    return history


def is_finished(history: Sequence[Epoch], config: FitConfig) -> bool:
    """Whether a training with such a history is done."""
    return len(history) == config.epochs or bool(history and history[-1].stopped)


def train(
    net: nn.Module,
    data: Data,
    config: FitConfig,
    same: dict[str, Any],
    *,
    checkpoint: Path | None = None,
    resume: bool = False,
    time_budget: float | None = None,
    watch: Watch | None = None,
    looked: Looked | None = None,
) -> list[Epoch]:
    """Do what :func:`fit` does for any classifier: those of its parameters learn that require gradients.

    Beside what ``fit`` takes, ``same`` are plain JSON values that say which model this is; a checkpoint of
    another is refused.
    """
    deadline = time.monotonic() + time_budget if time_budget is not None else float("inf")
    keep_freed_memory()
    with (
        torch.random.fork_rng(),
        recomputing(unwrapped(net), config.grad_checkpointing),
        processes(config.device, config.amp) as group,
    ):
        check_classifier(net, data.preprocessing.size, len(data.classes), data.name)
        training = _Training(net, data, config, same, checkpoint, group)
        if resume and checkpoint is not None and checkpoint.is_file():
            training.position = read_checkpoint(checkpoint, training.settings, training.parts, group.index)
        try:
            while not training.is_finished and training.run_epoch(deadline, watch):
                pass
        finally:
            net.eval()
        if looked and training.look and training.is_finished:
            looked(*training.look)
    return [Epoch(**record) for record in training.position.history]


class _Training:
    """The objects of one training, and its position."""

    def __init__(
        self,
        net: nn.Module,
        data: Data,
        config: FitConfig,
        same: dict[str, Any],
        checkpoint: Path | None,
        group: Processes,
    ) -> None:
        if data.train is None:
            raise DataError(f"{data.name} has no training pictures; fit needs some.")
        smallest = min(config.batch_size, len(data.train))
        if smallest < 2 * group.count > 2:
            raise ConfigError(
                f"a batch of {smallest} is too small for {group.count} processes; "
                f"each needs two pictures, so give {2 * group.count} or more."
            )
        self.net, self.data, self.config, self.checkpoint = unwrapped(net), data, config, checkpoint
        self.train, self.group, self.same = data.train, group, same
        self.steps = count_steps(len(self.train), config.batch_size, group.count)
        tail, self.feeds = self._kept(net)
        weights = class_weights(self.train.labels, len(data.classes)) if config.class_weights else None
        size = data.preprocessing.size
        self.stepper = Stepper(net, config, self.steps, group, size, tail, weights)
        self.position = Position()
        self.best = Best(self.net)
        self.look: tuple[Tensor, Tensor] | None = None
        for name, needed in (("keep 'best'", config.keep == "best"), ("patience", config.patience > 0)):
            if needed and data.validation is None:
                raise ConfigError(
                    f"{name} looks at validation pictures and {data.name} has none; hold some out with "
                    "val_share=0.1 (--val-share), or leave it out."
                )

    @property
    def parts(self) -> dict[str, Stateful]:
        """Whatever a training changes, by name."""
        parts = self.stepper.parts
        return {**parts, "best": self.best} if self.config.keep == "best" else parts

    @property
    def is_finished(self) -> bool:
        """Whether there is no epoch left to train."""
        return is_finished([Epoch(**record) for record in self.position.history], self.config)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Whatever must be the same for a training to go on from a checkpoint."""
        which = {DATA: self.data.name, COUNT: len(self.train), DIGEST: self.data.digest()}
        return {**self.config.decisive, **which, **self.same}

    def run_epoch(self, deadline: float, watch: Watch | None) -> bool:
        """Take the rest of the current epoch; return whether it was finished before the deadline."""
        position, started = self.position, time.monotonic()
        saved = started
        if position.step == 0:
            seed = self.config.seed * 1_000_003 + position.epoch
            torch.manual_seed((seed + self.group.index * 2_000_029) % 2**64)
        if not self.net.training:
            self.net.train()
        view = position.epoch % self.config.views if self.config.views else position.epoch
        for x, y in self.feeds[0].epoch(self.config.seed, position.epoch, position.step, view):
            done = position.step * self.config.batch_size
            last = position.step == self.steps - 1
            pictures = len(self.train) - done if last else self.config.batch_size
            number = position.epoch * self.steps + position.step
            loss, correct = self.stepper.step(x, y, number, pictures)
            now = time.monotonic()
            late, due = (self.group.is_main and now > then for then in (deadline, saved + CHECKPOINT_SECONDS))
            *sums, late_all, due_all = self.group.total([loss, correct, late, due])
            position.step, position.loss = position.step + 1, position.loss + sums[0]
            position.correct += int(sums[1])
            if watch:
                mean = position.loss / (done + pictures)
                watch(Step(position.epoch + 1, position.step, self.steps, mean))
            if late_all or due_all:
                self._save()
                saved = now
            if late_all:
                return False
        self._finish_epoch(started, watch)
        return True

    def _kept(self, net: nn.Module) -> tuple[Tail | None, tuple[AnyFeed, AnyFeed]]:
        """What of the model a step needs, and batches for it: of training pictures, and of those watched."""
        feed, watched = self._feed(self.train, self.data.augment), self._feed(self.data.watched)
        alone = self.group.count == 1 and net is self.net and not self.config.compile
        if not self.config.views or not alone:
            return None, (feed, watched)
        self.net.to(self.group.device)
        tail = tail_of(self.net, next(iter(watched.in_order(0, 0, 2))))
        if tail is None or not fits(feed, tail, self.config.views):
            return None, (feed, watched)
        return tail, (KeptFeed(feed, tail), KeptFeed(watched, tail))

    def _feed(self, split: Split, augment: Augment | None = None) -> Feed:
        return Feed(
            split,
            self.data.preprocessing,
            self.group.device,
            batch_size=self.config.batch_size,
            augment=augment,
            workers=self.config.workers,
            share=self.group.share,
            channels_last=self.config.channels_last,
        )

    def _finish_epoch(self, started: float, watch: Watch | None) -> None:
        position, count = self.position, len(self.train)
        self._check_finite(position.loss)
        self.stepper.share_statistics()
        epoch, kept, stopped = position.epoch + 1, None, None
        found = {"test" if self.data.validation is None else "validation": self._scores(self.feeds[1])}
        if "validation" in found:
            losses = [*(record["validation_loss"] for record in position.history), found["validation"].nll]
            best = 1 + losses.index(min(losses))
            if self.config.keep == "best" and best == epoch:
                self.best.note()
            last = epoch == self.config.epochs
            stopped = (0 < self.config.patience <= epoch - best and not last) or None
            if stopped or last:
                if self.config.keep == "best" and best != epoch:
                    self.best.restore()
                    kept = best
                found["test"] = self._scores(self._feed(self.data.test))
        record = Epoch(
            epoch=epoch,
            lr=self.stepper.lr,
            train_loss=position.loss / count,
            train_top1=position.correct / count,
            seconds=time.monotonic() - started,
            kept=kept,
            stopped=stopped,
            **{
                f"{split}_{name}": value
                for split, each in found.items()
                for name, value in (("loss", each.nll), ("top1", each.top1), ("top5", each.top5))
            },
        )
        self.position = Position(position.epoch + 1, history=[*position.history, record.to_json()])
        self._save()
        if watch:
            watch(record)

    def _scores(self, feed: AnyFeed) -> Scores:
        net, rows = (feed.tail, feed.feed.rows()) if isinstance(feed, KeptFeed) else (self.net, feed.rows())
        own = *predict_logits(net, feed.epoch()), torch.from_numpy(np.concatenate([np.arange(0), *rows]))
        logits, labels, numbers = (joined_rows(self.group.all_of(each)) for each in own)
        order = numbers.argsort()
        self.look = logits[order], labels[order]
        found = score(*self.look)
        self._check_finite(found.nll)
        return found

    def _save(self) -> None:
        self._check_finite(self.position.loss)
        if self.checkpoint is None:
            return
        states = self.group.all_of(random_state())
        if self.group.is_main:
            write_checkpoint(self.checkpoint, self.settings, self.position, self.parts, states)

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss became {loss} in epoch {self.position.epoch + 1}; "
                f"lower lr {self.config.rate:g}, or choose another optimiser than {self.config.opt}."
            )


def _seen(data: Data, earlier: Seen | None) -> Seen | None:
    """What a file is to say of the pictures; nothing where one has gone since it was learned."""
    if data.train is None:
        return None
    try:
        return Seen.of(data.train.keys(), data.test.keys(), earlier)
    except DataError:
        return None


def _check(net: nn.Module, data: Data) -> None:
    check_savable(net)
    if not adapted(net).plan.learned_parameters:
        raise ConfigError("nothing is left to learn; give a larger fraction, or learn norm or head.")
    count = getattr(net, "num_classes", None)
    if isinstance(count, int) and count != len(data.classes):
        raise ConfigError(
            f"the model has {count} classes but {data.name} has {len(data.classes)}; "
            f"create it with num_classes={len(data.classes)}."
        )
