from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsetune as st
from sparsetune.bench.timing import held_bytes, peak_bytes

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


@pytest.mark.parametrize("name", ["wrn28_4", "densenet100_12", "test_resnet", "regnetx_002"])
@pytest.mark.parametrize("fraction", [0.1, 0.4])
def test_optimiser_and_gradients_take_the_learned_share(name, fraction):
    net = st.create(name, num_classes=10)
    share = (made := st.plan(net, st.Learn(fraction=fraction))).learned_parameters / made.total_parameters
    full = bytes_of_learning(net)
    assert bytes_of_learning(st.adapt_(net, made.learn)) <= 1.05 * share * full


def bytes_of_learning(net: nn.Module) -> int:
    """Memory of gradients and of Adam's state after a step; a view counts as all that it keeps."""
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(2, 3, 32, 32)).logsumexp(1).sum().backward()
    optimizer.step()
    held = [value for state in optimizer.state.values() for value in state.values()]
    held += [parameter.grad for parameter in net.parameters()]
    net.zero_grad()
    return sum({v.untyped_storage().data_ptr(): v.untyped_storage().nbytes() for v in held}.values())
