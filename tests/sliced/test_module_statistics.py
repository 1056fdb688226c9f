"""Running statistics that stay at the backbone's."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

import sparsetune as st
from sparsetune.errors import BackboneError, ConfigError, DeltaError

FROZEN = st.Learn(fraction=0.25, norm_stats="frozen")
X = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint whose running statistics have moved."""
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=3)
    for _ in range(3):
        net(torch.randn(8, 3, 32, 32))
    path = tmp_path / "whole.safetensors"
    save_file(net.state_dict(), path)
    return path


def made(checkpoint, learn=FROZEN) -> nn.Module:
    return st.adapt_(st.create("test_resnet", num_classes=3, checkpoint=checkpoint), learn)


def statistics(net: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: value.clone()
        for name, value in net.state_dict().items()
        if "running_" in name or "num_b" in name
    }


def step(net: nn.Module) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(net(X), Y).backward()
        optimizer.step()


def test_they_stay_whatever_mode_the_model_is_in(checkpoint):
    net = made(checkpoint).train()
    before = statistics(net)
    assert before
    step(net)
    assert all(torch.equal(value, before[name]) for name, value in statistics(net).items())
    moving = made(checkpoint, st.Learn(fraction=0.25)).train()
    step(moving)
    assert not torch.equal(moving.bn1.running_mean, before["bn1.running_mean"])


def test_a_step_is_that_of_a_plain_model_whose_norms_are_in_evaluation_mode(checkpoint):
    net = made(checkpoint).train()
    plain = st.create("test_resnet", num_classes=3, checkpoint=checkpoint).train()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    F.cross_entropy(net(X), Y).backward()
    F.cross_entropy(plain(X), Y).backward()
    whole = dict(plain.named_parameters())
    for name, learned in net.named_parameters():
        expected = whole[name].grad[: learned.shape[0]]
        assert torch.allclose(learned.grad, expected, rtol=1e-4, atol=1e-6), name


def test_no_file_holds_them_and_they_come_back(checkpoint, tmp_path):
    net = made(checkpoint).train()
    step(net)
    net.eval()
    small, large = tmp_path / "small.safetensors", tmp_path / "large.safetensors"
    st.save(net, small)
    st.save(made(checkpoint, st.Learn(fraction=0.25)), large)
    assert st.inspect(small).format == 5
    assert not [
        entry for entry in st.inspect(small).entries if "running" in entry.name or "num_b" in entry.name
    ]
    again = st.load(small, backbone=checkpoint)
    assert torch.equal(again(X), net(X))
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in again.state_dict().items())
    again.train()
    assert not again.bn1.training
    kept = sum(v.numel() * v.element_size() for v in statistics(net).values())
    assert large.stat().st_size - small.stat().st_size > 0.8 * kept


def test_a_backbone_with_others_is_another_one(checkpoint, tmp_path):
    net = made(checkpoint)
    st.save(net, tmp_path / "delta.safetensors")
    values = st.create("test_resnet", num_classes=3, checkpoint=checkpoint).state_dict()
    values["bn1.running_var"] = values["bn1.running_var"] + 0.5
    save_file(values, tmp_path / "other.safetensors")
    with pytest.raises(BackboneError, match="fingerprint"):
        st.load(tmp_path / "delta.safetensors", backbone=tmp_path / "other.safetensors")


def test_changed_ones_are_not_saved(checkpoint, tmp_path):
    net = made(checkpoint)
    net.bn1.running_mean.add_(1)
    with pytest.raises(DeltaError, match="frozen values changed"):
        st.save(net, tmp_path / "delta.safetensors")
    assert not (tmp_path / "delta.safetensors").exists()


def test_merged_they_move_again(checkpoint):
    net = st.merge_(made(checkpoint).train())
    plain = st.create("test_resnet", num_classes=3, checkpoint=checkpoint)
    assert [*net.state_dict()] == [*plain.state_dict()]
    assert type(net.bn1) is type(plain.bn1)
    assert net.bn1.training
    net(X)
    assert not torch.equal(net.bn1.running_mean, plain.bn1.running_mean)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_holds_them_too(checkpoint, copied):
    net = copied(made(checkpoint)).train()
    before = statistics(net)
    step(net)
    assert all(torch.equal(value, before[name]) for name, value in statistics(net).items())


def test_tasks_have_none_of_their_own(checkpoint, tmp_path):
    for name in ("a", "b"):
        net = made(checkpoint).train()
        step(net)
        with torch.no_grad():
            net.fc.bias.add_(1.0 if name == "b" else 0.0)
        st.save(net.eval(), tmp_path / f"{name}.safetensors")
    tasks = st.Tasks.load({n: tmp_path / f"{n}.safetensors" for n in "ab"}, backbone=checkpoint)
    for name in "ab":
        alone = st.load(tmp_path / f"{name}.safetensors", backbone=checkpoint)
        assert torch.equal(tasks(name, X), alone(X))


def test_the_plan_counts_without_them(checkpoint):
    net = st.create("test_resnet", num_classes=3, checkpoint=checkpoint)
    frozen, moving = st.plan(net, FROZEN), st.plan(net, st.Learn(fraction=0.25))
    lost = sum(v.numel() * v.element_size() for v in statistics(net).values())
    assert moving.delta_bytes - frozen.delta_bytes == lost
    assert {b.name for b in frozen.statistics} == {*statistics(net)}


def test_another_word_is_refused():
    with pytest.raises(ConfigError, match="norm_stats 'still' is not one of frozen, updated"):
        st.Learn(fraction=0.1, norm_stats="still")
