from __future__ import annotations

from fractions import Fraction
from math import ceil, floor

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data import resolve_model_data_config
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn import functional as F

import sparsetune.backbone.models  # noqa: F401
from sparsetune.errors import BackboneError, ConfigError

NAMES = ("wrn28_4", "wrn28_10", "densenet100_12", "alexnet_cifar", "vgg19_cifar", "vgg19_bn_cifar")
CHAINS = NAMES[3:]


def shapes(name: str, **kwargs) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


def norms(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


def convs(net: nn.Module) -> list[nn.Module]:
    return [module for module in net.modules() if isinstance(module, nn.Conv2d)]


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


# --- parameter counts: the paper's Tables 1 and 2 -----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "classes", "everything", "norm", "fc_and_norm"),
    [
        ("densenet100_12", 10, 769_162, 23_988, 27_418),
        ("densenet100_12", 100, 800_032, 23_988, 58_288),
        ("wrn28_4", 10, 5_849_050, 7_200, 9_770),
        ("wrn28_4", 100, 5_872_180, 7_200, 32_900),
        ("wrn28_10", 10, 36_479_194, 17_952, 24_362),
    ],
)
def test_counts(name: str, classes: int, everything: int, norm: int, fc_and_norm: int) -> None:
    net = shapes(name, num_classes=classes)
    assert count(net) == everything
    assert count(*norms(net)) == norm
    assert count(*norms(net), net.fc) == fc_and_norm


@pytest.mark.parametrize(
    ("name", "module", "learned"),
    [
        ("densenet100_12", "conv1", 24_636),
        ("densenet100_12", "block1", 194_484),
        ("densenet100_12", "block2", 258_996),
        ("densenet100_12", "block3", 291_252),
        ("wrn28_4", "conv1", 7_632),
        ("wrn28_4", "block1", 275_488),
        ("wrn28_4", "block2", 1_121_312),
        ("wrn28_4", "block3", 4_463_648),
    ],
)
def test_counts_of_one_module_with_norm(name: str, module: str, learned: int) -> None:
    net = shapes(name)
    assert count(*norms(net), *convs(net.get_submodule(module))) == learned


@pytest.mark.parametrize(
    ("name", "fraction", "learned"),
    [
        ("wrn28_10", "0.1", 3_669_829),
        ("wrn28_10", "0.4", 14_606_284),
        ("densenet100_12", "0.1", 90_196),
        ("densenet100_12", "0.4", 305_701),
    ],
)
def test_counts_of_fractions_of_filters(name: str, fraction: str, learned: int) -> None:
    net = shapes(name)
    sliced = sum(
        floor(Fraction(fraction) * conv.out_channels) * conv.weight[0].numel() for conv in convs(net)
    )
    assert sliced + count(*norms(net), net.fc) == learned


def test_counts_of_chains() -> None:
    alexnet = 23_296 + 307_392 + 663_936 + 884_992 + 590_080 + 2_570
    vgg = 1_792 + 36_928 + 73_856 + 147_584 + 295_168 + 3 * 590_080 + 1_180_160 + 7 * 2_359_808 + 5_130
    norm = 2 * (2 * 64 + 2 * 128 + 4 * 256 + 8 * 512)
    assert count(shapes("alexnet_cifar")) == alexnet
    assert count(shapes("vgg19_cifar")) == vgg
    assert count(shapes("vgg19_bn_cifar")) == vgg + norm
    assert count(shapes("vgg19_cifar", num_classes=100)) == vgg + 90 * 513


# --- arithmetic: each network written again as one function of its state dict -------------------------------


class Restated:
    """The networks from their description; ``training`` chooses batch or running statistics."""

    def __init__(self, net: nn.Module) -> None:
        self.values = dict(net.state_dict())
        self.training = net.training

    def conv(self, name: str, x: Tensor, stride: int = 1, padding: int | None = None) -> Tensor:
        weight = self.values[f"{name}.weight"]
        padding = weight.shape[-1] // 2 if padding is None else padding
        return F.conv2d(x, weight, self.values.get(f"{name}.bias"), stride, padding)

    def norm_relu(self, name: str, x: Tensor) -> Tensor:
        if self.training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        else:
            mean, var = self.values[f"{name}.running_mean"], self.values[f"{name}.running_var"]
        scale = self.values[f"{name}.weight"] / (var + 1e-5).sqrt()
        shift = self.values[f"{name}.bias"] - mean * scale
        return (x * scale[:, None, None] + shift[:, None, None]).clamp(min=0)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.values[f"{name}.weight"].T + self.values[f"{name}.bias"]

    def wrn(self, x: Tensor, depth: int) -> Tensor:
        x = self.conv("conv1", x)
        for block in (1, 2, 3):
            for layer in range((depth - 4) // 6):
                name = f"block{block}.{layer}"
                stride = 2 if block > 1 and layer == 0 else 1
                active = self.norm_relu(f"{name}.bn1", x)
                new = self.norm_relu(f"{name}.bn2", self.conv(f"{name}.conv1", active, stride))
                if f"{name}.shortcut.weight" in self.values:
                    x = self.conv(f"{name}.shortcut", active, stride)
                x = x + self.conv(f"{name}.conv2", new)
        return self.linear("fc", F.avg_pool2d(self.norm_relu("bn1", x), 8).flatten(1))

    def densenet(self, x: Tensor, depth: int) -> Tensor:
        x = self.conv("conv1", x)
        for block in (1, 2, 3):
            for layer in range((depth - 4) // 6):
                name = f"block{block}.{layer}"
                new = self.conv(f"{name}.conv1", self.norm_relu(f"{name}.bn1", x))
                new = self.conv(f"{name}.conv2", self.norm_relu(f"{name}.bn2", new))
                x = torch.cat([x, new], dim=1)
            if block < 3:
                x = self.conv(f"trans{block}.conv1", self.norm_relu(f"trans{block}.bn1", x))
                x = F.avg_pool2d(x, 2)
        return self.linear("fc", F.avg_pool2d(self.norm_relu("bn", x), 8).flatten(1))

    def alexnet(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv("features.0", x, stride=4).relu(), 2)
        x = F.max_pool2d(self.conv("features.3", x).relu(), 2)
        for name in ("features.6", "features.8", "features.10"):
            x = self.conv(name, x).relu()
        return self.linear("classifier", F.max_pool2d(x, 2).flatten(1))

    def vgg19(self, x: Tensor, norm: bool) -> Tensor:
        i = 0
        for layers in (2, 2, 4, 4, 4):
            for _ in range(layers):
                x = self.conv(f"features.{i}", x)
                x = self.norm_relu(f"features.{i + 1}", x) if norm else x.relu()
                i += 3 if norm else 2
            x = F.max_pool2d(x, 2)
            i += 1
        return self.linear("classifier", x.flatten(1))


def perturbed(name: str, **kwargs) -> nn.Module:
    """A model in double precision whose norms do not have their trivial initial values."""
    torch.manual_seed(0)
    net = timm.create_model(name, **kwargs).double()
    for norm in norms(net):
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.data.add_(0.2 * torch.rand_like(tensor))
    return net


@pytest.mark.parametrize(
    ("name", "training"),
    [
        ("wrn", False),
        ("wrn", True),
        ("densenet", False),
        ("densenet", True),
        ("alexnet", True),
        ("vgg19", True),
        ("vgg19_bn", False),
    ],
)
def test_forward_is_the_described_network(name: str, training: bool) -> None:
    model, kwargs = {
        "wrn": ("wrn28_4", {"depth": 16, "width": 2}),
        "densenet": ("densenet100_12", {"depth": 22}),
    }.get(name, (f"{name}_cifar", {}))
    net = perturbed(model, **kwargs).train(training)
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    restated = Restated(net)
    with torch.no_grad():
        if name.startswith("vgg"):
            expected = restated.vgg19(x, norm=name.endswith("bn"))
        else:
            expected = getattr(restated, name)(x, **{k: kwargs[k] for k in kwargs if k == "depth"})
        torch.testing.assert_close(net(x), expected, rtol=1e-9, atol=1e-10)


# --- image sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wrn28_4", "densenet100_12", *CHAINS])
@pytest.mark.parametrize("side", [8, 16, 32, 33, 64])
def test_image_sizes(name: str, side: int) -> None:
    shallow = {"depth": 22} if name == "densenet100_12" else {}
    net = shapes(name, num_classes=7, **shallow)
    x = torch.empty(2, 3, side, side, device="meta")
    side_of_features = {"wrn28_4": ceil(side / 4), "densenet100_12": side // 4}.get(name, ceil(side / 32))
    features = net.forward_features(x)
    assert features.shape == (2, net.num_features, side_of_features, side_of_features)
    assert net.forward_head(features, pre_logits=True).shape == (2, net.head_hidden_size)
    assert net(x).shape == (2, 7)


@pytest.fixture(scope="module")
def small_nets() -> list[nn.Module]:
    kwargs = {"wrn28_4": {"depth": 10, "width": 1}, "densenet100_12": {"depth": 10}}
    return [
        shapes(name, **kwargs.get(name, {})) for name in NAMES if name not in ("wrn28_10", "vgg19_bn_cifar")
    ]


@settings(max_examples=12, deadline=None)
@given(height=st.integers(8, 96), width=st.integers(8, 96))
def test_any_size_from_8_up(small_nets: list[nn.Module], height: int, width: int) -> None:
    for net in small_nets:
        assert net(torch.empty(2, 3, height, width, device="meta")).shape == (2, 10)


def test_smallest_images_are_finite_and_trainable() -> None:
    for name in CHAINS:
        net = timm.create_model(name, in_chans=1)
        net(torch.randn(2, 1, 8, 8)).logsumexp(1).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


# --- settings -----------------------------------------------------------------------------------------------


def test_depth_and_width() -> None:
    net = shapes("wrn28_4", depth=16, width=8)
    assert [len(block) for block in (net.block1, net.block2, net.block3)] == [2, 2, 2]
    assert net.num_features == 512
    assert count(net) == 10_961_370  # WRN-16-8, 11.0 M in Zagoruyko and Komodakis, Table 4
    assert count(shapes("wrn28_10", width=4)) == count(shapes("wrn28_4"))


def test_depth_and_growth_rate() -> None:
    net = shapes("densenet100_12", depth=190, growth_rate=40)
    assert len(net.block3) == 31
    assert net.conv1.out_channels == 80
    assert round(count(net) / 1e6, 1) == 25.6  # Huang et al., Table 2


@pytest.mark.parametrize(
    ("depth", "nearest"),
    [(29, 28), (27, 28), (26, 28), (25, 28), (30, 28), (32, 34), (4, 10), (5, 10), (101, 100)],
)
@pytest.mark.parametrize("name", ["wrn28_4", "densenet100_12"])
def test_bad_depth_names_the_nearest(name: str, depth: int, nearest: int) -> None:
    with pytest.raises(ConfigError) as caught:
        shapes(name, depth=depth)
    expected = f"depth {depth} is not 6 n + 4 with n of 1 or more; the nearest such depth is {nearest}."
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("wrn28_4", "depth", "28"),
        ("wrn28_4", "width", 0),
        ("wrn28_4", "width", 1.5),
        ("densenet100_12", "growth_rate", -1),
        ("alexnet_cifar", "in_chans", 0),
        ("vgg19_cifar", "in_chans", True),
    ],
)
def test_bad_count(name: str, setting: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        shapes(name, **{setting: value})
    assert str(caught.value) == f"{setting} {value!r} is not a whole number of 1 or more."


@pytest.mark.parametrize("name", ["wrn28_4", "densenet100_12", "alexnet_cifar"])
def test_dropout_acts_only_in_training(name: str) -> None:
    kwargs = {} if name == "alexnet_cifar" else {"depth": 10}
    net = timm.create_model(name, drop_rate=0.3, **kwargs)
    x = torch.randn(2, 3, 16, 16)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))
    assert "Dropout(p=0.3" in str(net)


# --- timm's conventions -------------------------------------------------------------------------------------


def test_registered() -> None:
    assert timm.list_models("wrn28*") == ["wrn28_4", "wrn28_10"]
    assert set(NAMES) <= set(timm.list_models())
    assert not set(NAMES) & set(timm.list_models(pretrained=True))


@pytest.mark.parametrize("name", NAMES)
def test_data_config_and_ends(name: str) -> None:
    net = shapes(name)
    assert resolve_model_data_config(net) == {
        "input_size": (3, 32, 32),
        "interpolation": "bilinear",
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2023, 0.1994, 0.2010),
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
    assert net.get_submodule(net.default_cfg["first_conv"]) is convs(net)[0]
    assert net.get_submodule(net.default_cfg["classifier"]) is net.get_classifier()
    features = net.forward_features(torch.empty(1, 3, 32, 32, device="meta"))
    assert features.shape[-2:] == net.default_cfg["pool_size"]
    assert net.default_cfg["num_classes"] == net.num_classes == net.get_classifier().out_features == 10


@pytest.mark.parametrize("name", ["wrn28_4", "alexnet_cifar"])
def test_reset_classifier(name: str) -> None:
    net = timm.create_model(name).double().eval()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    net.reset_classifier(3)
    assert net(x).shape == (2, 3)
    assert net.num_classes == 3
    net.reset_classifier(0)
    assert torch.equal(net(x), net.forward_head(net.forward_features(x), pre_logits=True))
    net.reset_classifier(5, "catavgmax")
    assert net.head_hidden_size == 2 * net.num_features
    assert net(x).shape == (2, 5)
    net.reset_classifier(0, "")
    assert torch.equal(net(x), net.forward_features(x))


@pytest.mark.parametrize(
    ("name", "channels", "reduction"),
    [
        ("wrn28_4", [64, 128, 256], [1, 2, 4]),
        ("densenet100_12", [216, 300, 342], [1, 2, 4]),
        ("alexnet_cifar", [64, 192, 256], [4, 8, 16]),
        ("vgg19_cifar", [64, 128, 256, 512, 512], [1, 2, 4, 8, 16]),
        ("vgg19_bn_cifar", [64, 128, 256, 512, 512], [1, 2, 4, 8, 16]),
    ],
)
def test_features_only(name: str, channels: list[int], reduction: list[int]) -> None:
    net = shapes(name, features_only=True)
    assert net.feature_info.channels() == channels
    assert net.feature_info.reduction() == reduction
    found = [tuple(feature.shape) for feature in net(torch.empty(1, 3, 32, 32, device="meta"))]
    assert found == [(1, c, 32 // r, 32 // r) for c, r in zip(channels, reduction, strict=True)]


def test_last_feature_is_forward_features() -> None:
    torch.manual_seed(0)
    net = timm.create_model("wrn28_4", depth=10, width=1).eval()
    features = timm.create_model("wrn28_4", depth=10, width=1, features_only=True).eval()
    features.load_state_dict(net.state_dict(), strict=False)
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(features(x)[-1], net.forward_features(x))


@pytest.mark.parametrize(
    ("name", "coarse", "fine"),
    [
        ("wrn28_4", 1 + 3 + 1, 1 + 12 + 1),
        ("densenet100_12", 1 + 3 + 1, 1 + 48 + 2 + 1),
        ("vgg19_cifar", 17, 17),
    ],
)
def test_parameter_groups(name: str, coarse: int, fine: int) -> None:
    net = shapes(name)
    first, last = net.default_cfg["first_conv"], net.default_cfg["classifier"]
    for is_coarse, expected in ((True, coarse), (False, fine)):
        groups = group_parameters(net, net.group_matcher(coarse=is_coarse))
        assert len(groups) == expected
        assert groups[0][0] == f"{first}.weight"
        assert groups[expected - 1][-1] == f"{last}.bias"


@pytest.mark.parametrize("name", NAMES)
def test_pretrained_is_refused(name: str) -> None:
    with pytest.raises(BackboneError) as caught:
        shapes(name, pretrained=True)
    assert str(caught.value) == (
        f"{name} has no pretrained weights; leave pretrained out to start from random ones, "
        "or load a checkpoint of your own."
    )


def test_own_weights_load_as_pretrained(tmp_path) -> None:
    net = timm.create_model("wrn28_4", depth=10, width=1)
    torch.save(net.state_dict(), tmp_path / "own.pth")
    overlay = {"file": str(tmp_path / "own.pth")}
    again = timm.create_model("wrn28_4", True, pretrained_cfg_overlay=overlay, depth=10, width=1)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


# --- initial values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wrn28_4", "densenet100_12", "alexnet_cifar", "vgg19_bn_cifar"])
def test_convolutions_start_normal(name: str) -> None:
    torch.manual_seed(0)
    net = timm.create_model(name)
    for conv in convs(net):
        out, _, height, width = conv.weight.shape
        z = conv.weight.detach() / (2 / (height * width * out)) ** 0.5
        n = z.numel()
        assert abs(z.mean()) < 5 / n**0.5
        assert abs(z.std() - 1) < 5 / (2 * n) ** 0.5
        assert abs((z.abs() < 1).double().mean() - 0.682689) < 5 * (0.2166 / n) ** 0.5
    for norm in norms(net):
        assert torch.equal(norm.weight, torch.ones_like(norm.weight))
        assert torch.equal(norm.bias, torch.zeros_like(norm.bias))


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    ("name", "uniform_weight", "zero_bias"),
    [
        ("wrn28_4", True, True),
        ("densenet100_12", True, False),
        ("alexnet_cifar", True, False),
        ("vgg19_cifar", False, True),
        ("vgg19_bn_cifar", False, True),
    ],
)
def test_classifiers_start_as_in_the_reference(
    name: str, uniform_weight: bool, zero_bias: bool, reset: bool
) -> None:
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=200)
    if reset:
        net.reset_classifier(150)
    linear = net.get_classifier()
    bound = linear.in_features**-0.5
    weight, n = linear.weight.detach(), linear.weight.numel()
    std = bound / 3**0.5 if uniform_weight else 0.01
    assert abs(weight.std() / std - 1) < 5 / (2 * n) ** 0.5
    if uniform_weight:
        assert 0.99 * bound < weight.abs().max() <= bound
    else:
        assert weight.abs().max() > 3 * std
    assert torch.equal(linear.bias, torch.zeros_like(linear.bias)) == zero_bias
    assert linear.bias.abs().max() <= bound


def test_bias_of_convolutions() -> None:
    assert all(not conv.bias.any() for conv in convs(timm.create_model("vgg19_cifar")))
    for conv in convs(timm.create_model("alexnet_cifar")):
        bound = conv.weight[0].numel() ** -0.5
        assert 0.5 * bound < conv.bias.abs().max() <= bound


# --- checkpointing, export, compilation ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wrn28_4", "densenet100_12"])
def test_checkpointing_changes_nothing(name: str) -> None:
    runs = []
    for enable in (False, True):
        torch.manual_seed(0)
        net = timm.create_model(name, depth=10, drop_rate=0.2)
        net.set_grad_checkpointing(enable)
        net(torch.randn(4, 3, 8, 8)).logsumexp(1).sum().backward()
        runs.append([*(p.grad for p in net.parameters()), *net.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_checkpointing_of_a_chain_is_refused() -> None:
    net = shapes("vgg19_cifar")
    net.set_grad_checkpointing(False)
    with pytest.raises(
        ConfigError, match=r"^VGG19 has no gradient checkpointing; leave it off, or use a wrn"
    ):
        net.set_grad_checkpointing()


@pytest.mark.parametrize("name", ["wrn28_4", "densenet100_12", "alexnet_cifar", "vgg19_cifar"])
def test_export(name: str) -> None:
    kwargs = {"depth": 10} if name in ("wrn28_4", "densenet100_12") else {}
    net = timm.create_model(name, **kwargs).eval()
    x = torch.randn(2, 3, 8, 8)
    batch = ({0: torch.export.Dim("batch", min=1, max=64)},)
    exported = torch.export.export(net, (x,), dynamic_shapes=batch).module()
    more = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(exported(more), net(more))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiles_as_one_graph(checkpointing: bool) -> None:
    torch.manual_seed(0)
    net = timm.create_model("wrn28_4", depth=10, width=1)
    plain = timm.create_model("wrn28_4", depth=10, width=1)
    plain.load_state_dict(net.state_dict())
    net.set_grad_checkpointing(checkpointing)
    x = torch.randn(2, 3, 8, 8)
    torch.compile(net, backend="aot_eager", fullgraph=True)(x).square().sum().backward()
    plain(x).square().sum().backward()
    for mine, other in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad)
    for mine, other in zip(net.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(mine, other)
