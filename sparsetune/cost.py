"""Predicted arithmetic of a training step, from the shapes alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sparsetune.layers import is_sliceable
from sparsetune.plan import Plan


def arithmetic_share(net: nn.Module, made: Plan, size: int | None = None) -> float | None:
    """Predict the multiplications of an adapted training step over those of a full step.

    Counted are convolutions and linear maps: one unit forward, one for the gradient of the input where
    something before it is learned, and the learned share of one for the gradient of the weight. Of a low-rank
    sum that is twice the share: each of its factors takes a product with the other.

    Args:
        net: The plain model; it is run without values (on the meta device) and not changed.
        made: Its plan.
        size: Height and width of a picture; ``None`` takes the model's own.

    Returns:
        A share from 1/3 to 1, or ``None`` where the model cannot be run that way.
    """
    learned = {
        ".".join(home).lstrip("."): min(1, part.learned_numel / part.numel * (2 if part.rank else 1))
        for part in made
        for home in part.homes
        if part.numel
    }
    calls = _calls(net, size)
    if not calls:
        return None
    full = ours = 0.0
    full_needs = ours_needs = False
    for weight, work, before in calls:
        full_needs = full_needs or bool(before)
        ours_needs = ours_needs or any(learned.get(name, 0) for name in before)
        full += work * (2 + full_needs)
        ours += work * (1 + ours_needs + learned.get(weight, 0.0))
        full_needs = True
        ours_needs = ours_needs or bool(learned.get(weight, 0))
    return ours / full


def _calls(net: nn.Module, size: int | None) -> list[tuple[str, float, list[str]]]:
    """For each layer in order of use: its weight's name, its work, and other parameters met before it."""
    config = getattr(net, "pretrained_cfg", None) or {}
    channels, height, width = config.get("input_size", (3, 224, 224))
    if size is not None:
        height = width = size
    met: list[str] = []
    calls: list[tuple[str, float, list[str]]] = []
    handles = []
    for name, module in net.named_modules():
        leaves = module.named_parameters(recurse=isinstance(module, nn.MultiheadAttention))
        own = {f"{name}.{leaf}" if name else leaf: value for leaf, value in leaves}
        if own:
            handles.append(module.register_forward_hook(_hook(module, own, met, calls)))
    held = itertools.chain(net.named_parameters(), net.named_buffers())
    values = {name: value.detach().to("meta") for name, value in held}
    try:
        with torch.no_grad():
            functional_call(net, values, (torch.empty(2, channels, height, width, device="meta"),))
    except Exception:
        return []
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _hook(
    module: nn.Module, own: dict[str, nn.Parameter], met: list[str], calls: list[tuple[str, float, list[str]]]
) -> Callable[..., None]:
    def meet(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        met.extend(own)

    if not is_sliceable(module):
        return meet
    attends = isinstance(module, nn.MultiheadAttention)
    by_input = attends or getattr(module, "transposed", False)
    weights = {name: value.select(int(attends), 0).numel() for name, value in own.items() if value.dim() > 1}

    def count(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        given = (inputs[0] if by_input else output).numel()
        for name, per_value in weights.items():
            calls.append((name, given * per_value, list(met)))
            met.clear()

    return count
