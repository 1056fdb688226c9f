"""Training on the slim shape against plain autograd on the plain network with its last filters at zero."""

import copy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as some
from torch.nn import functional as F
from zeroed import MOVES, batch, zeroed, zeroed_graph

import sparsetune as st
from sparsetune.errors import ConfigError
from sparsetune.narrow.network import Slimming, slimming

NETWORKS = {
    "wrn28_4": {"depth": 16},
    "densenet100_12": {"depth": 22},
    "alexnet_cifar": {},
    "vgg19_bn_cifar": {},
    "resnet18": {},
    "seresnext26d_32x4d": {},
    "regnety_002": {},
}


def check_step(net, side=32, count=4):
    """Compare outputs, gradients of the learned slices and running statistics of one training step."""
    plain = st.merge_(copy.deepcopy(net)).train().requires_grad_()
    learned = {part.name: part for part in st.adapted(net).plan if part.k}
    narrow = Slimming(net.train(), (3, side, side))
    x = batch(side, count)
    wanted, found = plain(x), narrow(x)
    assert torch.allclose(found, wanted, rtol=1e-7, atol=1e-7 * wanted.abs().max().item())
    pull = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(5), dtype=wanted.dtype)
    (wanted * pull).sum().backward()
    (found * pull).sum().backward()
    whole = {name: parameter.grad for name, parameter in plain.named_parameters()}
    largest = max(grad.abs().max().item() for grad in whole.values() if grad is not None)
    assert dict(net.named_parameters()).keys() == learned.keys()
    for name, parameter in net.named_parameters():
        if whole[name] is None:
            assert parameter.grad is None or not parameter.grad.any()
            continue
        expected = whole[name][: learned[name].k]
        assert torch.allclose(parameter.grad, expected, rtol=1e-5, atol=1e-8 * largest), name
    buffers = dict(net.named_buffers())
    for name, value in plain.named_buffers():
        assert torch.allclose(buffers[name], value, rtol=1e-7, atol=1e-9), name


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step(name):
    check_step(zeroed(name, **NETWORKS[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wrn28_4", "densenet100_12", "vgg19_cifar", "resnet50", "densenet121"])
def test_a_step_of_the_large(name):
    check_step(zeroed(name, 0.1))


@settings(max_examples=40, deadline=None)
@given(moves=MOVES, fraction=some.sampled_from([0.2, 0.5, 0.8]))
@example(moves=[("norm", 0, 0), ("conv", 0, 0), ("conv", 0, 0)], fraction=0.2)
@example(moves=[("conv", 0, 0), ("norm", 0, 0), ("norm", 0, 0), ("conv", 0, 4)], fraction=0.8)
@example(moves=[("conv", 1, 0), ("norm", 0, 0), ("act", 2, 0), ("conv", 1, 0), ("add", 0, 2)], fraction=0.5)
def test_a_step_of_any_graph(moves, fraction):
    net = zeroed_graph(moves, fraction)
    if slimming(net, (3, 8, 8)) is not net:
        check_step(net, side=8)


def test_cumulative_statistics():
    net = zeroed("wrn28_4", depth=10)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
            module.num_batches_tracked.fill_(3)
    check_step(net)


def test_many_steps():
    """Momentum and decay move the same values; only rounding differs."""
    wide = zeroed("wrn28_4", depth=10).train()
    net = copy.deepcopy(wide)
    narrow = Slimming(net, (3, 32, 32))
    for each, model in ((wide, wide), (net, narrow)):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(model(batch(16, 8)), torch.arange(8)).backward()
            optimizer.step()
    for (name, a), b in zip(wide.state_dict().items(), net.state_dict().values(), strict=True):
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-9), name


def test_evaluation_is_the_network_itself():
    net = zeroed("wrn28_4", depth=10)
    narrow, x = Slimming(net, (3, 32, 32)), batch()
    assert torch.equal(narrow(x), net(x))
    assert [id(p) for p in narrow.parameters()] == [id(p) for p in net.parameters()]


def test_nothing_wide_is_computed():
    """A step's convolutions have the narrow widths."""
    net = zeroed("wrn28_4", depth=10).train()
    narrow, widths = Slimming(net, (3, 32, 32)), set()

    class Seen(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is torch.conv2d:
                widths.add(args[1].shape[0])
            return func(*args, **(kwargs or {}))

    with Seen():
        narrow(batch())
    assert widths == {7, 26, 52, 103}


def test_keeps_what_dropout_touches():
    """A dropped constant is none: those channels stay wide, and the others go."""
    net = zeroed("wrn28_4", depth=10, drop_rate=0.5)
    narrow = Slimming(net.train(), (3, 32, 32))
    small = narrow._small[0]
    assert small.block1[0].conv1.out_channels == 64
    assert small.block1[0].conv2.out_channels == 26


@pytest.mark.parametrize(
    "learn",
    [{"fraction": 0.4}, {"fraction": 0.4, "frozen": "zero", "dim": "in"}, {"fraction": 1, "frozen": "zero"}],
)
def test_else_the_network_trains_as_it_is(learn):
    net = st.adapt_(st.create("wrn28_4", depth=10), st.Learn(**{"fraction": 0.4, **learn}))
    assert slimming(net, (3, 32, 32)) is net


def test_refuses_what_is_not_smaller():
    with pytest.raises(ConfigError, match="train it as it is"):
        Slimming(zeroed("wrn28_4", 1.0, depth=10), (3, 32, 32))


def test_stochastic_depth_trains_as_it_is():
    net = st.adapt_(st.create("resnet18", drop_path_rate=0.5), st.Learn(fraction=0.4, frozen="zero"))
    assert slimming(net.train(), (3, 32, 32)) is net


@pytest.mark.parametrize("amp", [None, "bf16"])
def test_fit_trains_on_the_slim_shape(digits, tiny, tmp_path, amp):
    """The file holds the ordinary delta; loaded it gives the same network."""
    net = tiny(st.Learn(fraction=0.4, frozen="zero"))
    history = st.fit(net, digits, st.FitConfig(epochs=2, device="cpu", amp=amp))
    assert history[-1].train_loss < history[0].train_loss
    st.save(net, tmp_path / "a.safetensors")
    loaded, x = st.load(tmp_path / "a.safetensors"), batch(8).float()
    with torch.no_grad():
        assert torch.equal(loaded(x), net(x))
        assert (st.slim(loaded)(x) - net(x)).abs().max() <= 1e-5 * net(x).abs().max()
