from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

import sparsetune as st
from sparsetune.bench.peft import adapter_bytes, learned_tensors, lora, switching, uniform_lora
from sparsetune.errors import ConfigError


def learned(net: nn.Module) -> dict[str, int]:
    return {name: p.numel() for name, p in net.named_parameters() if p.requires_grad}


def other_than_layers(plan: st.Plan) -> int:
    return sum(part.learned_numel for part in plan if not part.layer)


@pytest.mark.parametrize(
    ("name", "kwargs", "learn"),
    [
        ("test_resnet", {}, st.Learn(fraction=0.25)),
        ("test_vit", {}, st.Learn(fraction=0.1, head=False)),
        ("wrn28_4", {"depth": 10, "width": 1}, st.Learn(fraction=0.3, dim="in", norm=False)),
        ("wrn28_4", {"depth": 10, "width": 1}, st.Learn(layers=["block3"], fraction=0.5)),
        ("test_efficientnet", {}, st.Learn(fraction=0.4)),  # with depthwise convolutions
    ],
)
def test_it_learns_as_many_values_as_ours(name, kwargs, learn):
    net = st.create(name, num_classes=10, **kwargs)
    ours = st.plan(net, learn)
    found = learned(lora(net, ours))
    inside = sum(count for key, count in found.items() if "lora_" in key)
    assert sum(found.values()) - inside == other_than_layers(ours)
    wanted = ours.learned_parameters - other_than_layers(ours)
    one_rank = max(p.shape[0] + p.numel // p.shape[0] for p in ours if p.layer)
    assert abs(inside - wanted) <= one_rank


def test_it_starts_as_the_plain_model_and_learns_only_its_own():
    net = st.create("test_resnet", num_classes=10)
    x = torch.randn(2, 3, 32, 32)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    plain = net.eval()(x)
    found = lora(net, st.plan(net, st.Learn(fraction=0.25))).eval()
    assert torch.allclose(found(x), plain, atol=1e-5)
    found.train()(x).square().sum().backward()
    torch.optim.SGD([p for p in found.parameters() if p.requires_grad], lr=0.1).step()
    after = {name.replace(".base_layer.", "."): value for name, value in net.state_dict().items()}
    convolutions = [name for name, value in before.items() if value.dim() == 4]
    assert convolutions
    assert all(torch.equal(after[name], before[name]) for name in convolutions)
    assert not torch.allclose(found.eval()(x), plain, atol=1e-5)


def test_patterns_say_which_layers_get_an_adapter():
    net = st.create("wrn28_4", depth=10, width=1, num_classes=10)
    inside = [
        name
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d) and name.split(".")[0] in ("block2", "block3")
    ]
    found = uniform_lora(net, 2, ["block2", "block3"])
    with_adapter = [name for name, module in found.named_modules() if hasattr(module, "lora_A")]
    assert [name.removeprefix("base_model.model.") for name in with_adapter] == inside
    norms = [module.weight for module in found.modules() if isinstance(module, nn.BatchNorm2d)]
    assert sum(weight.requires_grad for weight in norms) == len(norms) / 2  # those in modules_to_save


def test_one_rank_for_all_layers_starts_as_the_plain_model():
    net = st.create("wrn28_4", depth=10, width=1, num_classes=10).eval()
    x = torch.randn(2, 3, 8, 8)
    plain = net(x)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in net.modules())
    norms = [module.num_features for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    found = uniform_lora(net, 2).eval()
    assert torch.allclose(found(x), plain, atol=1e-5)
    ranks = [value.shape[0] for name, value in found.named_parameters() if "lora_A" in name]
    assert ranks == [2] * convolutions
    assert {module.scaling["default"] for module in found.modules() if hasattr(module, "scaling")} == {1.0}
    tensors = learned_tensors(found)
    counters = [value for value in tensors if not value.is_floating_point()]
    assert len(counters) == len(norms)
    values = sum(value.numel() for value in tensors) - len(counters)
    assert values == sum(learned(found).values()) + 2 * sum(norms)


def test_switching_takes_the_other_adapter_with_its_normalisation(tmp_path):
    net = st.create("test_resnet", num_classes=10)
    found = lora(net, st.plan(net, st.Learn(fraction=0.25))).eval()
    x = torch.randn(2, 3, 32, 32)
    first = found(x)
    assert adapter_bytes(found, tmp_path) > 4 * sum(learned(found).values())
    switch = switching(found)
    with torch.no_grad():
        for name, value in found.named_parameters():
            if "other" in name:
                value.add_(0.1)
    switch()
    second = found.eval()(x)
    assert not torch.allclose(first, second)
    switch()
    assert torch.equal(found.eval()(x), first)


def test_what_it_cannot_do_is_one_sentence(monkeypatch):
    net = st.create("test_resnet", num_classes=10)
    with pytest.raises(ConfigError, match="no layer learns enough for one rank; give a larger fraction"):
        lora(net, st.plan(net, st.Learn(filters=0)))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        ConfigError, match=r"^PEFT is not installed; run: pip install 'sparsetune\[peft\]'\.$"
    ):
        lora(net, st.plan(net, st.Learn(fraction=0.25)))
