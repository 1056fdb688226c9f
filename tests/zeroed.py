"""Zeroed networks whose batch norms have statistics, scales and shifts of their own, and random graphs."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

import sparsetune as st

RANGES = {"weight": (-1.0, 1.5), "bias": (-1.0, 1.0), "running_mean": (-0.5, 0.5), "running_var": (0.5, 2.0)}
ACTIVATIONS = (F.relu, F.silu, F.sigmoid, F.leaky_relu, F.hardswish, torch.tanh)


def unsettled(net: nn.Module) -> nn.Module:
    """Give every batch norm random statistics, scales and shifts."""
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            for name, (low, high) in RANGES.items():
                value = getattr(module, name)
                value.data.copy_(low + (high - low) * torch.rand(value.shape, generator=generator))
    return net


def zeroed(name: str, fraction: float = 0.4, **kwargs: Any) -> nn.Module:
    """Make a zeroed network in float64 and evaluation mode."""
    net = unsettled(st.create(name, num_classes=10, **kwargs))
    return st.adapt_(net, st.Learn(fraction=fraction, frozen="zero")).double().eval()


def batch(side: int = 32, count: int = 2) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


class Graph(nn.Module):
    """A random network: each operation takes the last tensor, and some take an earlier one too.

    Args:
        moves: For each operation, which, and two numbers that it may use.
    """

    def __init__(self, moves: list[tuple[str, int, int]]) -> None:
        super().__init__()
        self.moves, self.layers = moves, nn.ModuleDict()
        self.widths = [3]
        for i, (kind, a, b) in enumerate(moves):
            width = self.widths[-1]
            if kind == "conv":
                modes = ("zeros", "zeros", "reflect", "circular")
                kernel = (1, 3, 5)[a % 3]
                made = nn.Conv2d(
                    width, 4 + b % 5, kernel, padding=kernel // 2, bias=a % 2 == 0, padding_mode=modes[b % 4]
                )
                width = made.out_channels
            elif kind == "grouped":
                groups = width if a % 2 else (2 if width % 2 == 0 else 1)
                made = nn.Conv2d(width, width, 3, padding=1, groups=groups, bias=b % 2 == 0)
            elif kind == "norm":
                made = nn.BatchNorm2d(width)
            elif kind == "gate":
                made = nn.Conv2d(width, width, 1)
            else:
                made = nn.Identity()
                width += self.widths[b % len(self.widths)] if kind == "cat" else 0
            self.layers[str(i)] = made
            self.widths.append(width)
        self.head = nn.Linear(self.widths[-1], 3)

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for i, (kind, a, b) in enumerate(self.moves):
            x, layer, other = seen[-1], self.layers[str(i)], seen[b % len(seen)]
            if kind == "gate":
                x = x * torch.sigmoid(layer(x.mean((2, 3), keepdim=True)))
            elif kind == "act":
                x = ACTIVATIONS[a % len(ACTIVATIONS)](x)
            elif kind == "add":
                x = x + other if self.widths[b % len(seen)] == self.widths[i] else x + 1
            elif kind == "cat":
                x = torch.cat([x, other], 1)
            elif kind == "max":
                x = F.max_pool2d(x, 3, 1, 1)
            elif kind == "average":
                x = F.avg_pool2d(x, 3, 1, 1, count_include_pad=b % 2 == 0)
            else:
                x = layer(x)
            seen.append(x)
        return self.head(F.adaptive_avg_pool2d(seen[-1], 1).flatten(1))


KINDS = (
    "conv",
    "conv",
    "conv",
    "grouped",
    "norm",
    "norm",
    "gate",
    "act",
    "act",
    "add",
    "cat",
    "max",
    "average",
)
MOVES = strategies.lists(
    strategies.tuples(strategies.sampled_from(KINDS), strategies.integers(0, 11), strategies.integers(0, 11)),
    min_size=3,
    max_size=14,
)
"""Random graphs."""


def zeroed_graph(moves: list[tuple[str, int, int]], fraction: float) -> nn.Module:
    torch.manual_seed(3)
    net = unsettled(Graph(moves))
    return st.adapt_(net, st.Learn(fraction=fraction, frozen="zero")).double().eval()
