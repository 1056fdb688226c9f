"""``YellowFin``, which tunes learning rate and momentum itself; timm's registry knows it as ``yellowfin``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from timm.optim._optim_factory import OptimInfo, default_registry
from torch import Tensor

from sparsetune.errors import ConfigError
from sparsetune.spec import YELLOWFIN

TINY = 1e-12
HUGE = 1e30
"""Quotients are kept between these where gradients vanish, or do not vary."""


class YellowFin(torch.optim.Optimizer):
    """SGD with momentum whose rate and momentum are measured (Zhang and Mitliagkas, 2017).

    From running averages of the gradient ``g`` it takes the extremes of the curvature ``h = |g|²`` over a
    window of steps, the variance ``C`` of ``g``, and the distance ``D = mean(|g| / mean(h))`` to the optimum,
    and then the momentum ``m`` and rate ``r`` that make one step on a noisy quadratic come closest::

        minimise m D² + r² C   where   √m ≥ (√(hmax / hmin) - 1) / (√(hmax / hmin) + 1)
                               and     r = (1 - √m)² / hmin

    All averages are corrected for their start at zero. Rate and momentum follow the tuned values by an
    average that starts at ``lr`` and ``momentum``; in the first ``10 * window`` steps the tuned rate is held
    back.

    Args:
        params: Parameters or parameter groups.
        lr: The rate at the start. A schedule that lowers it lowers the tuned rate by the same factor.
        momentum: The momentum at the start.
        weight_decay: Added to the gradient, times the weight, after measuring.
        beta: Of the running averages.
        window: Steps over which the curvature's extremes are taken.

    Raises:
        ConfigError: For settings out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        beta: float = 0.999,
        window: int = 20,
    ) -> None:
        if not lr > 0 or not 0 <= momentum < 1 or not 0 < beta < 1 or window < 1:
            raise ConfigError(
                f"YellowFin cannot start from lr {lr!r}, momentum {momentum!r}, beta {beta!r} and window "
                f"{window!r}; lr must be above 0, momentum and beta between 0 and 1, window 1 or more."
            )
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "beta": beta, "window": window, "start": lr})
        averages = dict.fromkeys(("low", "high", "norm", "square", "distance"), 0.0)
        self.param_groups[0]["tuner"] = {
            "step": 0,
            "rate": lr,
            "momentum": momentum,
            "recent": [],
            **averages,
        }

    @property
    def _tuner(self) -> dict[str, Any]:
        """The measurements; they lie in the first group, so that they are saved and restored with it."""
        tuner: dict[str, Any] = self.param_groups[0]["tuner"]
        return tuner

    @property
    def tuned(self) -> tuple[float, float]:
        """Rate and momentum of the next step, before any schedule."""
        return self._tuner["rate"], self._tuner["momentum"]

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Measure the gradient, tune, and take one step.

        Args:
            closure: Computes the loss and its gradient again, for loops that want that.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        learned = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if learned:
            self._measure([p for p, _ in learned])
            for parameter, group in learned:
                self._move(parameter, group)
        return loss

    def _measure(self, parameters: list[Tensor]) -> None:
        first, tuner = self.param_groups[0], self._tuner
        beta, window = first["beta"], first["window"]
        tuner["step"] += 1
        debias = 1 - beta ** tuner["step"]
        gradients = [p.grad for p in parameters if p.grad is not None]
        square = float(sum(g.float().square().sum() for g in gradients))

        tuner["recent"] = [*tuner["recent"], square][-window:]
        extremes = {"low": min(tuner["recent"]), "high": max(tuner["recent"])}
        for name, value in {**extremes, "square": square, "norm": math.sqrt(square)}.items():
            tuner[name] = beta * tuner[name] + (1 - beta) * value
        ratio = tuner["norm"] / max(tuner["square"], TINY)
        tuner["distance"] = beta * tuner["distance"] + (1 - beta) * ratio

        mean_square = 0.0
        for parameter in parameters:
            state = self.state[parameter]
            mean = state.setdefault("mean", torch.zeros_like(parameter))
            mean.lerp_(parameter.grad, 1 - beta)
            mean_square += float(mean.float().square().sum())
        variance = tuner["square"] / debias - mean_square / debias**2

        if tuner["step"] > 1:
            rate, momentum = single_step(
                max(variance, 0.0), tuner["distance"] / debias, tuner["high"] / debias, tuner["low"] / debias
            )
            rate *= min(1.0, tuner["step"] / (10 * window))
            tuner["rate"] = beta * tuner["rate"] + (1 - beta) * rate
            tuner["momentum"] = beta * tuner["momentum"] + (1 - beta) * momentum

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        rate, momentum = self.tuned
        gradient = parameter.grad.add(parameter, alpha=group["weight_decay"])  # type: ignore[union-attr]
        velocity = self.state[parameter].setdefault("velocity", torch.zeros_like(parameter))
        velocity.mul_(momentum).add_(gradient)
        parameter.sub_(velocity, alpha=rate * group["lr"] / group["start"])


def single_step(variance: float, distance: float, high: float, low: float) -> tuple[float, float]:
    """Return the rate and momentum that make one step on a noisy quadratic come closest to its optimum.

    Args:
        variance: ``C``, of the gradient, summed over its entries.
        distance: ``D``, to the optimum.
        high: Largest curvature.
        low: Smallest curvature.
    """
    low = max(low, TINY)
    root = _root(min(distance**2 * low**2 / (2 * max(variance, TINY)), HUGE))
    spread = math.sqrt(max(high, low) / low)
    root = max(root, (spread - 1) / (spread + 1))
    return (1 - root) ** 2 / low, root**2


def _root(p: float) -> float:
    """Solve ``p x = (1 - x)³`` for ``x`` between 0 and 1: where ``m D² + r² C`` is least, at ``x = √m``.

    With ``y = x - 1`` it is ``y³ + p y + p = 0``, which has one real solution (Cardano); two steps by Newton
    give back the digits that its difference loses where ``p`` is large.
    """
    half = p / 2
    inner = math.sqrt(half**2 + (p / 3) ** 3)
    first = -((half + inner) ** (1 / 3))
    x = min(max(1 + first - p / 3 / first, 0.0), 1.0) if first else 1.0
    for _ in range(2):
        slope = p + 3 * (1 - x) ** 2
        x -= (p * x - (1 - x) ** 3) / slope if slope else 0.0
    return x


default_registry.register(
    OptimInfo(
        name=YELLOWFIN,
        opt_class=YellowFin,
        description="SGD with momentum that tunes itself",
        has_eps=False,
    )
)
