"""Computed weights: reading is as of any tensor, writing is refused, and nothing that is frozen moves."""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sparsetune as st
from sparsetune.errors import ConfigError
from sparsetune.sliced.module import Guarded


def network(learn):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 9, 6), nn.ReLU(), nn.Linear(6, 2))
    return st.adapt_(net, learn)


WRITES = {
    "init": lambda net: nn.init.kaiming_normal_(net[0].weight),
    "init by name": lambda net: nn.init.constant_(val=1.0, tensor=net[2].weight),
    "apply": lambda net: net.apply(
        lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None
    ),
    "data": lambda net: net[0].weight.data.mul_(2),
    "part of data": lambda net: net[2].weight.data[0, 1:].fill_(0),
    "item": lambda net: net[0].weight.__setitem__(0, 0.0),
    "view": lambda net: net[0].weight.detach().view(-1).zero_(),
    "operator": lambda net: net[0].weight.data.__imul__(2),
    "copy": lambda net: net[0].weight.copy_(torch.zeros(8, 3, 3, 3)),
    "data set": lambda net: setattr(net[0].weight, "data", torch.zeros(1)),
    "out": lambda net: torch.mul(torch.ones(8, 3, 3, 3), 2, out=net[0].weight.data),
    "inplace": lambda net: F.relu(net[0].weight, inplace=True),
    "many": lambda net: torch._foreach_mul_([net[0].weight.data], 2),
    "parameter": lambda net: setattr(net[0], "weight", nn.Parameter(torch.zeros(8, 3, 3, 3))),
}


@pytest.mark.parametrize(
    "learn", [st.Learn(fraction=0.5), st.Learn(fraction=0.5, dim="in"), st.Learn(rank=2)]
)
def test_writes_are_refused_and_move_nothing(learn):
    net = network(learn)
    x = torch.randn(2, 3, 5, 5)
    before = {n: v.clone() for n, v in (*net.named_parameters(), *net.named_buffers())}
    logits = net(x).detach()
    for write in WRITES.values():
        for mode in (contextlib.nullcontext(), torch.no_grad()):
            with mode, pytest.raises(ConfigError, match=r"sparsetune\.merge_\(net\)"):
                write(net)
    after = dict((*net.named_parameters(), *net.named_buffers()))
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(net(x), logits)
    st.merge_(net).apply(lambda m: m.reset_parameters() if hasattr(m, "reset_parameters") else None)
    assert not torch.equal(net(x), logits)


@pytest.mark.parametrize("learn", [st.Learn(fraction=0.5), st.Learn(rank=2)])
def test_reading_is_as_of_any_tensor(learn):
    net = network(learn)
    weight = net[0].weight
    whole = weight.detach().clone()
    assert type(whole) is type(weight * 2) is torch.Tensor
    assert isinstance(weight, Guarded)
    assert weight.tolist() == whole.tolist()
    assert torch.equal(torch.zeros_like(whole).add_(weight.detach()), whole)
    (weight**2).sum().backward()
    assert all(parameter.grad is not None for parameter in net[0].parameters() if parameter.dim() > 1)
    with torch.no_grad():
        net[0].weight.numpy().fill(0)  # of a copy
        assert torch.equal(net[0].weight, whole)
