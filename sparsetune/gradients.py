"""The gradient of a plain model's weights on a user's pictures: what each layer would change first."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sparsetune.layers import is_sliceable, sites
from sparsetune.outputs import loss_of


def mean_gradients(
    net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device, seed: int = 0
) -> dict[str, Tensor]:
    """Return the mean gradient of cross-entropy with respect to each convolution's and linear map's weight.

    Args:
        net: A plain classifier; a copy of it is run, in training mode, or in its own where that is mixed.
        batches: Pictures ``(B, C, H, W)`` and their classes ``(B,)``; each batch counts the same.
        device: Where to compute.
        seed: Of dropout.

    Returns:
        float32 tensors on the CPU, of the weights' shapes, by name.
    """
    net = copy.deepcopy(net).to(device)
    if not net.training:
        net.train()
    wanted = {site.name: site.parameter for site in sites(net) if is_sliceable(site.module)}
    for name, value in net.named_parameters():
        value.requires_grad_(name in wanted)
    count = 0
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for x, y in batches:
            loss_of(net(x.to(device)), y.to(device)).backward()
            count += 1
    return {
        name: value.grad.float().cpu() / count for name, value in wanted.items() if value.grad is not None
    }
