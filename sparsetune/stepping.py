"""One training step: forward, loss, backward, optimiser; in mixed precision if asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from sparsetune.checkpoint import Stateful
from sparsetune.config import FitConfig
from sparsetune.errors import ConfigError, SparsetuneError
from sparsetune.machine import pick_device

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Stepper:
    """Model, optimiser, schedule and precision of a training; nothing in the process beside them changes.

    Args:
        net: An adapted model; it is moved to the device.
        config: How to train.
        steps: Steps of an epoch.

    Raises:
        ConfigError: When the device or the optimiser cannot be used here.
    """

    def __init__(self, net: nn.Module, config: FitConfig, steps: int) -> None:
        self.device = pick_device(config.device)
        self.net = net.to(self.device)
        self.model: Callable[[Tensor], Tensor] = torch.compile(net) if config.compile else net
        with _explaining(f"optimiser '{config.opt}' cannot be used here", "choose another"):
            self.optimizer: Optimizer = create_optimizer_v2(
                net, opt=config.opt, lr=config.lr, weight_decay=config.weight_decay, momentum=config.momentum
            )
        self.schedule = create_scheduler_v2(
            self.optimizer,
            sched=config.sched,
            num_epochs=config.epochs,
            step_on_epochs=False,
            updates_per_epoch=steps,
        )[0]
        kind = self.device.type
        self.autocast = torch.autocast(kind, DTYPES.get(config.amp or ""), enabled=config.amp is not None)
        self.scaler = torch.amp.GradScaler(kind, enabled=config.amp == "fp16")

    @property
    def lr(self) -> float:
        """Learning rate of the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def parts(self) -> dict[str, Stateful]:
        """Whatever a step changes."""
        return {"net": self.net, "optimizer": self.optimizer, "scaler": self.scaler}

    def step(self, x: Tensor, y: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Learn from one batch.

        Args:
            x: Pictures ``(B, C, H, W)``.
            y: Their classes ``(B,)``.
            number: Steps taken before, in all epochs.

        Returns:
            The loss summed over the batch, and how many pictures were classified rightly; on the CPU.

        Raises:
            ConfigError: When the model or the optimiser cannot take the step.
        """
        if self.schedule is not None:
            self.schedule.step_update(number)
        shape = "x".join(map(str, x.shape))
        remedy = "try another size, batch size or optimiser"
        with _explaining(f"the model cannot learn from a batch of {shape}", remedy):
            x, y = x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
            with self.autocast:
                logits = self.model(x)
                loss = F.cross_entropy(logits, y)
            self.optimizer.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            right = (logits.detach().argmax(1) == y).sum()
            return loss.detach().cpu().double() * len(y), right.cpu()


@contextmanager
def _explaining(what: str, remedy: str) -> Iterator[None]:
    """Turn what a library raises into one sentence."""
    try:
        yield
    except SparsetuneError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise ConfigError(f"{what} ({reason}); {remedy}.") from error
