"""A slim network computes what the zeroed one does; nothing but the zeroed one itself says what that is."""

import copy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as some
from torch import nn
from zeroed import MOVES, batch, zeroed, zeroed_graph

import sparsetune as st
from sparsetune.errors import ConfigError

NETWORKS = {
    "wrn28_4": {},
    "densenet100_12": {"depth": 40},
    "alexnet_cifar": {},
    "vgg19_cifar": {},
    "vgg19_bn_cifar": {},
    "resnet18": {},
    "resnet26d": {},
    "seresnext26d_32x4d": {},
    "regnetx_002": {},
    "regnety_002": {},
    "densenet121": {},
    "mobilenetv3_small_050": {},
    "torchvision/resnet18": {},
}


def near(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return torch.allclose(found, wanted, rtol=1e-9, atol=1e-9 * wanted.abs().max().item())


@pytest.mark.parametrize("name", NETWORKS)
def test_same_outputs(name):
    net = zeroed(name, **NETWORKS[name])
    small = st.slim(net, batch())
    count, learned = (sum(p.numel() for p in each.parameters()) for each in (small, net))
    assert count < 0.7 * learned
    for side in (32, 40):
        x = batch(side, count=3)
        with torch.no_grad():
            assert near(small(x), net(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wrn28_10", "densenet100_12", "resnet50", "regnety_032", "efficientnet_b0"])
def test_same_outputs_of_the_large(name):
    net = zeroed(name, 0.1)
    small, x = st.slim(net, batch()), batch(64)
    with torch.no_grad():
        assert near(small(x), net(x))


CONVS = [("conv", 0, 0), ("conv", 0, 0)]


@settings(max_examples=100, deadline=None)
@given(moves=MOVES, fraction=some.sampled_from([0.0, 0.2, 0.5, 0.8]))
@example(
    moves=[*[("conv", 0, 0)] * 2, ("norm", 0, 0), ("conv", 0, 0), ("gate", 0, 0), ("cat", 0, 3)], fraction=0.0
)
@example(moves=[("conv", 1, 0), ("norm", 0, 0), ("act", 2, 0), ("conv", 1, 0), ("add", 0, 2)], fraction=0.5)
def test_any_graph(moves, fraction):
    net = zeroed_graph(moves, fraction)
    small, x = st.slim(net, batch(8)), batch(11)
    with torch.no_grad():
        assert near(small(x), net(x))


def test_widths():
    """Of 16, 64, 128 and 256 filters 40 % are learned, and one of the others stays."""
    net = zeroed("wrn28_4")
    small = st.slim(net)
    assert type(small) is type(st.create("wrn28_4", num_classes=10))
    assert small.conv1.weight.shape == (7, 3, 3, 3)
    assert [(c.in_channels, c.out_channels) for c in (small.block1[0].conv1, small.block1[1].conv2)] == [
        (7, 26),
        (26, 26),
    ]
    assert small.block2[0].shortcut.weight.shape == (52, 26, 1, 1)
    assert small.bn1.num_features == small.fc.in_features == small.num_features == 103
    assert small.state_dict().keys() == st.create("wrn28_4", num_classes=10).state_dict().keys()
    small.reset_classifier(4)
    assert small.double()(batch()).shape == (2, 4)


def test_constants_matter_at_the_border():
    """Without the channel that stands for the constants the outputs are others, padding or not."""
    net, x = zeroed("wrn28_4", depth=10), batch()
    small = st.slim(net)
    with torch.no_grad():
        wanted = net(x)
        small.block1[0].conv2.weight[:, -1] = 0
        assert not torch.allclose(small(x), wanted, rtol=1e-3)


def test_leaves_the_network_alone():
    net, x = zeroed("wrn28_4", depth=10), batch()
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.random.get_rng_state()
    small = st.slim(net, x)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert net.training
    assert not small.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with pytest.raises(ConfigError, match="not adapted"):
        st.adapted(small)


def test_float32_is_exact_to_rounding():
    net = zeroed("wrn28_4").float()
    x = batch().float()
    small = st.slim(net)
    with torch.no_grad():
        assert (small(x) - net(x)).abs().max() <= 1e-5 * net(x).abs().max()


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_layers_norm_and_head_as_learned(norm, head):
    """Where only a block is learned, all before it is zero."""
    for layers in (None, ["block1"], ["block2", "conv1"]):
        net = st.create("wrn28_4", num_classes=10, depth=10)
        learn = st.Learn(fraction=0.3, layers=layers, norm=norm, head=head, frozen="zero")
        st.adapt_(net, learn).double().eval()
        small, x = st.slim(net), batch()
        with torch.no_grad():
            assert near(small(x), net(x))


def test_everything_learned_stays_as_it_is():
    net = zeroed("wrn28_4", 1.0, depth=10)
    small = st.slim(net)
    plain = st.merge_(copy.deepcopy(net)).state_dict()
    assert all(torch.equal(value, plain[name]) for name, value in small.state_dict().items())


@pytest.mark.parametrize("learn", [{}, {"frozen": "random"}, {"frozen": "zero", "dim": "in"}])
def test_refuses_what_has_no_zero_filters(learn):
    net = st.adapt_(st.create("wrn28_4", depth=10), st.Learn(fraction=0.4, **learn))
    with pytest.raises(ConfigError, match=r"no filters of it are zero; slim is for .*frozen='zero'"):
        st.slim(net)


def test_refuses_a_plain_network():
    with pytest.raises(ConfigError, match="not adapted"):
        st.slim(st.create("wrn28_4", depth=10))


class Odd(nn.Module):
    """Reads a buffer of the module in a way that no operation shows: an exactness check must find it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        if x.shape[1] == 4:
            x = x + 1
        return self.head(self.last(x).mean((2, 3)))


def test_refuses_what_would_differ():
    net = st.adapt_(Odd(), st.Learn(fraction=0.25, frozen="zero")).eval()
    with pytest.raises(ConfigError, match=r"outputs of the slim Odd would differ by .*; keep the network"):
        st.slim(net, batch(8).float())
