"""Step time, inference time and memory of one model on the user's machine: ours beside the alternatives.

Every contestant is built from the same backbone and takes the same whole training steps (forward, loss,
backward, SGD with momentum and decay) on the same random batch, in turn, in one process; what counts is
the median ratio.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsetune.adapt import adapt_
from sparsetune.errors import ConfigError
from sparsetune.learn import Learn
from sparsetune.memory import held_bytes, peak_bytes
from sparsetune.plan import Plan, plan


@dataclass(frozen=True)
class Timing:
    """One contestant's figures.

    Attributes:
        name: ``full``, ``ours`` or ``masked``.
        learned_parameters: Values that it learns.
        step_ms: Median time of a training step, in milliseconds.
        step_spread_ms: Fastest and slowest step.
        infer_ms: Median time of a forward pass in evaluation mode.
        step_ratio: Median over rounds of its step time over full training's in the same round.
        infer_ratio: Likewise of its forward pass.
        peak_bytes: Most memory at one time in a training step: model, optimiser, gradients and activations.
        peak_ratio: That over full training's.
    """

    name: str
    learned_parameters: int
    step_ms: float
    step_spread_ms: tuple[float, float]
    infer_ms: float
    step_ratio: float
    infer_ratio: float
    peak_bytes: int
    peak_ratio: float

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain JSON values."""
        return asdict(self)


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
) -> list[Timing]:
    """Measure full training, ours and masked gradients side by side.

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
        A row for each contestant, full training first.

    Raises:
        ConfigError: When the model cannot take pictures of that size.
    """
    made = plan(net, learn)
    contestants = {
        "full": copy.deepcopy(net),
        "ours": adapt_(copy.deepcopy(net), learn),
        "masked": _masked(copy.deepcopy(net), made),
    }
    learned = {
        "full": made.total_parameters,
        "ours": made.learned_parameters,
        "masked": made.learned_parameters,
    }
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch_size, *size, generator=generator).to(device)
    try:
        with torch.no_grad():
            classes = contestants["full"].to(device).eval()(x[:1]).shape[-1]
    except Exception as error:
        shape = "x".join(map(str, x.shape[1:]))
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise ConfigError(
            f"the model cannot take pictures of {shape} ({reason}); try another size."
        ) from error
    y = torch.randint(classes, (batch_size,), generator=generator).to(device)
    runs = {name: _Run(model.to(device), x, y, amp) for name, model in contestants.items()}
    steps: dict[str, list[float]] = {name: [] for name in runs}
    passes: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(warmup + rounds):
        for name, run in runs.items():
            step, infer = _seconds(run.step, device), _seconds(run.infer, device)
            if i >= warmup:
                steps[name].append(step)
                passes[name].append(infer)
        if progress:
            progress(i + 1, warmup + rounds)
    peaks = {name: run.peak_bytes(device) for name, run in runs.items()}
    return [
        Timing(
            name,
            learned[name],
            median(steps[name]) * 1e3,
            (min(steps[name]) * 1e3, max(steps[name]) * 1e3),
            median(passes[name]) * 1e3,
            _ratio(steps[name], steps["full"]),
            _ratio(passes[name], passes["full"]),
            peaks[name],
            peaks[name] / peaks["full"],
        )
        for name in runs
    ]


class _Run:
    """A contestant at work."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, amp: torch.dtype | None) -> None:
        self.model, self.x, self.y = model, x, y
        self.autocast = torch.autocast(x.device.type, amp or torch.bfloat16, enabled=amp is not None)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)

    def step(self) -> None:
        self.model.train()
        with self.autocast:
            loss = F.cross_entropy(self.model(self.x), self.y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def peak_bytes(self, device: str) -> int:
        self.optimizer.zero_grad()
        return held_bytes(self.model, self.optimizer) + peak_bytes(self.step, device)

    def infer(self) -> None:
        self.model.eval()
        with torch.inference_mode(), self.autocast:
            self.model(self.x)


def _masked(net: nn.Module, made: Plan) -> nn.Module:
    """What users write today: every gradient is computed whole, then the frozen part is zeroed."""
    parameters = dict(net.named_parameters())
    for part in made:
        if part.k == 0:
            parameters[part.name].requires_grad_(False)
        elif part.partial:
            mask = torch.zeros(part.shape)
            mask.narrow(part.dim, 0, part.k).fill_(1)
            name = "mask " + part.name.replace(".", " ")
            net.register_buffer(name, mask, persistent=False)
            parameters[part.name].register_hook(lambda grad, name=name: grad * net.get_buffer(name))
    return net


def _seconds(action: Callable[[], None], device: str) -> float:
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    action()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _ratio(ours: list[float], full: list[float]) -> float:
    return median(a / b for a, b in zip(ours, full, strict=True))
