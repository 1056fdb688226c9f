"""``adapt_`` and ``merge_``: an inverse pair around any training."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torchvision
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import sparsetune.backbone.models  # noqa: F401
from sparsetune.backbone.origin import fingerprint
from sparsetune.backbone.source import Backbone
from sparsetune.errors import ConfigError, UnknownNameError
from sparsetune.parts.planning import plan
from sparsetune.sliced.adapt import adapt_, adapted, frozen_dtype, frozen_values, learned_values, merge_
from sparsetune.spec.learn import Learn

TENTH = Learn(fraction=0.1)


def wrn(seed: int = 0, **kwargs) -> nn.Module:
    """A wide residual network of one block a stage."""
    torch.manual_seed(seed)
    return timm.create_model("wrn28_4", depth=10, width=1, num_classes=4, **kwargs)


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    library, _, plain = name.rpartition("/")
    return torchvision.models.get_model(plain) if library else timm.create_model(plain, num_classes=5)


def pictures(size: int = 8, count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(count, 3, size, size, generator=generator), torch.arange(count) % 4


def snapshot(values) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in values}


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int, size: int = 8) -> None:
    net.train()
    x, y = pictures(size)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    net.eval()


def check_after_training(
    net: nn.Module, plain: nn.Module, frozen: dict, learned: dict, size: int = 8
) -> None:
    """Frozen values are as they were, all learned ones moved, and outputs are those of the merged weights."""
    made = adapted(net).plan
    for name, value in frozen_values(net, made):
        assert torch.equal(value, frozen[name]), name
    assert fingerprint(frozen_values(net, made)) == adapted(net).fingerprint
    for name, value in learned_values(net, made):
        assert not torch.equal(value, learned[name]), name
    plain.load_state_dict(merge_(copy.deepcopy(net)).state_dict())
    x = pictures(size)[0]
    assert torch.equal(net(x), plain.eval()(x))


def named(build, /, **settings):
    values = [f"{key}={getattr(value, '__name__', value)}" for key, value in settings.items()]
    return pytest.param(build, settings, id=" ".join([getattr(build, "__name__", build), *values]))


OPTIMIZERS = [
    named(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
    named(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True, foreach=True),
    named(torch.optim.Adam, lr=0.01, weight_decay=0.1),
    named(torch.optim.AdamW, lr=0.01, weight_decay=0.1, foreach=False),
    named(torch.optim.AdamW, lr=0.01, weight_decay=0.1, foreach=True),
    named(torch.optim.AdamW, lr=0.01, weight_decay=0.1, fused=True),
    *[named(name, lr=0.01, weight_decay=0.1) for name in ("lamb", "adafactor", "lion", "madgrad", "muon")],
    *[named("sgdw", lr=0.1, weight_decay=0.1, momentum=0.9, foreach=flag) for flag in (True, False)],
    *[named("nadamw", lr=0.01, weight_decay=0.1, foreach=flag) for flag in (True, False)],
]


@pytest.mark.parametrize("dim", ["out", "in"])
@pytest.mark.parametrize(("optimizer", "settings"), OPTIMIZERS)
def test_no_optimizer_moves_frozen_values(optimizer, settings, dim):
    net = adapt_(wrn(), Learn(fraction=0.25, dim=dim))
    made = adapted(net).plan
    frozen, learned = snapshot(frozen_values(net, made)), snapshot(learned_values(net, made))
    if isinstance(optimizer, str):
        steps = create_optimizer_v2(net, optimizer, **settings)
    else:
        steps = optimizer(net.parameters(), **settings)
    train(net, steps, 50 if dim == "out" else 5)
    check_after_training(net, wrn(1), frozen, learned)


@pytest.mark.parametrize("frozen", [None, "zero"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_timm_model_learns_only_its_slices(frozen, memory_format):
    net = adapt_(build("resnet18"), Learn(fraction=0.1, frozen=frozen)).to(memory_format=memory_format)
    made = adapted(net).plan
    before = snapshot(frozen_values(net, made)), snapshot(learned_values(net, made))
    train(net, torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=0.01), 2, size=32)
    plain = build("resnet18").to(memory_format=memory_format)
    check_after_training(net, plain, *before, size=32)
    assert all((value == 0).all() for _, value in frozen_values(net, made)) == (frozen == "zero")


@pytest.mark.parametrize(
    "learn",
    [TENTH, Learn(filters=3, dim="in"), Learn(filters=0, head=False), Learn(fraction=0.5, norm=False)],
    ids=lambda learn: str(learn.to_json()),
)
def test_gradients_are_those_of_the_plain_net(learn):
    plain = wrn().double()
    net = adapt_(copy.deepcopy(plain), learn)
    x, y = pictures()
    for model in (plain, net):
        F.cross_entropy(model(x.double()), y).backward()
    for part in adapted(net).plan:
        if part.k:
            whole = plain.get_parameter(part.name).grad.narrow(part.dim, 0, part.k)
            slice_ = dict(net.named_parameters())[part.name].grad
            torch.testing.assert_close(slice_, whole, rtol=1e-10, atol=1e-10)


def test_mixed_precision_trains_float32_slices():
    net = adapt_(wrn(), Learn(fraction=0.25))
    x, y = pictures()
    with torch.autocast("cpu", torch.bfloat16):
        wanted = wrn()(x)
        found = net(x)
        F.cross_entropy(found, y).backward()
    assert torch.equal(found, wanted)
    assert {parameter.grad.dtype for parameter in net.parameters()} == {torch.float32}


NAMES = [
    "resnet18", "mobilenetv3_small_050", "convnext_atto", "resnetv2_50x1_bit", "vit_tiny_patch16_224",
    "tf_efficientnet_b0", "densenet100_12", "vgg19_cifar",
    "torchvision/resnet18", "torchvision/shufflenet_v2_x0_5", "torchvision/squeezenet1_1",
]  # fmt: skip
LEARNS = {
    "tenth": TENTH,
    "inputs": Learn(filters=2, dim="in"),
    "norm": Learn(filters=0, head=False),
    "everything": Learn(fraction=1.0),
}


@pytest.mark.parametrize("name", NAMES)
def test_merging_gives_the_plain_model_back(name):
    net = build(name)
    plain = snapshot(net.state_dict().items())
    classes = [type(module) for module in net.modules()]
    for learn in LEARNS.values():
        made = plan(net, learn)
        adapt_(net, learn)
        check_adapted(net, made)
        merge_(net)
        found = net.state_dict()
        assert list(found) == list(plain)
        assert all(value.dtype == plain[key].dtype for key, value in found.items())
        assert all(torch.equal(value, plain[key]) for key, value in found.items())
        assert [type(module) for module in net.modules()] == classes
        assert all(isinstance(value, nn.Parameter) for value in net.parameters())


def check_adapted(net: nn.Module, made) -> None:
    """Parameters are the learned slices; ``state_dict`` has these and the running statistics."""
    learned = {part.name: part.learned_shape for part in made if part.k}
    assert {name: tuple(value.shape) for name, value in net.named_parameters()} == learned
    statistics = {buffer.name: buffer.shape for buffer in made.buffers}
    state = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    assert state == learned | statistics
    assert sum(p.numel() for p in net.parameters()) == made.learned_parameters


def test_an_adapted_model_keeps_its_classes_and_features():
    plain, net = wrn(), adapt_(wrn(), TENTH)
    for before, after in zip(plain.modules(), net.modules(), strict=True):
        assert isinstance(after, type(before))
        assert type(after).__name__ == type(before).__name__
    x = pictures()[0]
    assert torch.equal(net.forward_features(x), plain.forward_features(x))
    assert net.default_cfg == plain.default_cfg


@pytest.mark.parametrize("learn", LEARNS.values(), ids=LEARNS)
def test_adapting_twice_or_merging_a_plain_model_is_refused(learn):
    net = adapt_(wrn(), learn)
    with pytest.raises(ConfigError, match=r"^this model is adapted already; call sparsetune.merge_"):
        adapt_(net, learn)
    with pytest.raises(ConfigError, match="adapted already"):
        adapt_(nn.Sequential(net), learn)
    merge_(net)
    with pytest.raises(ConfigError, match=r"^this WideResNet is not adapted; call sparsetune.adapt_"):
        merge_(net)


@pytest.mark.parametrize(
    ("net", "learn", "error", "says"),
    [
        (wrn(), Learn(layers=["nowhere"], fraction=0.5), UnknownNameError, "nowhere"),
        (wrn(), Learn(fraction=0.5, frozen="pretrained"), ConfigError, "the backbone is seed 0"),
        (
            nn.Sequential(nn.Linear(4, 4).half(), nn.Conv2d(4, 4, 1), nn.Linear(4, 4)),
            Learn(fraction=0.5),
            ConfigError,
            r"several dtypes \(torch.float16, torch.float32\)",
        ),
        (nn.Sequential(nn.Conv2d(2, 2, 1, device="meta")), Learn(fraction=0.5), ConfigError, "meta device"),
    ],
    ids=["pattern", "backbone", "dtypes", "meta"],
)
def test_a_refused_model_is_left_plain(net, learn, error, says):
    before = [(name, id(value)) for name, value in net.state_dict(keep_vars=True).items()]
    with pytest.raises(error, match=says):
        adapt_(net, learn, Backbone(kind="seed"))
    assert [(name, id(value)) for name, value in net.state_dict(keep_vars=True).items()] == before


class Shared(nn.Module):
    """Layers that share weights, biases and scales, and a parameter that never had a gradient."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight = self.a.weight
        self.c.bias = self.a.bias
        self.position = nn.Parameter(torch.randn(6), requires_grad=False)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        return self.fc(self.c(self.b(self.a(x + self.position).relu()).relu()))


@pytest.mark.parametrize("learn", LEARNS.values(), ids=LEARNS)
def test_shared_parameters_stay_shared(learn):
    torch.manual_seed(0)
    net = Shared()
    wanted = copy.deepcopy(net)
    flags = {name: value.requires_grad for name, value in wanted.named_parameters()}
    adapt_(net, learn)
    x = torch.randn(5, 6)
    assert torch.equal(net(x), wanted(x))
    if any(True for _ in net.parameters()):
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        for _ in range(2):
            optimizer.zero_grad()
            (net(x).square().sum() + sum(p.sum() for p in net.parameters())).backward()
            optimizer.step()
    trained = net(x)
    merge_(net)
    assert torch.equal(net(x), trained)
    assert net.a.weight is net.b.weight
    assert net.a.bias is net.c.bias
    assert list(net.state_dict()) == list(wanted.state_dict())
    assert {name: value.requires_grad for name, value in net.named_parameters()} == flags


# --- averages of models --------------------


def ema_v3(net, **settings):
    return ModelEmaV3(net, decay=0.75, **settings)


AVERAGES = [
    named(AveragedModel),
    pytest.param(
        AveragedModel,
        {"use_buffers": True, "multi_avg_fn": get_ema_multi_avg_fn(0.75)},
        id="AveragedModel ema",
    ),
    named(ModelEmaV2, decay=0.75),
    named(ema_v3, foreach=True),
    named(ema_v3, foreach=False),
    named(ema_v3, exclude_buffers=True),
]


@pytest.mark.parametrize(("average", "settings"), AVERAGES)
def test_averages_are_those_of_the_slices(average, settings):
    """Beside the adapted net a module of bare parameters with the same values is averaged alike."""
    net = adapt_(wrn(), Learn(fraction=0.25))
    bare = nn.ParameterList([parameter.detach().clone() for parameter in net.parameters()])
    frozen = snapshot(frozen_values(net, adapted(net).plan))
    averages = [average(model, **settings) for model in (net, bare)]
    for _ in range(4):
        train(net, torch.optim.SGD(net.parameters(), 0.1), 1)
        with torch.no_grad():
            for value, parameter in zip(bare, net.parameters(), strict=True):
                value.copy_(parameter)
        for model, mean in zip((net, bare), averages, strict=True):
            (mean.update_parameters if isinstance(mean, AveragedModel) else mean.update)(model)
    found, wanted = averages[0].module, averages[1].module
    for value, parameter in zip(wanted, found.parameters(), strict=True):
        assert torch.equal(parameter, value)
    for name, value in frozen_values(found, adapted(found).plan):
        assert torch.equal(value, frozen[name])
    found.eval()
    x = pictures()[0]
    assert torch.equal(merge_(copy.deepcopy(found))(x), found(x))


# --- learning late layers only --------------------


def test_nothing_is_done_backward_before_the_first_learned_layer():
    net = adapt_(wrn(), Learn(layers=["block3"], fraction=0.5, norm=False, head=False))
    requires = {}
    for name, module in net.named_modules():
        if not any(module.children()):
            module.register_forward_hook(lambda m, i, y, name=name: requires.update({name: y.requires_grad}))
    loss = F.cross_entropy(net(pictures()[0]), pictures()[1])
    before = [name for name in requires if name.startswith(("conv1", "block1", "block2", "block3.0.bn1"))]
    assert len(before) > 10
    assert not any(requires[name] for name in before)
    assert all(requires[name] for name in ("block3.0.conv1", "block3.0.conv2", "fc"))
    convolutions = sum("Sliced" in type(node).__name__ for node in nodes(loss.grad_fn))
    assert convolutions == sum(isinstance(module, nn.Conv2d) for module in net.block3.modules())


def nodes(root) -> set:
    found, left = set(), [root]
    while left:
        node = left.pop()
        if node is not None and node not in found:
            found.add(node)
            left.extend(following for following, _ in node.next_functions)
    return found


# --- dtype and device --------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_net_of_another_dtype_computes_in_it(dtype):
    net = adapt_(wrn(), Learn(fraction=0.25)).to(dtype).eval()
    assert frozen_dtype(net, adapted(net).plan) == dtype
    x = pictures()[0].to(dtype)
    assert torch.equal(net(x), wrn().to(dtype).eval()(x))
    assert torch.equal(net(x), merge_(copy.deepcopy(net))(x))
