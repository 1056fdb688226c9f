"""Each kind of layer that models of the zoo have: gradients, frozen values, what is sliced."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torchvision
from timm import layers as timm_layers
from timm.models.beit import Attention as BeitAttention
from timm.models.swin_transformer import WindowAttention
from torch import nn
from torch.utils._pytree import tree_leaves

import sparsetune as st
from sparsetune.backbone.zoo import skeleton
from sparsetune.errors import ConfigError
from sparsetune.parts.layers import head_names
from sparsetune.parts.planning import plan
from sparsetune.sliced.adapt import adapt_, adapted, merge_
from sparsetune.spec.learn import DIMS, Learn


class Held(nn.Module):
    """One layer before a classifier."""

    def __init__(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        super().__init__()
        self.layer = layer
        self.fc = nn.Linear(self.features(*inputs).shape[1], 3)

    def features(self, *inputs: torch.Tensor) -> torch.Tensor:
        out = self.layer(*inputs)
        return (out[0] if isinstance(out, tuple) else out).flatten(1)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(*inputs))


class SelfAttention(nn.MultiheadAttention):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return super().forward(x, x, x)


class Tied(nn.Module):
    """Two linear maps of one weight, and a buffer that is computed from it on each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("norm", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.norm.copy_(self.first.weight.detach().norm())
        return self.second(self.first(x).tanh()) / self.norm


PICTURES, WORDS, CHANNELS = (2, 8, 6, 6), (2, 5, 8), (2, 8)
LAYERS = [
    ("weight-standardised", lambda: timm_layers.StdConv2d(8, 12, 3, padding=1, bias=True), PICTURES),
    ("weight-standardised same", lambda: timm_layers.StdConv2dSame(8, 12, 3, stride=2), PICTURES),
    ("scaled", lambda: timm_layers.ScaledStdConv2d(8, 12, 3), PICTURES),
    ("scaled same", lambda: timm_layers.ScaledStdConv2dSame(8, 12, 3, stride=2), PICTURES),
    ("same padding", lambda: timm_layers.Conv2dSame(8, 12, 3, stride=2), PICTURES),
    ("mixed kernels", lambda: timm_layers.MixedConv2d(8, 12, [3, 5]), PICTURES),
    ("depthwise", lambda: nn.Conv2d(8, 8, 3, groups=8), PICTURES),
    ("grouped", lambda: nn.Conv2d(8, 12, 3, groups=4, stride=2), PICTURES),
    ("transposed", lambda: nn.ConvTranspose2d(8, 12, 3, stride=2), PICTURES),
    ("transposed grouped", lambda: nn.ConvTranspose2d(8, 16, 3, groups=2), PICTURES),
    ("transposed 1-d", lambda: nn.ConvTranspose1d(8, 12, 3, bias=False), (2, 8, 5)),
    ("3-d", lambda: nn.Conv3d(8, 12, 3, padding=1), (2, 8, 3, 4, 4)),
    ("fused qkv", lambda: timm.models.vision_transformer.Attention(8, num_heads=2, qkv_bias=True), WORDS),
    ("separate q and v biases", lambda: BeitAttention(8, num_heads=2, qkv_bias=True), WORDS),
    ("projections in one", lambda: SelfAttention(8, 2, batch_first=True), WORDS),
    ("projections apart", lambda: SelfAttention(8, 2, kdim=8, vdim=8, add_bias_kv=True), WORDS),
    ("position table", lambda: WindowAttention(8, num_heads=2, window_size=3), (2, 9, 8)),
    ("layer scale", lambda: nn.Sequential(nn.Linear(8, 8), timm_layers.LayerScale(8, 0.5)), WORDS),
    ("tied", Tied, WORDS),
    ("recurrent", lambda: nn.LSTM(8, 6, batch_first=True), WORDS),
    ("experts", lambda: Routed(), CHANNELS),
]  # fmt: skip


class Routed(nn.Module):
    """A convolution whose filters are mixed anew for each picture."""

    def __init__(self) -> None:
        super().__init__()
        self.route = nn.Linear(8, 4)
        self.conv = timm_layers.CondConv2d(8, 8, 3, padding=1, bias=True, num_experts=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x[:, :, None, None].expand(-1, -1, 4, 4), self.route(x).sigmoid())


def made(layer, shape) -> tuple[Held, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    inputs = (torch.randn(shape, dtype=torch.float64),)
    net = Held(layer().double(), inputs).double()
    with torch.no_grad():
        for value in net.parameters():
            value.add_(torch.randn_like(value), alpha=0.1)
    return net, inputs


@pytest.mark.parametrize("dim", ["out", "in"])
@pytest.mark.parametrize(("layer", "shape"), [case[1:] for case in LAYERS], ids=[case[0] for case in LAYERS])
def test_gradients_are_the_plain_ones_and_the_rest_is_frozen(layer, shape, dim):
    plain, inputs = made(layer, shape)
    net = adapt_(copy.deepcopy(plain), Learn(fraction=0.25, dim=dim))
    torch.testing.assert_close(net(*inputs), plain(*inputs), rtol=1e-13, atol=1e-13)
    for each in (plain, net):
        each(*inputs).sin().sum().backward()
    learned = dict(net.named_parameters())
    for part in adapted(net).plan:
        if part.k:
            expected = plain.get_parameter(part.name).grad.narrow(part.dim, 0, part.k)
            torch.testing.assert_close(learned[part.name].grad, expected, rtol=1e-10, atol=1e-12)
    torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1).step()
    parts = adapted(net).plan
    merge_(net)
    for part in parts:
        before, after = plain.get_parameter(part.name), net.get_parameter(part.name)
        if part.shape:
            rest = part.k, part.size - part.k
            before, after = before.narrow(part.dim, *rest), after.narrow(part.dim, *rest)
        assert torch.equal(before, after), part.name
    assert any(part.k for part in parts if part.layer) != isinstance(plain.layer, nn.LSTM)
    plain.load_state_dict(net.state_dict())
    for each in (plain, net):
        each.zero_grad()
        each(*inputs).sin().sum().backward()
    for name, value in plain.named_parameters():
        assert torch.equal(value.grad, net.get_parameter(name).grad), name


@pytest.mark.parametrize(
    ("layer", "sizes"),
    [
        (nn.ConvTranspose2d(8, 12, (3, 5)), [(1, 6, 6), (0, 4, 12), (2, 1, 12), (3, 2, 12)]),
        (nn.ConvTranspose2d(8, 12, (3, 5), groups=2), [(1, 3, 12), (0, 4, 12), (2, 1, 12), (3, 2, 12)]),
        (nn.MultiheadAttention(8, 2), [(0, 12, 12), (1, 4, 24), (0, 24, 24), (0, 24, 24)]),
    ],
    ids=["transposed", "transposed grouped", "attention"],
)
def test_slices_of_layers_that_count_filters_elsewhere(layer, sizes):
    """Sliced dimension, learned indices along it, learned biases: by filters, inputs, height and width."""
    for dim, size in zip(DIMS, sizes, strict=True):
        check_slices(layer, dim, size)


def check_slices(layer, dim, size):
    found = [
        part
        for part in plan(nn.Sequential(layer), Learn(fraction=0.5, dim=dim))
        if "out_proj" not in part.name
    ]
    assert (found[0].dim, found[0].k, found[1].k) == size


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 8), (2, 3, 4, 8)], ids=str)
@pytest.mark.parametrize("order", [1, -1], ids=["dense", "strided"])
def test_a_linear_map_may_be_followed_by_a_change_in_place(shape, order):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 4)).double()
    net = adapt_(copy.deepcopy(plain), Learn(fraction=0.25))
    x = torch.randn(shape[::order], dtype=torch.float64).permute(*range(len(shape))[::order])
    for each in (plain, net):
        each(x).sin().sum().backward()
    torch.testing.assert_close(net(x), plain(x), rtol=1e-13, atol=1e-13)
    for part in adapted(net).plan:
        expected = plain.get_parameter(part.name).grad.narrow(part.dim, 0, part.k)
        torch.testing.assert_close(dict(net.named_parameters())[part.name].grad, expected)


def test_an_attention_in_evaluation_mode_takes_the_fast_path_and_is_right():
    torch.manual_seed(0)
    plain = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    net = adapt_(copy.deepcopy(plain), Learn(fraction=0.25))
    with torch.no_grad():
        next(net.parameters()).add_(1)
        x = torch.randn(2, 5, 8)
        plain.load_state_dict(merge_(copy.deepcopy(net)).state_dict())
        assert torch.equal(net(x), plain(x))


def test_a_layer_without_a_shape_yet_is_named():
    net = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    with pytest.raises(ConfigError, match=r"'0.weight' has no shape yet; run the model on one batch first"):
        plan(net, Learn(fraction=0.5))
    net(torch.zeros(1, 3))
    assert plan(net, Learn(fraction=0.5)).parts[0].learned_shape == (2, 3)


HEADS = {
    "torchvision/squeezenet1_0": {"classifier.1"},
    "torchvision/googlenet": {"aux1.fc2", "aux2.fc2", "fc"},
    "torchvision/resnet18": {"fc"},
    "torchvision/quantized_mobilenet_v2": {"classifier.1"},
    "torchvision/r3d_18": {"fc"},
    "torchvision/fcn_resnet50": {"classifier.4"},
    "torchvision/lraspp_mobilenet_v3_large": {"classifier.low_classifier", "classifier.high_classifier"},
    "torchvision/retinanet_resnet50_fpn": {"head.classification_head.cls_logits"},
    "torchvision/maskrcnn_resnet50_fpn": {
        "roi_heads.box_predictor.cls_score",
        "roi_heads.box_predictor.bbox_pred",
        "roi_heads.mask_predictor.mask_fcn_logits",
    },
    "torchvision/raft_small": set(),
    "deit_tiny_distilled_patch16_224": {"head", "head_dist"},
}


@pytest.mark.parametrize("name", HEADS)
def test_the_head_of_a_named_model_is_what_depends_on_the_class_count(name):
    library, _, plain = name.rpartition("/")
    origin = st.backbone.Origin(
        library=library or "timm",
        name=plain,
        kwargs={},
        num_classes=0 if "raft" in name else 8,  # torchvision's own layers have 8 filters here and there
        backbone=st.Backbone(kind="seed"),
    )
    assert set(head_names(skeleton(origin))) == HEADS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision/raft_small", "torchvision/ssdlite320_mobilenet_v3_large"])
def test_models_of_other_inputs_come_back(name, tmp_path):
    net = st.adapt_(st.create(name), Learn(fraction=0.25))
    picture = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    inputs = (picture, picture.flip(3)) if "raft" in name else ([picture[0]],)
    with torch.no_grad():
        for value in net.parameters():
            value.mul_(1.1)
        expected = tree_leaves(net.eval()(*inputs))
        st.save(net, tmp_path / "delta.safetensors")
        found = tree_leaves(st.load(tmp_path / "delta.safetensors")(*inputs))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    weights = torchvision.models.get_model(
        name.partition("/")[2], weights=None, **({} if "raft" in name else {"weights_backbone": None})
    )
    assert list(merge_(net).state_dict()) == list(weights.state_dict())
