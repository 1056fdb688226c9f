"""One training step: forward, loss, backward, optimiser; in mixed precision, on several processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn

from sparsetune.backbone import logits_of, loss_of
from sparsetune.errors import ConfigError, SparsetuneError
from sparsetune.host import reason
from sparsetune.narrow import slimming
from sparsetune.parts import ADAPTED, COMPILED, plain_name, unwrapped
from sparsetune.sliced import UNSENT, adapted
from sparsetune.spec import FitConfig
from sparsetune.train import optim  # noqa: F401  (registers YellowFin with timm)
from sparsetune.train.checkpoint import Stateful
from sparsetune.train.processes import Processes

FLAG = "grad_checkpointing"
"""timm's attribute of modules that can do it."""


@contextmanager
def recomputing(net: nn.Module, wanted: bool) -> Iterator[None]:
    """Let ``net`` compute activations anew for as long as the context lasts, if that is wanted.

    Args:
        net: A model with timm's ``set_grad_checkpointing``; its own setting is put back.
        wanted: Whether to; if not, nothing is changed.

    Raises:
        ConfigError: When the model has no gradient checkpointing.
    """
    kept = [(module, vars(module)[FLAG]) for module in net.modules() if FLAG in vars(module)]
    if wanted:
        _switch_on(net)
    try:
        yield
    finally:
        for module, was in kept:
            setattr(module, FLAG, was)


@contextmanager
def moved_once(statistics: Sequence[Tensor]) -> Iterator[None]:
    """Leave running statistics as the forward pass left them.

    A layer that a backward pass computes anew, whoever asked for that, counts its batch a second time.

    Args:
        statistics: Of the model whose backward pass runs in the context.
    """
    alike = [[v for v in statistics if v.dtype == dtype] for dtype in {v.dtype for v in statistics}]
    kept = [[torch.empty_like(value) for value in values] for values in alike]
    for values, before in zip(alike, kept, strict=True):
        torch._foreach_copy_(before, values)
    yield
    for values, before in zip(alike, kept, strict=True):
        torch._foreach_copy_(values, before)


def _switch_on(net: nn.Module) -> None:
    refusal = ConfigError(f"{type(net).__name__} has no gradient checkpointing; leave it off.")
    switch = getattr(net, "set_grad_checkpointing", None)
    if not callable(switch):
        raise refusal
    try:
        switch(True)
    except AssertionError as error:  # so timm's models say that they have none
        raise refusal from error


class Stepper:
    """Model, optimiser and schedule of a training.

    Args:
        net: A model, adapted or not; it is moved to the device. What ``torch.compile`` gave runs compiled.
        config: How to train.
        steps: Steps of an epoch.
        group: The processes that train.
        size: Channels, height and width of a picture.
        tail: Runs in the place of the model, on what its first layers gave.
        weights: What a picture of each class counts, ``(classes,)``; ``None`` for 1.

    Raises:
        ConfigError: When the optimiser cannot be used here.
    """

    def __init__(
        self,
        net: nn.Module,
        config: FitConfig,
        steps: int,
        group: Processes,
        size: tuple[int, int, int],
        tail: nn.Module | None = None,
        weights: Tensor | None = None,
    ) -> None:
        given, net = net, unwrapped(net)
        self.net, self.group, self.config = net.to(group.device), group, config
        self.weights = None if weights is None else weights.to(group.device)
        moved = {b.name for b in adapted(net).plan.buffers} if hasattr(net, ADAPTED) else None
        self._statistics = [
            b for name, b in net.named_buffers() if moved is None or plain_name(name) in moved
        ]
        with _explaining(f"optimiser '{config.opt}' cannot be used here", "choose another"):
            optimizer = create_optimizer_v2(
                net,
                opt=config.opt,
                lr=config.rate,
                weight_decay=config.weight_decay,
                momentum=config.momentum,
            )
        self.schedule = create_scheduler_v2(
            optimizer,
            sched=config.sched,
            decay_milestones=list(config.decay_milestones),
            decay_rate=config.decay_rate,
            num_epochs=config.epochs,
            warmup_epochs=config.warmup_epochs,
            warmup_lr=config.rate / 100,
            step_on_epochs=False,
            updates_per_epoch=steps,
        )[0]
        compiled = COMPILED in given._modules
        run: Any = tail or (given if compiled else slimming(net, size) if hasattr(net, ADAPTED) else net)
        if config.compile and not compiled:
            run = torch.compile(run)
        wrapped = _Wrapped(run)
        self.model, self.optimizer = group.accelerator.prepare(wrapped, optimizer)

    @property
    def lr(self) -> float:
        """Learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def parts(self) -> dict[str, Stateful]:
        """Whatever a step changes."""
        parts: dict[str, Any] = {"net": self.net, "optimizer": self.optimizer}
        scaler = self.group.accelerator.scaler
        return parts if scaler is None else {**parts, "scaler": scaler}

    def step(self, x: Tensor, y: Tensor, number: int, pictures: int) -> tuple[float, int]:
        """Learn from one batch, or from this process' rows of it.

        Args:
            x: Pictures ``(B, C, H, W)``.
            y: Their classes ``(B,)``.
            number: Steps taken before, in all epochs.
            pictures: Pictures of the whole batch, over all processes.

        Returns:
            The loss summed over ``x``, and how many of its pictures were classified rightly.

        Raises:
            ConfigError: When the model or the optimiser cannot take the step.
        """
        if self.schedule is not None:
            self.schedule.step_update(number)
        shape = "x".join(map(str, x.shape))
        remedy = "try another size, batch size or optimiser"
        with _explaining(f"the model cannot learn from a batch of {shape}", remedy):
            x, y = (part.to(self.group.device, non_blocking=True) for part in (x, y))
            output = self.model(x)
            loss, logits = loss_of(output, y, self.config.smoothing, self.weights), logits_of(output)
            self.optimizer.zero_grad()
            with moved_once(self._statistics):
                self.group.accelerator.backward(loss * (len(y) * self.group.count / pictures))
            if self.config.clip_grad:
                self.group.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip_grad)
            self.optimizer.step()
            right = (logits.detach().argmax(1) == y).sum()
            mean, count = torch.stack([loss.detach().float(), right.float()]).tolist()  # waits for a GPU once
            return mean * len(y), int(count)

    def share_statistics(self) -> None:
        """Give every process the main one's running statistics."""
        self.group.share_main(self._statistics)


class _Wrapped(nn.Module):
    """Takes what accelerate and DDP put on a model, so that the user's own stays as it is."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        prefix = f"net.{COMPILED}." if COMPILED in net._modules else "net."
        setattr(self, UNSENT, [prefix + name for name in getattr(net, UNSENT, ())])

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


@contextmanager
def _explaining(what: str, remedy: str) -> Iterator[None]:
    """Turn what a library raises into one sentence."""
    try:
        yield
    except SparsetuneError:
        raise
    except Exception as error:
        raise ConfigError(f"{what} ({reason(error)}); {remedy}.") from error
