"""``fit``: the one training loop; it can be stopped anywhere and goes on exactly from there."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsetune.backbone import check_classifier
from sparsetune.data import Augment, Data, Feed, Seen, Split, count_steps, mixing
from sparsetune.delta import check_savable
from sparsetune.errors import ConfigError, DataError, DivergedError, StorageError, notify
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
    read_settings,
    write_checkpoint,
)
from sparsetune.train.history import Epoch, History, Start, Step, Watch, is_finished, shown, unwatched
from sparsetune.train.inputs import meet_classes, pictures_for
from sparsetune.train.metrics import Scores, joined_rows, predict_logits, score
from sparsetune.train.prefix import KeptFeed, Tail, place, tail_of
from sparsetune.train.processes import Interrupts, Processes, processes
from sparsetune.train.recipe import (
    Rate,
    augmented,
    class_weights,
    find_rate,
    oversampled,
    parted,
    recipe_for,
    start_,
)
from sparsetune.train.step import Stepper, recomputing

AnyFeed = Feed | KeptFeed

CHECKPOINT_SECONDS = 60.0
"""At least so often a long epoch is saved on the way."""
Looked = Callable[[Tensor, Tensor], None]
RATE = "rate"
"""Where a checkpoint holds how the learning rate was found."""


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
) -> History:
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
        watch: Called after each step and each epoch; left out, a bar is shown where stderr is a terminal, and
            in a notebook.
        looked: Called with the logits ``(N, classes)`` and labels of the pictures that the training is judged
            by, in their order, once the last epoch has looked at them.

    Returns:
        A record for each finished epoch, a list that prints itself as a table; fewer than ``config.epochs``
        when the time ran out. It knows the settings as they were followed, and how the rate was found.

    Raises:
        ConfigError: When the model is not adapted or learns nothing, its class count is not the data's,
            model, optimiser or device cannot do what ``config`` asks.
        DivergedError: When the loss is no longer finite.
        DataError: When there are no training pictures, or one cannot be read.
        StorageError: When the checkpoint cannot be written, or is from other settings or other data.
    """
    began, inside = time.monotonic(), unwrapped(net)
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
    rate = None
    if config.lr == AUTO:
        known = read_settings(checkpoint).get(RATE) if resume and checkpoint else None
        rate = Rate.from_json(known) if known else find_rate(inside, data, config, fit_quietly)
        config = config.but(lr=rate.lr)
    start_(inside, recipe, state.plan.learn)
    earlier = taught(inside).seen
    teach(inside, Taught(data.classes, data.preprocessing, opened.preprocessing, earlier))
    same = {"learn": state.plan.learn.to_json(), "fingerprint": state.fingerprint}
    same |= {RATE: rate.to_json()} if rate else {}
    if time_budget is not None:
        time_budget -= time.monotonic() - began
    how: Any = {"checkpoint": checkpoint, "resume": resume, "time_budget": time_budget, "looked": looked}
    with shown(config.epochs) if watch is None else nullcontext(watch) as told:
        records = train(net, data, config, same, **how, watch=told)
    about = Start(state.backbone, state.plan, data, config, rate).lines()
    history = History(records, config, recipe, rate, [*about])
    if history.finished and is_main():
        teach(inside, replace(taught(inside), seen=_seen(data, earlier)))
    return history


def fit_quietly(net: nn.Module, data: Data, config: FitConfig) -> None:
    """Do what :func:`fit` does, and show nothing of it."""
    fit(net, data, config, watch=unwatched)


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
        processes(config.device, config.amp, config.log, checkpoint and checkpoint.parent) as group,
    ):
        check_classifier(net, data.preprocessing.size, len(data.classes), data.name)
        training = _Training(net, data, config, same, checkpoint, group)
        if resume and checkpoint is not None and checkpoint.is_file():
            training.position = read_checkpoint(checkpoint, training.settings, training.parts, group.index)
            if data.test is None:  # versions before this one called what was held out the test
                training.position.history = [_renamed(each) for each in training.position.history]
            training.check_position(checkpoint)
        try:
            with group.logging({DATA: data.name, **config.decisive}):
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
        weighted = config.class_weights
        self.train = oversampled(data.train) if weighted == "oversample" else data.train
        self.group, self.same = group, same
        self.steps = count_steps(len(self.train), config.batch_size, group.count)
        self.updates = -(-self.steps // config.grad_accum_steps)
        tail, self.feeds = self._kept(net)
        weights = class_weights(self.train.labels, len(data.classes)) if weighted == "balanced" else None
        size = data.preprocessing.size
        mix = mixing(config.mixup, config.cutmix, len(data.classes))
        self.stepper = Stepper(net, config, self.updates, group, size, tail, weights, mix)
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
    def watched(self) -> str:
        """The split that every epoch is looked at with."""
        return "test" if self.data.validation is None else "validation"

    @property
    def is_finished(self) -> bool:
        """Whether there is no epoch left to train."""
        return is_finished([Epoch(**record) for record in self.position.history[-1:]], self.config)

    def check_position(self, checkpoint: Path) -> None:
        """Refuse a position, read from ``checkpoint``, that this training cannot be at.

        Raises:
            StorageError: When it lies beyond the end, or its epochs were looked at with another split.
        """
        place, epochs = self.position, self.config.epochs
        if place.step > self.steps or place.epoch > epochs:
            what = f"stands at step {place.step} of {self.steps} after {place.epoch} of {epochs} epochs"
        elif any(f"{self.watched}_loss" not in record for record in place.history):
            what = f"has epochs without {self.watched} pictures"
        else:
            return
        raise StorageError(f"{checkpoint} {what}; remove it to start anew.")

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
        together = self.config.grad_accum_steps
        view = position.epoch % self.config.views if self.config.views else position.epoch
        with Interrupts() as interrupts:
            for x, y in self.feeds[0].epoch(self.config.seed, position.epoch, position.step, view):
                update, place = divmod(position.step, together)
                pictures = self._before((update + 1) * together) - self._before(update * together)
                ends = place == together - 1 or position.step == self.steps - 1
                number = position.epoch * self.updates + update
                loss, correct = self.stepper.step(x, y, number, pictures, place == 0, ends)
                now, is_main = time.monotonic(), self.group.is_main
                late = (is_main and now > deadline) or bool(interrupts.pending)
                due = is_main and now > saved + CHECKPOINT_SECONDS
                *sums, late_all, due_all = self.group.total([loss, correct, late, due])
                position.step, position.loss = position.step + 1, position.loss + sums[0]
                position.correct += int(sums[1])
                if watch:
                    mean = position.loss / self._before(position.step)
                    watch(Step(position.epoch + 1, position.step, self.steps, mean))
                if ends and (late_all or due_all):
                    self._save()
                    saved = now
                if ends and late_all:
                    return False
        self._finish_epoch(started, watch)
        return True

    def _before(self, step: int) -> int:
        """Pictures of an epoch before a batch."""
        return len(self.train) if step >= self.steps else step * self.config.batch_size

    def _kept(self, net: nn.Module) -> tuple[Tail | None, tuple[AnyFeed, AnyFeed]]:
        """What of the model a step needs, and batches for it: of training pictures, and of those watched."""
        feed, watched = self._feed(self.train, self.data.augment), self._feed(self.data.watched)
        alone = self.group.count == 1 and net is self.net and not self.config.compile
        if not self.config.views or not alone:
            return None, (feed, watched)
        self.net.to(self.group.device)
        tail = tail_of(self.net, next(iter(watched.in_order(0, 0, 2))))
        where = tail and place((feed, watched), tail, self.config.views, self.config.cache_bytes)
        if tail is None or where is None:
            return None, (feed, watched)
        return tail, (KeptFeed(feed, tail, where == "disk"), KeptFeed(watched, tail, where == "disk"))

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
        self.stepper.settle()
        epoch, kept, stopped = position.epoch + 1, None, None
        last = epoch == self.config.epochs
        found = {self.watched: self._scores(self.feeds[1])}
        if "validation" in found:
            losses = [*(record["validation_loss"] for record in position.history), found["validation"].nll]
            best = 1 + losses.index(min(losses))
            if self.config.keep == "best" and best == epoch:
                self.best.note()
            stopped = (0 < self.config.patience <= epoch - best and not last) or None
            if stopped or last:
                if self.config.keep == "best" and best != epoch:
                    self.best.restore()
                    kept = best
                if self.data.test is not None:
                    found["test"] = self._scores(self._feed(self.data.test))
        if not (stopped or last):
            self.stepper.go_on()
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
        self.group.log(record.epoch, record.to_json())
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


def _renamed(record: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("test_", "validation_"): value for name, value in record.items()}


def _seen(data: Data, earlier: Seen | None) -> Seen | None:
    """What a file is to say of the pictures; nothing where one has gone since it was learned."""
    if data.train is None:
        return None
    try:
        return Seen.of(data.train.keys(), data.judged.keys(), earlier)
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
