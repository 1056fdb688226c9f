"""Ours beside the alternatives on the user's machine: time, memory and storage of one model.

Every contestant is built from the same backbone and takes the same whole training steps (forward, loss,
backward, SGD with momentum and decay) on the same random batch, in turn, in one process; what counts is
the median ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsetune.contestants import contestants, learned_parameters
from sparsetune.errors import ConfigError, SparsetuneError
from sparsetune.keeping import keep
from sparsetune.learn import Learn
from sparsetune.memory import held_bytes, learning_bytes, peak_bytes
from sparsetune.outputs import logits_of, loss_of
from sparsetune.plan import plan
from sparsetune.timing import Figure, figure, take_turns

MEASURES = {
    "step": ("training step", "ms"),
    "infer": ("inference", "ms"),
    "peak": ("memory of a step", "bytes"),
    "state": ("gradients and optimiser", "bytes"),
    "file": ("file", "bytes"),
    "load": ("load", "ms"),
    "switch": ("task switch", "ms"),
}
"""What is measured: its name in words, and its unit."""


@dataclass(frozen=True)
class Row:
    """One contestant's figures.

    Attributes:
        name: ``full``, ``ours``, ``masked`` or ``lora``.
        learned_parameters: Values that it learns.
        figures: A figure for each of ``MEASURES`` that it has. ``step`` is a training step, ``infer`` a
            forward pass in evaluation mode, ``peak`` the most memory at one time in a step: model, optimiser,
            gradients and activations, ``state`` what gradients and optimiser hold of it; for the rest see
            :func:`sparsetune.keeping.keep`.
    """

    name: str
    learned_parameters: int
    figures: Mapping[str, Figure]

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain JSON values."""
        value: dict[str, Any] = {"name": self.name, "learned_parameters": self.learned_parameters}
        for measure, each in self.figures.items():
            unit = MEASURES[measure][1]
            value[f"{measure}_{unit}"] = each.median
            value[f"{measure}_spread_{unit}"] = [each.low, each.high]
            value[f"{measure}_ratio"] = each.ratio
        return value


def bench(
    net: nn.Module,
    learn: Learn,
    *,
    batch_size: int = 32,
    size: tuple[int, int, int] = (3, 32, 32),
    device: str = "cpu",
    rounds: int = 10,
    warmup: int = 2,
    amp: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Row], dict[str, str]]:
    """Measure full training, ours, masked gradients and PEFT's LoRA side by side.

    Args:
        net: A plain model; it is copied, not changed.
        learn: What ours and masked gradients learn.
        batch_size: Images a step.
        size: Channels, height and width of an image.
        device: Where to run.
        rounds: Counted rounds; a round is one step and one forward pass of every contestant.
        warmup: Rounds before, not counted.
        amp: Autocast dtype, or ``None`` for full precision.
        progress: Called with the rounds done and the rounds in all.

    Returns:
        A row for each contestant, full training first; and contestant -> why it is missing.

    Raises:
        ConfigError: When the model cannot take pictures of that size.
    """
    made = plan(net, learn)
    models, missing = contestants(net, learn)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch_size, *size, generator=generator).to(device)
    classes = _outputs(models["full"].to(device), x, "the model")
    y = torch.randint(classes, (batch_size,), generator=generator).to(device)
    if "lora" in models:
        try:
            _outputs(models["lora"].to(device), x, "PEFT's model")
        except ConfigError as error:
            missing["lora"] = str(error)
            del models["lora"]
    learned = {name: learned_parameters(name, model, made) for name, model in models.items()}
    runs = {name: _Run(model.to(device), x, y, amp) for name, model in models.items()}
    actions = {
        (name, measure): action
        for name, run in runs.items()
        for measure, action in (("step", run.step), ("infer", run.infer))
    }
    found = take_turns(actions, device, rounds=rounds, warmup=warmup, progress=progress)
    found |= {(name, "peak"): [run.peak_bytes(device)] for name, run in runs.items()}
    found |= {(name, "state"): [run.state_bytes()] for name, run in runs.items()}
    found |= keep(models, device, rounds)
    return [
        Row(
            name,
            learned[name],
            {
                measure: figure(found[name, measure], found.get(("full", measure)))
                for measure in MEASURES
                if (name, measure) in found
            },
        )
        for name in models
    ], missing


class _Run:
    """A contestant at work."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, amp: torch.dtype | None) -> None:
        self.model, self.x, self.y = model, x, y
        self.autocast = torch.autocast(x.device.type, amp or torch.bfloat16, enabled=amp is not None)
        self.optimizer = torch.optim.SGD(
            [each for each in model.parameters() if each.requires_grad],
            lr=1e-3,
            momentum=0.9,
            weight_decay=5e-4,
        )

    def step(self) -> None:
        self.model.train()
        with self.autocast:
            loss = loss_of(self.model(self.x), self.y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def peak_bytes(self, device: str) -> int:
        self.optimizer.zero_grad()
        return held_bytes(self.model, self.optimizer) + peak_bytes(self.step, device)

    def state_bytes(self) -> int:
        return learning_bytes(self.model, self.optimizer)

    def infer(self) -> None:
        self.model.eval()
        with torch.inference_mode(), self.autocast:
            self.model(self.x)


def _outputs(model: nn.Module, x: Tensor, what: str) -> int:
    """Count a model's outputs by running it on one picture."""
    try:
        with torch.no_grad():
            return logits_of(model.eval()(x[:1])).shape[1]
    except SparsetuneError:
        raise
    except Exception as error:
        shape = "x".join(map(str, x.shape[1:]))
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise ConfigError(f"{what} cannot take pictures of {shape} ({reason}); try another size.") from error
