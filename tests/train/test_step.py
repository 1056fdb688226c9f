"""Settings of a step: batches that make one together, rates by layer, and mixed pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import nn

import sparsetune as st
from sparsetune.data import mixing
from sparsetune.errors import ConfigError
from sparsetune.train.loop import Step
from sparsetune.train.processes import processes
from sparsetune.train.step import Stepper, layered

SIZE = (3, 32, 32)
PLAIN = st.FitConfig(opt="momentum", lr=0.1, momentum=0.0, weight_decay=0.0, sched="none", device="cpu")


def vit(learn: st.Learn) -> nn.Module:
    """Without batch normalisation, so that the rows of a batch do not see each other."""
    return st.adapt_(st.create("test_vit", num_classes=10, img_size=32), learn)


@pytest.fixture
def stepper():
    with processes("cpu", None) as group:
        yield lambda net, config, steps=1, **more: Stepper(net.train(), config, steps, group, SIZE, **more)


@pytest.fixture(scope="module")
def pictures() -> st.Data:
    """109 digits: batches of 8 leave 5, which are a part of the last 13."""
    return st.open_data("digits", size=32, train_limit=109, test_limit=20)


@pytest.mark.parametrize(
    "changes", [{}, {"clip_grad": 0.5, "warmup_epochs": 0.5, "opt": "adamw", "lr": 1e-3}]
)
def test_batches_that_make_a_step_are_one_large_batch(pictures, changes):
    one, parts = vit(st.Learn(fraction=0.25)), vit(st.Learn(fraction=0.25))
    large = st.FitConfig(epochs=2, batch_size=24, lr=0.02).but(**changes)
    seen = []
    history = st.fit(one, pictures, large)
    again = st.fit(parts, pictures, large.but(batch_size=8, grad_accum_steps=3), watch=seen.append)
    for mine, theirs in zip(parts.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=2e-5)
    assert [record.lr for record in again] == [record.lr for record in history]
    assert again[-1].train_loss == pytest.approx(history[-1].train_loss, rel=1e-4)
    assert [each.steps for each in seen if isinstance(each, Step)] == [14] * 28


def test_a_step_of_several_batches_is_taken_whole_before_a_stop(pictures, tmp_path):
    config = st.FitConfig(epochs=1, batch_size=8, lr=0.02, grad_accum_steps=3)
    straight, steps, calls = vit(st.Learn(fraction=0.25)), [], 0
    st.fit(straight, pictures, config)
    history = []
    while not history:
        net, calls = vit(st.Learn(fraction=0.25)), calls + 1
        how = {"checkpoint": tmp_path / "c", "resume": True, "time_budget": 0.0}
        history = st.fit(net, pictures, config, watch=steps.append, **how)
    assert calls == 6  # after 3, 6, 9, 12 and 14 batches, and once more for the epoch's end
    assert [each.step for each in steps if isinstance(each, Step)] == [*range(1, 15)]
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), straight.parameters(), strict=True))


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet", "test_convnext"])
@pytest.mark.parametrize(
    "learn",
    [
        st.Learn(fraction=0.25),
        st.Learn(rank=2),
        st.Learn(fraction=0.5, norm=False, layers=["*1.*"]),
        st.Learn(filters=0, norm=False),
    ],
    ids=["fraction", "rank", "some layers", "head"],
)
def test_each_layer_has_the_rate_that_it_has_in_the_plain_model(name, learn):
    plain = timm.create_model(name, num_classes=10)
    names = {parameter: name for name, parameter in plain.named_parameters()}
    expected = {
        names[parameter]: group["lr_scale"]
        for group in create_optimizer_v2(plain, "sgd", lr=0.1, layer_decay=0.5).param_groups
        for parameter in group["params"]
    }
    net = st.adapt_(st.create(name, num_classes=10), learn)
    found = {p: group["lr_scale"] for group in layered(net, 0.5, 0.01) for p in group["params"]}
    assert len(found) == len(list(net.parameters())) > 0
    for own, parameter in net.named_parameters():
        assert found[parameter] == expected[own.removesuffix("_A").removesuffix("_B")], own


def test_rates_of_a_vision_transformer_by_hand(stepper):
    """As BEiT has them: embedding 0, block i the number i + 1, and the head after the six blocks."""
    net = vit(st.Learn(fraction=0.25, layers=["blocks.1.*", "blocks.4.*"]))
    steps = stepper(net, replace(PLAIN, layer_decay=0.5))
    names = {id(value): name for name, value in net.named_parameters()}
    rates = {names[id(p)]: g["lr"] for g in steps.optimizer.param_groups for p in g["params"]}
    assert rates["blocks.1.attn.qkv.weight"] == pytest.approx(0.1 * 0.5**5)
    assert rates["blocks.4.mlp.fc2.weight"] == pytest.approx(0.1 * 0.5**2)
    assert rates["head.weight"] == 0.1
    assert steps.lr == pytest.approx(0.1)


@pytest.mark.parametrize("sched", ["none", "cosine"])
def test_a_layer_moves_by_its_own_rate(stepper, sched):
    net = vit(st.Learn(fraction=0.25))
    steps = stepper(net, replace(PLAIN, sched=sched, layer_decay=0.5), steps=10)
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    x = torch.randn(4, *SIZE, generator=torch.Generator().manual_seed(0))
    steps.step(x, torch.tensor([0, 1, 2, 3]), 0, 4)
    for name, layer in (("blocks.0.norm1.weight", 1), ("blocks.5.norm2.bias", 6), ("head.weight", 7)):
        value = dict(net.named_parameters())[name]
        torch.testing.assert_close(value, before[name] - 0.1 * 0.5 ** (7 - layer) * value.grad)


def test_a_model_without_layers_to_tell_is_refused(pictures):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))

        def forward(self, x):
            return self.body(x)

    class Alike(Own):
        def group_matcher(self, coarse=False):
            return {"body": r"^body"}

    for kind in (Own, Alike):
        net = st.adapt_(kind(), st.Learn(fraction=0.5))
        with pytest.raises(
            ConfigError, match=r"^layer_decay 0\.75 needs layers that timm .* leave it out\.$"
        ):
            st.fit(net, pictures, st.FitConfig(epochs=1, layer_decay=0.75))


def test_mixing_is_of_pairs_by_one_share_and_labels_have_it_too():
    x = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 16, 16).clone()
    y = torch.arange(5)
    torch.manual_seed(0)
    mixed, shares = mixing(0.4, 0.0, 5)(x, y)  # five pictures: odd batches have no pairs to fall apart into
    share = shares[0, 0].item()
    assert 0 < share < 1
    torch.testing.assert_close(shares, share * torch.eye(5) + (1 - share) * torch.eye(5).roll(1, 0))
    torch.testing.assert_close(mixed, share * x + (1 - share) * x.roll(1, 0))
    cut, shares = mixing(0.0, 1.0, 5)(x, y)
    kept = (cut == x).flatten(1).float().mean(1)
    torch.testing.assert_close(shares.diagonal(), kept)
    assert ((cut == x) | (cut == x.roll(1, 0))).all()
    assert mixing(0.0, 0.0, 5) is None


def test_of_both_kinds_of_mixing_each_happens_to_half_the_batches():
    x, y = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 8, 8).clone(), torch.arange(2)
    mix = mixing(1.0, 1.0, 2)
    torch.manual_seed(1)
    whole = [float(((mixed := mix(x, y)[0]) == 0).logical_or(mixed == 1).all()) for _ in range(400)]
    assert abs(np.mean(whole) - 0.5) < 0.1


def test_accuracy_of_a_mixed_batch_is_by_the_larger_share(stepper):
    net = vit(st.Learn(fraction=0.25))
    with torch.no_grad():
        net.head.bias.copy_(torch.tensor([0, 0, 0, 90.0, 0, 0, 0, 0, 0, 0]))
    shares = torch.zeros(4, 10)
    shares[:, 3] = torch.tensor([0.9, 0.6, 0.4, 0.1])
    shares[:, 5] = 1 - shares[:, 3]
    steps = stepper(net, PLAIN, mix=lambda x, y: (x, shares))
    _, right = steps.step(torch.zeros(4, *SIZE), torch.tensor([5, 5, 5, 5]), 0, 4)
    assert right == 2
