"""One training step: forward, loss, backward, optimiser; in mixed precision, on several processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn

from sparsetune.backbone import logits_of, loss_of
from sparsetune.data import Mix
from sparsetune.errors import ConfigError, SparsetuneError
from sparsetune.host import reason
from sparsetune.narrow import slimming
from sparsetune.parts import ADAPTED, COMPILED, plain_name, unwrapped
from sparsetune.sliced import UNSENT, adapted
from sparsetune.spec import FitConfig
from sparsetune.train import optim  # noqa: F401  (registers YellowFin with timm)
from sparsetune.train.checkpoint import Average, Stateful
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


class _Layered:
    """A model as timm asks it for its layers: all parameters by their plain names, what is frozen too.

    timm numbers layers by the names that it meets, and an adapted model's frozen parameters have none.
    """

    def __init__(self, net: nn.Module) -> None:
        parts = adapted(net).plan.parts if hasattr(net, ADAPTED) else ()
        plain = {name: part.name for part in parts for name in part.learned}
        self.learned = [(plain.get(name, name), value) for name, value in net.named_parameters()]
        self.frozen = {part.name for part in parts} - {name for name, _ in self.learned}
        self.group_matcher = getattr(net, "group_matcher", None)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield each parameter, or an empty one for what is frozen."""
        yield from self.learned
        nothing = nn.Parameter(torch.empty(0), requires_grad=False)
        yield from ((name, nothing) for name in sorted(self.frozen))


def layered(net: nn.Module, decay: float, weight_decay: float) -> list[dict[str, Any]]:
    """Return timm's groups of what ``net`` learns, with ``lr_scale``: ``decay`` for each layer that follows.

    Args:
        net: A model, adapted or not.
        decay: Factor on the learning rate from each layer to the one before.
        weight_decay: Of weights; biases and normalisation have none.

    Raises:
        ConfigError: When timm cannot tell the model's layers.
    """
    model = _Layered(net)
    try:
        layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)  # type: ignore[misc]
    except Exception:  # whatever a matcher that is none, or was never tried, may raise
        layers = {}
    if not max(layers.values(), default=0):
        raise ConfigError(
            f"layer_decay {decay:g} needs layers that timm can tell apart, as group_matcher of its models "
            f"does, and {type(net).__name__} has none; leave it out."
        )
    without: set[str] = getattr(net, "no_weight_decay", set)()
    found: list[dict[str, Any]] = param_groups_layer_decay(
        model, weight_decay=weight_decay, layer_decay=decay, no_weight_decay_list=without
    )
    return found


class Stepper:
    """Model, optimiser and schedule of a training.

    Args:
        net: A model, adapted or not; it is moved to the device. What ``torch.compile`` gave runs compiled.
        config: How to train.
        steps: Steps of the optimiser in an epoch.
        group: The processes that train.
        size: Channels, height and width of a picture.
        tail: Runs in the place of the model, on what its first layers gave.
        weights: What a picture of each class counts, ``(classes,)``; ``None`` for 1.
        mix: Mixes the pictures of a batch, and their labels; ``None`` for nothing.

    Raises:
        ConfigError: When the optimiser cannot be used here, or timm cannot tell the model's layers.
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
        mix: Mix | None = None,
    ) -> None:
        given, net = net, unwrapped(net)
        self.net, self.group, self.config = net.to(group.device), group, config
        self.weights = None if weights is None else weights.to(group.device)
        self.mix = mix
        moved = {b.name for b in adapted(net).plan.buffers} if hasattr(net, ADAPTED) else None
        self._statistics = [
            b for name, b in net.named_buffers() if moved is None or plain_name(name) in moved
        ]
        moving = [p for p in net.parameters() if p.requires_grad] + self._statistics
        self.average = Average(moving, config.model_ema_decay) if config.model_ema else None
        decay = config.layer_decay
        groups = net if decay is None else layered(net, decay, config.weight_decay)
        with _explaining(f"optimiser '{config.opt}' cannot be used here", "choose another"):
            optimizer = create_optimizer_v2(
                groups,
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
        if self.schedule is None:
            for each in optimizer.param_groups:
                each["lr"] *= each.get("lr_scale", 1.0)
        compiled = COMPILED in given._modules
        run: Any = tail or (given if compiled else slimming(net, size) if hasattr(net, ADAPTED) else net)
        if config.compile and not compiled:
            run = torch.compile(run)
        wrapped = _Wrapped(run)
        self.model, self.optimizer = group.accelerator.prepare(wrapped, optimizer)

    @property
    def lr(self) -> float:
        """Learning rate of the last step, of the last layer where there is one for each."""
        first = self.optimizer.param_groups[0]
        return float(first["lr"] / first.get("lr_scale", 1.0))

    @property
    def parts(self) -> dict[str, Stateful]:
        """Whatever a step changes."""
        parts: dict[str, Any] = {"net": self.net, "optimizer": self.optimizer}
        if self.average is not None:
            parts["average"] = self.average
        scaler = self.group.accelerator.scaler
        return parts if scaler is None else {**parts, "scaler": scaler}

    def step(
        self, x: Tensor, y: Tensor, number: int, pictures: int, begins: bool = True, ends: bool = True
    ) -> tuple[float, int]:
        """Learn from one batch, or from this process' rows of it.

        Args:
            x: Pictures ``(B, C, H, W)``.
            y: Their classes ``(B,)``.
            number: Steps of the optimiser before this one, in all epochs.
            pictures: Pictures of the whole step, over all its batches and all processes.
            begins: Whether it is the first batch of its step.
            ends: Whether it is the last one, after which the optimiser moves.

        Returns:
            The loss summed over ``x``, and how many of its pictures were classified rightly; of a mixed one,
            by the class that has the largest share.

        Raises:
            ConfigError: When the model or the optimiser cannot take the step.
        """
        if self.schedule is not None:
            self.schedule.step_update(number)
        shape = "x".join(map(str, x.shape))
        remedy = "try another size, batch size or optimiser"
        with _explaining(f"the model cannot learn from a batch of {shape}", remedy):
            x, y = (part.to(self.group.device, non_blocking=True) for part in (x, y))
            if self.mix is not None:
                x, y = self.mix(x, y)
            accelerator = self.group.accelerator
            with nullcontext() if ends else accelerator.no_sync(self.model):
                output = self.model(x)
                loss, logits = loss_of(output, y, self.config.smoothing, self.weights), logits_of(output)
                if begins:
                    self.optimizer.zero_grad()
                with moved_once(self._statistics):
                    accelerator.backward(loss * (len(y) * self.group.count / pictures))
            if ends:
                self._move()
            right = (logits.detach().argmax(1) == (y.argmax(1) if y.dim() > 1 else y)).sum()
            mean, count = torch.stack([loss.detach().float(), right.float()]).tolist()  # waits for a GPU once
            return mean * len(y), int(count)

    def _move(self) -> None:
        """Take a step along the gradients, and its values into the averages."""
        if self.config.clip_grad:
            self.group.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip_grad)
        self.optimizer.step()
        if self.average is not None:
            self.average.update()

    def settle(self) -> None:
        """Put in place what is evaluated and kept: averages, if any, and the main process' statistics."""
        self.group.share_main(self._statistics)
        if self.average is not None:
            self.average.put()
            self.group.share_main(self._statistics)

    def go_on(self) -> None:
        """Put the values back that training goes on from."""
        if self.average is not None:
            self.average.back()


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
