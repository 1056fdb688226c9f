"""Initial values from a seed, and what no seed gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsetune as st
from sparsetune.backbone.observe import draw_initial, observing
from sparsetune.backbone.seeding import Law, draw
from sparsetune.errors import BackboneError
from sparsetune.parts.layers import STORED


def build(make):
    net = nn.Module()
    with observing(5) as seen:
        make(net)
    draw_initial(net, seen, 5)
    return net


def test_each_part_of_a_tensor_follows_its_own_law():
    def make(net):
        net.weight = nn.Parameter(torch.full((6, 4), 7.0))
        nn.init.normal_(net.weight[:2], std=3)
        nn.init.uniform_(net.weight[4:], 1, 2)

    weight = build(make).weight
    assert torch.equal(weight[:2], draw(5, "weight", (2, 4), Law("normal", 0, 3)))
    assert torch.equal(weight[2:4], torch.full((2, 4), 7.0))
    assert torch.equal(weight[4:], draw(5, "weight", (6, 4), Law("uniform", 1, 2))[4:])


def test_what_no_law_describes_is_noted():
    def make(net):
        net.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(3, 3)))
        net.bias = nn.Parameter(torch.randn(3))
        net.register_buffer("coin", torch.empty(3).bernoulli_())

    assert getattr(build(make), STORED) == ("weight", "coin")


def test_a_random_buffer_that_no_file_holds_is_refused():
    with pytest.raises(
        BackboneError, match=r"'coin' cannot be rebuilt from a seed .drawn by bernoulli_., nor be saved"
    ):
        build(lambda net: net.register_buffer("coin", torch.empty(3).bernoulli_(), persistent=False))


def test_a_mixer_whose_weights_are_drawn_by_halves_needs_no_storage():
    net = st.create("gmixer_12_224", num_classes=2)
    assert getattr(net, STORED) == ()
    first, second = net.blocks[0].mlp_tokens.fc1.weight.detach().chunk(2)
    assert first.std() == pytest.approx((2 / (196 + 384)) ** 0.5, rel=0.01)  # Glorot and Bengio (2010)
    assert second.abs().max() < 1e-5
