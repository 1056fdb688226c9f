"""PEFT itself says what an adapter computes; it writes what we read, and reads what we write."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

import sparsetune as st
from sparsetune.errors import ConfigError, DeltaError
from sparsetune.publish import from_peft, is_adapter, to_peft

warnings.filterwarnings("ignore", module="peft")

NETS: dict[str, dict[str, Any]] = {
    "resnet10t": {},
    "torchvision/resnet18": {},
    "vit_tiny_patch16_224": {"depth": 2, "img_size": 32},
    "mobilenetv3_small_050": {},
    "convnext_atto": {"depths": (1, 1, 1, 1)},
}


def new(name: str = "resnet10t", classes: int = 4) -> nn.Module:
    return st.create(name, num_classes=classes, seed=3, **NETS[name])


def stirred(net: nn.Module) -> nn.Module:
    """Give every learned value and every running statistic another value."""
    torch.manual_seed(5)
    with torch.no_grad():
        for value in net.parameters():
            if value.requires_grad:
                value.add_(0.1 * torch.randn_like(value))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.add_(0.1)
            module.running_var.mul_(1.2)
    return net.eval()


def theirs(folder: Path, name: str = "resnet10t", **settings: Any) -> nn.Module:
    model = stirred(get_peft_model(new(name), LoraConfig(**settings)))
    model.save_pretrained(folder)
    return PeftModel.from_pretrained(new(name), folder).eval()


def agree(one: nn.Module, other: nn.Module, size: int = 32) -> None:
    x = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = one.eval()(x), other.eval()(x)
    assert expected.std() > 1e-4
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


LINEAR = r".*(qkv|proj|fc1|fc2)"
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "convolutions": ("resnet10t", {"r": 4, "target_modules": r"layer\d.*conv\d"}),
    "alpha": ("resnet10t", {"r": 4, "lora_alpha": 16, "target_modules": r"layer\d.*conv\d"}),
    "a rank that is full": ("resnet10t", {"r": 40, "target_modules": r"conv1\.0|layer1.*conv\d"}),
    "rank-stabilised": ("resnet10t", {"r": 4, "use_rslora": True, "target_modules": ["conv2"]}),
    "alpha by layer": (
        "resnet10t",
        {
            "target_modules": ["conv1", "conv2"],
            "exclude_modules": r"conv1",
            "alpha_pattern": {"layer1.0.conv2": 3},
            "rank_pattern": {"layer1.0.conv1": 2},
        },
    ),
    "the classifier too": ("resnet10t", {"r": 3, "target_modules": r"layer1.*conv\d|fc"}),
    "a classifier that is saved": (
        "torchvision/resnet18",
        {"r": 2, "target_modules": ["conv1"], "modules_to_save": ["fc"]},
    ),
    "normalisation with statistics": (
        "torchvision/resnet18",
        {"r": 2, "target_modules": ["conv2"], "modules_to_save": ["bn1", "bn2", "fc"]},
    ),
    "a convolution that is saved": (
        "resnet10t",
        {"r": 2, "target_modules": ["conv2"], "modules_to_save": ["layer2.0.conv1", "fc"]},
    ),
    "linear maps": (
        "vit_tiny_patch16_224",
        {"r": 4, "target_modules": LINEAR, "modules_to_save": ["head", "norm1", "norm2"]},
    ),
    "all that are linear": ("vit_tiny_patch16_224", {"r": 2, "target_modules": "all-linear"}),
    "pointwise convolutions": (
        "mobilenetv3_small_050",
        {"r": 4, "target_modules": r".*conv_pwl?", "modules_to_save": ["classifier"]},
    ),
    "a depthwise convolution that is saved": (
        "convnext_atto",
        {"r": 4, "target_modules": ["fc1", "fc2"], "modules_to_save": ["conv_dw", "head.fc"]},
    ),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_an_adapter_of_peft_becomes_a_delta_with_the_same_outputs(case, tmp_path):
    name, settings = SETTINGS[case]
    expected = theirs(tmp_path / "adapter", name, **settings)
    assert is_adapter(tmp_path / "adapter")
    net = from_peft(new(name), tmp_path / "adapter")
    agree(net, expected)
    st.save(net, tmp_path / "mine.safetensors")
    agree(st.load(tmp_path / "mine.safetensors"), expected)


def test_what_peft_left_alone_is_frozen(tmp_path):
    theirs(tmp_path, r=4, target_modules=["conv2"], modules_to_save=["fc"])
    net = from_peft(new(), tmp_path)
    learned = {name for name, _ in net.named_parameters()}
    blocks = {f"layer{i}.0.conv2.weight_{factor}" for i in (1, 2, 3, 4) for factor in "AB"}
    assert learned == {*blocks, "fc.weight", "fc.bias"}
    assert not st.adapted(net).plan.buffers


def test_an_adapter_of_all_layers_is_one_number(tmp_path):
    net = stirred(st.adapt_(new("vit_tiny_patch16_224"), st.Learn(rank=3)))
    to_peft(net, tmp_path)
    assert st.adapted(from_peft(new("vit_tiny_patch16_224"), tmp_path)).plan.learn == st.Learn(rank=3)


LEARNS = {
    "resnet10t": st.Learn(rank=4),
    "torchvision/resnet18": st.Learn(rank=4, norm_stats="frozen"),
    "vit_tiny_patch16_224": st.Learn(rank={"blocks.0": 8, "blocks.1": 2}),
    "mobilenetv3_small_050": st.Learn(rank=4, norm=False),
    "convnext_atto": st.Learn(rank=2, layers=["stages.1"], head=False),
}


@pytest.mark.parametrize("name", LEARNS)
def test_a_low_rank_delta_becomes_an_adapter_that_peft_loads(name, tmp_path):
    net = stirred(st.adapt_(new(name), LEARNS[name]))
    to_peft(net, tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT warns of values that it misses, or has no place for
        found = PeftModel.from_pretrained(new(name), tmp_path / "adapter")
    frozen = LEARNS[name].norm_stats == "frozen" or not LEARNS[name].norm
    expected = found if not frozen else with_statistics(found, net)
    agree(expected, net)
    agree(from_peft(new(name), tmp_path / "adapter") if not frozen else net, net)


def test_modules_whose_names_end_as_the_classifiers_are_saved_with_it(tmp_path):
    """PEFT takes every module whose name ends in one of ``modules_to_save``, and fails where none is."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential()
            self.body.map = nn.Linear(27, 8)
            self.body.fc = nn.Linear(8, 8)
            self.fc = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.body(x.flatten(1)))

        def get_classifier(self) -> nn.Module:
            return self.fc

    torch.manual_seed(0)
    backbone = Net()
    net = stirred(st.adapt_(copy.deepcopy(backbone), st.Learn(rank=2)))
    to_peft(net, tmp_path)
    agree(PeftModel.from_pretrained(copy.deepcopy(backbone), tmp_path), net, size=3)
    agree(from_peft(backbone, tmp_path), net, size=3)


def with_statistics(found: nn.Module, net: nn.Module) -> nn.Module:
    """Give PEFT's model the backbone's statistics as :func:`stirred` changed them, which it does not hold."""
    mine = dict(net.named_buffers())
    for name, value in found.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            plain = name.removeprefix("base_model.model.")
            plain = plain.replace(".modules_to_save.default", "").replace(".original_module", "")
            value.copy_(mine[plain])
    return found


def test_there_and_back_is_the_same_file(tmp_path):
    net = stirred(st.adapt_(new(), st.Learn(rank=4)))
    st.save(net, tmp_path / "first.safetensors")
    to_peft(net, tmp_path / "adapter")
    st.save(from_peft(new(), tmp_path / "adapter"), tmp_path / "second.safetensors")
    assert (tmp_path / "first.safetensors").read_bytes() == (tmp_path / "second.safetensors").read_bytes()


def test_transformers_name_of_timms_model_is_taken_off(tmp_path):
    expected = theirs(tmp_path, r=4, target_modules=["conv2"])
    values = load_file(tmp_path / "adapter_model.safetensors")
    wrapped = {k.replace("base_model.model.", "base_model.model.timm_model."): v for k, v in values.items()}
    save_file(wrapped, tmp_path / "adapter_model.safetensors")
    agree(from_peft(new(), tmp_path), expected)


@pytest.mark.parametrize(
    ("learn", "said"),
    [
        (st.Learn(fraction=0.1), "7/64 of 'layer1.0.conv1.weight'|of 'conv1.0.weight'"),
        (st.Learn(dimensions=100), "dims? of"),
        (st.Learn(filters=0), "no sum is learned"),
    ],
)
def test_what_no_adapter_can_hold_is_refused(learn, said, tmp_path):
    with pytest.raises(ConfigError, match=said):
        to_peft(st.adapt_(new(), learn), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_sums_over_groups_are_refused_both_ways(tmp_path):
    net = st.create("resnext50_32x4d", num_classes=2, layers=(1, 1, 1, 1))
    with pytest.raises(ConfigError, match=r"grouped 'layer1.0.conv2.weight'"):
        to_peft(st.adapt_(net, st.Learn(rank=2)), tmp_path)
    model = get_peft_model(
        st.create("resnext50_32x4d", num_classes=2, layers=(1, 1, 1, 1)),
        LoraConfig(r=32, target_modules=["conv2"]),
    )
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"'layer1.0.conv2', whose filters are in 32 groups"):
        from_peft(st.create("resnext50_32x4d", num_classes=2, layers=(1, 1, 1, 1)), tmp_path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "LOHA"}, "peft_type"),
        ({"bias": "all"}, "bias"),
        ({"alpha_pattern": {"(a+)+b": 2}}, "alpha_pattern"),
        ({"alpha_pattern": [1]}, "alpha_pattern"),
        ({"lora_alpha": "x"}, "lora_alpha"),
    ],
)
def test_settings_that_are_no_plain_sum_are_refused(settings, said, tmp_path):
    theirs(tmp_path, r=2, target_modules=["conv2"])
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    net = new()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ConfigError, match=said):
        from_peft(net, tmp_path)
    assert not hasattr(net, "_sparsetune")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_an_adapter_of_another_model_is_refused_and_nothing_is_changed(tmp_path):
    theirs(tmp_path / "a", r=2, target_modules=["conv2"], modules_to_save=["fc"])
    with pytest.raises(ConfigError, match=r"'layer1.0.conv2', which is no convolution"):
        from_peft(new("vit_tiny_patch16_224"), tmp_path / "a")
    with pytest.raises(ConfigError, match=r"'fc.bias' has shape \(4,\), the model's \(7,\)"):
        from_peft(new(classes=7), tmp_path / "a")


def test_layers_with_biases_that_are_saved(tmp_path):
    name = "vit_tiny_patch16_224"
    expected = theirs(tmp_path, name, r=2, target_modules=["qkv"], modules_to_save=["patch_embed", "fc1"])
    agree(from_peft(new(name), tmp_path), expected)


@pytest.mark.parametrize("harm", ["json", "list", "none", "values", "half", "shape", "empty"])
def test_damaged_adapters_are_refused_in_a_sentence(harm, tmp_path):
    theirs(tmp_path, r=2, target_modules=["conv2"])
    config, file = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    values = load_file(file)
    name = "base_model.model.layer1.0.conv2.lora_A.weight"
    if harm == "json":
        config.write_text("{")
    elif harm == "list":
        config.write_text("[]")
    elif harm == "none":
        config.unlink()
    elif harm == "values":
        file.write_bytes(file.read_bytes()[:-9])
    elif harm == "half":
        save_file({key: value for key, value in values.items() if key != name}, file)
    elif harm == "shape":
        save_file({**values, name: values[name][:, :3].contiguous()}, file)
    elif harm == "empty":
        b = name.replace("_A", "_B")
        save_file({**values, name: values[name][:0].contiguous(), b: values[b][:, :0].contiguous()}, file)
    with pytest.raises(DeltaError):
        from_peft(new(), tmp_path)
