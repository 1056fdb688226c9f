from __future__ import annotations

import warnings

import pytest
import timm
import torch
from torch import nn

import sparsetune as st
from sparsetune.errors import Notice


class TwoHeads(nn.Module):
    """A convolution of 20 filters, and two classifiers, of which the last is taken for the head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.last = nn.Conv2d(3, 20, 3), nn.Linear(20, 5), nn.Linear(20, 10)

    def forward(self, x):
        x = self.conv(x).mean((2, 3))
        return self.last(x) + self.first(x).sum(1, keepdim=True)


def test_a_layer_whose_slice_is_empty_is_named_in_one_line():
    made = st.plan(TwoHeads(), st.Learn(fraction=0.1))
    (line,) = made.notes  # floor(.1 * 5) is 0, floor(.1 * 20) is 2
    assert line == (
        "learning nothing of 1 layer, for fraction 0.1 of so few filters is none: first (5x20); "
        "a larger fraction or filters=1 learns some of each."
    )
    assert str(made).splitlines()[-1] == line
    assert made.to_json()["notes"] == [line]
    assert not st.plan(TwoHeads(), st.Learn(fraction=0.2)).notes
    assert not st.plan(TwoHeads(), st.Learn(filters=1)).notes


@pytest.mark.parametrize(
    "learn",
    [
        st.Learn(filters=0),
        st.Learn(rank=1),
        st.Learn(fraction=0.0),
        st.Learn(fraction=0.1, layers=["conv"]),
        st.Learn(fraction={"conv": 0.1}),
        st.Learn(fraction=0.1, dim="in"),
    ],
)
def test_what_was_asked_for_is_not_said(learn):
    assert not st.plan(TwoHeads(), learn).notes


def test_many_layers_are_counted_and_the_first_named():
    net = nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(6)), nn.Flatten(), nn.Linear(4, 2))
    (line,) = st.plan(net, st.Learn(fraction=0.2)).notes
    assert "of 6 layers, for fraction 0.2 of so" in line
    assert "none: 0 (4x4x1x1), 1 (4x4x1x1), 2 (4x4x1x1) and 3 more;" in line


@pytest.mark.parametrize(
    "make", [lambda: timm.create_model("test_vit"), lambda: nn.MultiheadAttention(12, 2)]
)
def test_a_slice_of_queries_alone_is_said(make):
    net = nn.Sequential(make(), nn.Linear(2, 2))
    (line,) = st.plan(net, st.Learn(fraction=0.3)).notes
    assert line.startswith("learning only the queries of ")
    assert line.endswith("; dim='in' or a rank learns of all three.")
    for learn in (st.Learn(fraction=0.4), st.Learn(fraction=0.3, dim="in"), st.Learn(rank=1)):
        assert not st.plan(net, learn).notes


def test_fit_says_so(digits):
    net = st.adapt_(TwoHeads(), st.Learn(fraction=0.1))
    with pytest.warns(Notice, match=r"learning nothing of 1 layer, .* first \(5x20\)"):
        st.fit(net, digits, st.FitConfig(epochs=1, batch_size=150))
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        st.fit(st.adapt_(TwoHeads(), st.Learn(fraction=0.2)), digits, st.FitConfig(epochs=1, batch_size=150))


def test_the_frozen_layer_is_the_one_named():
    """What the line says is what happens: no step moves it."""
    net = st.adapt_(TwoHeads(), st.Learn(fraction=0.1))
    frozen, learned = net.first.weight.clone(), net.conv.weight.clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    nn.functional.cross_entropy(net(torch.randn(4, 3, 8, 8)), torch.arange(4)).backward()
    optimizer.step()
    assert torch.equal(net.first.weight, frozen)
    assert not torch.equal(net.conv.weight, learned)
