"""The frozen layers that a model starts with run once for each view."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
import torchvision
from torch import nn

import sparsetune as st
from sparsetune.errors import ConfigError, StorageError
from sparsetune.train.prefix import Last, Tail, _on_disk, tail_of

HEAD = st.Learn(filters=0, norm=False, norm_stats="frozen")
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def adapted(name, learn, **kwargs) -> nn.Module:
    return st.adapt_(st.create(name, num_classes=7, **kwargs), learn).train()


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "test_mambaout"])
def test_of_a_head_alone_that_is_left(name):
    net = adapted(name, HEAD)
    tail = tail_of(net, X)
    assert type(tail) is Last
    net.eval()
    assert torch.equal(tail(tail.given(X)), net(X))


@pytest.mark.parametrize(
    ("name", "layers", "cut"),
    [
        ("test_resnet", ["layer4"], "layer4"),
        ("test_efficientnet", ["blocks.2"], "blocks.2"),
        ("torchvision/resnet18", ["layer3", "layer4"], "layer3"),
        ("torchvision/mobilenet_v3_small", ["features.8"], "features.8"),
    ],
)
def test_of_late_layers_they_are_left(name, layers, cut):
    net = adapted(name, replace(HEAD, filters=None, fraction=1.0, layers=layers))
    tail = tail_of(net, X)
    assert type(tail) is Tail
    assert f"{tail.cut}.".startswith(cut)
    modes = [module.training for module in net.modules()]
    net.eval()
    given = tail.given(X)
    assert torch.equal(tail(given), net(X))
    assert not any("forward" in vars(module) for module in net.modules())
    assert modes == [module.training for module in net.train().modules()]


def test_gradients_are_those_of_the_whole():
    net = adapted("test_resnet", replace(HEAD, filters=None, fraction=0.5, layers=["layer4"]))
    tail = tail_of(net, X)
    net(X).square().sum().backward()
    whole = {name: value.grad.clone() for name, value in net.named_parameters()}
    net.zero_grad()
    tail(tail.given(X)).square().sum().backward()
    assert whole
    for name, value in net.named_parameters():
        assert torch.equal(value.grad, whole[name]), name


def test_statistics_that_move_and_drops_are_computed_anew():
    moving = adapted("test_resnet", replace(HEAD, norm_stats="updated"))
    assert tail_of(moving, X).cut == "conv1.1", "the first layer of all that keeps statistics"
    norms = adapted("test_resnet", replace(HEAD, norm=True))
    assert tail_of(norms, X).cut == "conv1.1"
    dropping = adapted("test_convnext", HEAD, drop_path_rate=0.5)
    assert tail_of(dropping, X).cut.startswith("stages.")


def test_a_cut_inside_a_shortcut_is_not_taken():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.fc = nn.Linear(3, 2)

        def forward(self, x):
            return self.fc((x + self.second(self.first(x))).mean((2, 3)))

    net = Around().train()
    for value in net.first.parameters():
        value.requires_grad_(False)
    assert tail_of(net, X) is None


def test_a_vit_has_its_head_alone():
    net = st.adapt_(
        timm.create_model("test_vit", num_classes=7), HEAD, st.Backbone(kind="module", source="x")
    )
    assert type(tail_of(net.train(), torch.randn(2, 3, 160, 160))) is Last


def passes(net: nn.Module) -> list[int]:
    """Count, in place, the pictures that the first layer sees."""
    seen: list[int] = []
    net.conv1.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    return seen


@pytest.fixture(scope="module")
def data():
    return st.open_data("digits", size=32, train_limit=100, test_limit=30)


def test_ten_epochs_of_a_head_take_one_pass(data):
    net = st.adapt_(st.create("test_resnet", num_classes=10), HEAD)
    seen = passes(net)
    config = st.FitConfig(epochs=10, opt="adamw", lr=0.01, views=1, aug=False, val_share=0.2)
    history = st.fit(net, data, config)
    assert history[-1].train_loss < history[0].train_loss
    assert sum(seen) <= 100 + 30 + 20
    again = st.adapt_(st.create("test_resnet", num_classes=10), HEAD)
    st.fit(again, data, config.but(views=0))
    for mine, theirs in zip(net.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_views_take_turns_and_a_stopped_training_goes_on(data, tmp_path):
    config = st.FitConfig(epochs=4, opt="adamw", lr=0.01, views=2, val_share=0.2)
    whole = st.adapt_(st.create("test_resnet", num_classes=10), HEAD)
    seen = passes(whole)
    history = st.fit(whole, data, config)
    assert sum(seen) <= 2 * 100 + 30 + 20
    for _ in range(40):
        parts = st.adapt_(st.create("test_resnet", num_classes=10), HEAD)
        found = st.fit(parts, data, config, checkpoint=tmp_path / "c", resume=True, time_budget=0.0)
        if len(found) == 4:
            break
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    assert [r.validation_loss for r in found] == [r.validation_loss for r in history]


def test_where_memory_is_short_views_are_kept_on_disk(data, monkeypatch):
    found = {}
    for name, share, cache in (("memory", 0.25, None), ("disk", 0.0, "100MB"), ("nowhere", 0.0, "1KB")):
        monkeypatch.setattr("sparsetune.train.prefix.SHARE", share)
        net = st.adapt_(st.create("test_resnet", num_classes=10), HEAD)
        seen = passes(net)
        config = st.FitConfig(epochs=3, opt="adamw", lr=0.01, views=2, val_share=0.2, cache=cache)
        history = st.fit(net, data, config)
        found[name] = sum(seen), net.fc.weight.detach().clone(), [r.validation_loss for r in history]
    assert found["disk"][0] == found["memory"][0] < found["nowhere"][0]
    assert torch.equal(found["disk"][1], found["memory"][1])
    assert found["disk"][2] == found["memory"][2]


def test_a_full_disk_is_told_of_before_anything_is_written():
    with pytest.raises(StorageError, match=r"outputs of the frozen layers take .*; free some, set TMPDIR"):
        _on_disk((10**9, 10**6), torch.float32)
    held = _on_disk((3, 2), torch.bfloat16)
    held[1] = 1.5
    assert held.tolist() == [[0, 0], [1.5, 1.5], [0, 0]]


@pytest.mark.parametrize("cache", ["much", "0", "-2GB"])
def test_a_cache_that_is_no_size_is_refused(cache):
    with pytest.raises(ConfigError, match=f"cache: size '{cache}' is not a number with KB"):
        st.FitConfig(cache=cache)


def test_torchvision_models_have_it_too():
    net = torchvision.models.get_model("resnet18", weights=None, num_classes=7)
    st.adapt_(net, HEAD)
    assert type(tail_of(net.train(), X)) is Last
