from __future__ import annotations

import torch
from torch import nn

from sparsetune.memory import held_bytes, peak_bytes

KIB = 1024


def test_a_peak_is_what_is_held_at_one_time():
    kept = []

    def work() -> None:
        kept.append(torch.empty(100 * KIB, dtype=torch.uint8))
        large = torch.empty(400 * KIB, dtype=torch.uint8)
        del large
        kept.append(torch.empty(250 * KIB, dtype=torch.uint8))

    assert abs(peak_bytes(work, "cpu") - 500 * KIB) < KIB
    assert peak_bytes(lambda: None, "cpu") == 0


def test_what_is_held_counts_shared_memory_once():
    net = nn.Sequential(nn.Linear(10, 10, bias=False), nn.BatchNorm1d(10))
    net.append(net[0])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    values = 100 + 20
    assert held_bytes(net, optimizer) == 4 * (values + 20) + 8
    net(torch.randn(4, 10)).sum().backward()
    optimizer.step()
    assert held_bytes(net, optimizer) == 4 * (2 * values + 20) + 8
