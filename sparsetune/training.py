"""``fit``: the one training loop, on accelerate; it can be stopped anywhere and goes on from there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from sparsetune.adapt import adapted
from sparsetune.checkpoint import Position, read_checkpoint, write_checkpoint
from sparsetune.config import FitConfig
from sparsetune.data import Data, loader
from sparsetune.errors import ConfigError, DataError
from sparsetune.inference import predict_logits
from sparsetune.metrics import scores

CHECKPOINT_SECONDS = 60.0
"""At least so often a long epoch is saved on the way."""


@dataclass(frozen=True)
class Epoch:
    """One finished epoch.

    Attributes:
        epoch: Its number, from 1.
        lr: Learning rate of its last step.
        train_loss: Mean cross-entropy over its training pictures, in nats, as they were met.
        train_top1: Share of them classified rightly.
        test_loss: Mean cross-entropy over the test pictures after it.
        test_top1: Share of test pictures classified rightly.
        test_top5: Share whose class is among the five likeliest.
        seconds: Wall time, evaluation included, of the part since the last start.
    """

    epoch: int
    lr: float
    train_loss: float
    train_top1: float
    test_loss: float
    test_top1: float
    test_top5: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values."""
        return asdict(self)


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


def fit(
    net: nn.Module,
    data: Data,
    config: FitConfig,
    *,
    checkpoint: Path | None = None,
    resume: bool = False,
    time_budget: float | None = None,
    watch: Watch | None = None,
) -> list[Epoch]:
    """Train an adapted model in place.

    The result depends on the model, the data and ``config`` alone: stopping and going on, or reading with
    more processes, changes no bit of it on a CPU.

    Args:
        net: An adapted model.
        data: What to learn.
        config: How.
        checkpoint: A file to keep the state in, after each epoch and every minute of a long one.
        resume: Go on from ``checkpoint`` if it exists.
        time_budget: Seconds after which to save and stop, at the end of a step.
        watch: Called after each step and each epoch.

    Returns:
        A record for each finished epoch; fewer than ``config.epochs`` when the time ran out.

    Raises:
        ConfigError: When the model is not adapted, or its class count is not the data's.
        DataError: When there are no training pictures, or one cannot be read.
        StorageError: When the checkpoint cannot be written, or is from other settings.
    """
    adapted(net)
    _check_classes(net, data)
    deadline = time.monotonic() + time_budget if time_budget is not None else float("inf")
    with torch.random.fork_rng():
        training = _Training(net, data, config, checkpoint)
        if resume and checkpoint is not None and checkpoint.is_file():
            training.restore(checkpoint)
        while training.position.epoch < config.epochs:
            if not training.run_epoch(deadline, watch):
                break
    return [Epoch(**record) for record in training.position.history]


class _Training:
    """The objects of one training, and its position."""

    def __init__(self, net: nn.Module, data: Data, config: FitConfig, checkpoint: Path | None) -> None:
        if data.train is None:
            raise DataError(f"{data.name} has no training pictures; fit needs some.")
        self.net, self.data, self.config, self.checkpoint = net, data, config, checkpoint
        self.train = data.train
        self.steps = -(-len(self.train) // config.batch_size)
        self.accelerator = _accelerator(config)
        net.to(self.accelerator.device)
        self.optimizer: Optimizer = create_optimizer_v2(
            net, opt=config.opt, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum
        )
        self.scheduler = create_scheduler_v2(
            self.optimizer,
            sched=config.sched,
            num_epochs=config.epochs,
            step_on_epochs=False,
            updates_per_epoch=self.steps,
        )[0]
        self.model, self.stepper = self.accelerator.prepare(net, self.optimizer)
        if config.compile:
            self.model = torch.compile(self.model)
        self.position = Position()

    @property
    def settings(self) -> dict[str, Any]:
        """Whatever must be the same for a training to go on from a checkpoint."""
        same = {
            name: value for name, value in self.config.to_json().items() if name not in ("workers", "device")
        }
        return same | {
            "data": self.data.name,
            "train_count": len(self.train),
            "learn": adapted(self.net).plan.learn.to_json(),
            "fingerprint": adapted(self.net).fingerprint,
        }

    def restore(self, checkpoint: Path) -> None:
        self.position = read_checkpoint(checkpoint, self.settings, self.net, self.optimizer)

    def run_epoch(self, deadline: float, watch: Watch | None) -> bool:
        """Take the rest of the current epoch; return whether it was finished before the deadline."""
        position, started = self.position, time.monotonic()
        saved = started
        if position.step == 0:
            torch.manual_seed(self.config.seed * 1_000_003 + position.epoch)
        loss = torch.tensor(position.loss, dtype=torch.float64)
        correct = torch.tensor(position.correct)
        self.model.train()
        for x, y in self._batches():
            batch_loss, batch_correct = self._step(x, y)
            loss, correct = loss + batch_loss, correct + batch_correct
            position.step += 1
            if watch:
                seen = min(position.step * self.config.batch_size, len(self.train))
                watch(Step(position.epoch + 1, position.step, self.steps, loss.item() / seen))
            now = time.monotonic()
            if now > deadline or now - saved > CHECKPOINT_SECONDS:
                position.loss, position.correct, saved = loss.item(), int(correct), now
                self._save()
            if now > deadline:
                return False
        position.loss, position.correct = loss.item(), int(correct)
        self._finish_epoch(started, watch)
        return True

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from loader(
            self.train,
            self.data.preprocessing,
            batch_size=self.config.batch_size,
            train=True,
            augment=self.data.augment,
            seed=self.config.seed,
            epoch=self.position.epoch,
            skip=self.position.step,
            workers=self.config.workers,
        )

    def _step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step; return the summed loss and the number classified rightly, on the CPU."""
        device = self.accelerator.device
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        if self.scheduler is not None:
            self.scheduler.step_update(self.position.epoch * self.steps + self.position.step)
        with self.accelerator.autocast():
            logits = self.model(x)
            loss = F.cross_entropy(logits, y)
        self.stepper.zero_grad()
        self.accelerator.backward(loss)
        self.stepper.step()
        hits = (logits.detach().argmax(1) == y).sum()
        return loss.detach().double().cpu() * len(y), hits.cpu()

    def _finish_epoch(self, started: float, watch: Watch | None) -> None:
        position, count = self.position, len(self.train)
        logits, labels = predict_logits(
            self.net,
            loader(
                self.data.test,
                self.data.preprocessing,
                batch_size=max(256, self.config.batch_size),
                workers=self.config.workers,
            ),
        )
        found = scores(logits.softmax(1), labels)
        record = Epoch(
            epoch=position.epoch + 1,
            lr=self.optimizer.param_groups[0]["lr"],
            train_loss=position.loss / count,
            train_top1=position.correct / count,
            test_loss=found.nll,
            test_top1=found.top1,
            test_top5=found.top5,
            seconds=time.monotonic() - started,
        )
        history = [*position.history, record.to_json()]
        self.position = Position(epoch=position.epoch + 1, history=history)
        self._save()
        if watch:
            watch(record)

    def _save(self) -> None:
        if self.checkpoint is not None:
            write_checkpoint(self.checkpoint, self.settings, self.position, self.net, self.optimizer)


def _accelerator(config: FitConfig) -> Accelerator:
    precision = config.amp or "no"
    cpu = config.device == "cpu"
    try:
        return Accelerator(mixed_precision=precision, cpu=cpu)
    except ValueError:
        AcceleratorState._reset_state(reset_partial_state=True)
        return Accelerator(mixed_precision=precision, cpu=cpu)


def _check_classes(net: nn.Module, data: Data) -> None:
    count = getattr(net, "num_classes", None)
    if isinstance(count, int) and count != len(data.classes):
        raise ConfigError(
            f"the model has {count} classes but {data.name} has {len(data.classes)}; "
            f"create it with num_classes={len(data.classes)}."
        )
