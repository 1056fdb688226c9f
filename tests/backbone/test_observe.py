import copy
import math
import threading

import pytest
import timm
import torch
import torchvision
from scipy import stats
from torch import nn

from sparsetune.backbone.observe import Stretch, observing
from sparsetune.backbone.seeding import Law
from sparsetune.errors import ConfigError

SMALL = [
    "resnet18",
    "vit_tiny_patch16_224",
    "convnext_atto",
    "efficientnet_b0",
    "regnetx_002",
    "vit_tiny_r_s16_p8_224",
]
LARGE = [
    "resnet50",
    "swin_tiny_patch4_window7_224",
    "mixer_s32_224",
    "gmixer_12_224",
    "vit_small_patch16_rope_mixed_224",
]
VISION = ["resnet18", "mobilenet_v3_small"]
MODELS = [
    *(pytest.param(timm.create_model, name, id=f"timm-{name}") for name in SMALL),
    *(pytest.param(torchvision.models.get_model, name, id=f"torchvision-{name}") for name in VISION),
    *(
        pytest.param(timm.create_model, name, id=f"timm-{name}", marks=pytest.mark.slow)
        for name in LARGE
        if timm.is_model(name)
    ),
    pytest.param(torchvision.models.get_model, "vit_b_16", id="torchvision-vit_b_16", marks=pytest.mark.slow),
]


def tensors(module):
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def built(make, seed):
    torch.manual_seed(seed)
    return tensors(make())


def truth(law):
    if law.kind == "uniform":
        return stats.uniform(law.a, law.b - law.a)
    if law.kind == "normal":
        return stats.norm(law.a, law.b)
    return stats.truncnorm((law.low - law.a) / law.b, (law.high - law.a) / law.b, law.a, law.b)


def assert_follows(values, law):
    """Mean, variance and distribution agree within sampling error.

    timm inverts the normal distribution at -1 once in some 2^24 draws, and the value is then the bound, which
    may be 100 standard deviations out: not counted.
    """
    expected = truth(law)
    mean, sigma = float(expected.mean()), float(expected.std())
    values = values.detach().double().flatten()
    values = values[(values - mean).abs() < 10 * sigma]
    assert abs(values.mean().item() - mean) < 6 * sigma / math.sqrt(values.numel())
    if values.numel() > 30:
        assert abs(values.var().item() / sigma**2 - 1) < 6 * math.sqrt(2 / values.numel())
    assert stats.kstest(values[:2000].numpy(), expected.cdf).pvalue > 1e-7


@pytest.mark.parametrize(("library", "name"), MODELS)
def test_laws_of_real_models_are_true(library, name):
    def make():
        return library(name)

    with observing() as seen:
        net = make()
    laws, unknown = seen.laws(net), seen.unknown(net)
    first, second = built(make, 1), built(make, 2)
    random = {key for key, value in first.items() if not torch.equal(value, second[key])}
    assert not set(laws) & set(unknown)
    assert set(laws) | set(unknown) == random
    for key, stretches in laws.items():
        for stretch in stretches:
            assert_follows(first[key].flatten()[stretch.start : stretch.stop], stretch.law)


def observed(make):
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            made = make()
            if isinstance(made, nn.Module):
                self.made = made
            else:
                self.weight = nn.Parameter(made)

    with observing() as seen:
        net = Holder()
    sizes = {key: value.numel() for key, value in tensors(net).items()}
    found = {**seen.unknown(net)}
    for key, stretches in seen.laws(net).items():
        whole = stretches[0] == Stretch(0, sizes[key], stretches[0].law)
        found[key] = stretches[0].law if whole else stretches
    return {key.removeprefix("made."): value for key, value in found.items()}


def normal(a=0.0, b=1.0):
    return Law("normal", a, b)


def trunc(a, b, low, high):
    return Law("trunc_normal", a, b, low, high)


def halves(first, second):
    weight = torch.empty(6, 4).uniform_()
    first(weight[:3])
    second(weight[3:])
    return weight


@pytest.mark.parametrize(
    ("make", "law"),
    [
        (lambda: torch.empty(3, 4).uniform_(-2, 5), Law("uniform", -2.0, 5.0)),
        (lambda: torch.empty(3, 4).normal_(1, 3), normal(1.0, 3.0)),
        (lambda: torch.rand(5), Law("uniform", 0.0, 1.0)),
        (lambda: torch.rand_like(torch.randn(5)), Law("uniform", 0.0, 1.0)),
        (lambda: torch.normal(1.0, 2.0, (4,)), normal(1.0, 2.0)),
        (lambda: torch.randn(5, out=torch.empty(5)), normal()),
        (lambda: torch.randn(3, 4) * 0.02, normal(0.0, 0.02)),
        (lambda: 2 * torch.rand(5) - 1, Law("uniform", -1.0, 1.0)),
        (lambda: 3 - torch.rand(5) / 2, Law("uniform", 2.5, 3.0)),
        (lambda: -torch.rand(5).add_(1).mul_(2), Law("uniform", -4.0, -2.0)),
        (lambda: nn.init.trunc_normal_(torch.empty(8, 8), std=0.02), trunc(0.0, 0.02, -2.0, 2.0)),
        (lambda: nn.init.trunc_normal_(torch.empty(8, 8), 0.5, 0.7, -1.0, 0.6), trunc(0.5, 0.7, -1.0, 0.6)),
        (lambda: nn.init.trunc_normal_(torch.empty(9), 0.0, 1.0, 2.0, 3.0), trunc(0.0, 1.0, 2.0, 3.0)),
        (lambda: timm.layers.trunc_normal_(torch.empty(8), std=1e-6), trunc(0.0, 1e-6, -2.0, 2.0)),
        (lambda: timm.layers.trunc_normal_tf_(torch.empty(8), std=0.25), trunc(0.0, 0.25, -0.5, 0.5)),
        (lambda: torch.randn(3, 4).t(), normal()),
        (lambda: torch.randn(3, 4).t().contiguous(), normal()),
        (lambda: torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), normal()),
        (lambda: torch.randn(4).half() * 3, normal(0.0, 3.0)),
        (lambda: torch.randn(4, dtype=torch.float64), normal()),
        (lambda: torch.empty(4, dtype=torch.bfloat16).normal_(), normal()),
        (lambda: torch.randn(10)[2:7], normal()),
        (lambda: torch.randn(10).clone().detach().view(2, 5), normal()),
        (lambda: torch.empty(2, 3).copy_(torch.rand(6).view(2, 3)), Law("uniform", 0.0, 1.0)),
        (lambda: halves(nn.init.normal_, nn.init.normal_), normal()),
        (lambda: torch.ones(4).mul_(torch.rand(4)).normal_(), normal()),
        (lambda: torch.randn(4).zero_(), None),
        (lambda: torch.randn(4).fill_(3), None),
        (lambda: torch.randn(4).copy_(torch.arange(4.0)), None),
        (lambda: torch.linspace(0, 1, 4).exp(), None),
        (lambda: nn.init.dirac_(torch.empty(4, 4, 3, 3)), None),
    ],
)
def test_laws_follow_the_values(make, law):
    assert observed(make).get("weight") == law


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: torch.rand(3) + torch.rand(3), "made by add from random values"),
        (lambda: torch.rand(4) ** 2, "made by pow from random values"),
        (lambda: torch.randn(4).clamp_(-1, 1), "made by clamp_ from random values"),
        (
            lambda: torch.empty(4).uniform_(-1, 1).erfinv_().clamp_(-0.5, 0.5),
            "made by clamp_ from random values",
        ),
        (lambda: torch.empty(4).uniform_(-1, 1).erfinv_(), "erfinv_ of a uniform draw, without the clamp_"),
        (lambda: torch.cat([torch.randn(1, 3), torch.randn(2, 3)]), "made by cat from random values"),
        (lambda: nn.init.orthogonal_(torch.empty(4, 4)), "from random values"),
        (lambda: torch.empty(5).bernoulli_(), "drawn by bernoulli_"),
        (lambda: torch.randint(0, 5, (3,)).float(), "made by _to_copy from random values"),
        (lambda: torch.randn(3, generator=torch.Generator()), "drawn by randn"),
        (lambda: torch.randn(3, dtype=torch.complex64), "drawn by randn"),
        (lambda: torch.randn(3, 1).expand(3, 4), "random in places only"),
        (lambda: torch.randn(4, 4).index_fill_(1, torch.tensor([0]), 0.0), "made by index_fill_"),
    ],
)
def test_the_rest_is_unknown(make, why):
    assert why in observed(make)["weight"]


def test_parts_of_a_tensor_follow_laws_of_their_own():
    found = observed(lambda: halves(nn.init.normal_, nn.init.uniform_))["weight"]
    assert found == (Stretch(0, 12, normal()), Stretch(12, 24, Law("uniform", 0.0, 1.0)))
    assert observed(lambda: halves(nn.init.normal_, nn.init.zeros_))["weight"] == (Stretch(0, 12, normal()),)
    assert observed(lambda: halves(nn.init.zeros_, nn.init.normal_))["weight"] == (Stretch(12, 24, normal()),)
    channels_last = lambda: halves(nn.init.normal_, nn.init.zeros_).t()  # noqa: E731
    assert observed(channels_last)["weight"] == "its parts follow different laws"


def test_what_no_law_describes_comes_from_the_seed():
    def made(seed):
        with observing(seed) as seen:
            net = nn.Linear(4, 4)
            nn.init.orthogonal_(net.weight)
            net.register_buffer("coin", torch.empty(50).bernoulli_())
            net.register_buffer("twin", net.bias.clone())
        assert set(seen.unknown(net)) == {"weight", "coin", "twin"}
        return torch.cat([net.weight.flatten(), net.coin, net.twin]).detach()

    first, other = made(0), made(1)
    assert torch.equal(first, made(0))
    assert all(
        not torch.equal(a, b) for a, b in zip(first.split([16, 50, 4]), other.split([16, 50, 4]), strict=True)
    )
    weight = first[:16].view(4, 4)
    torch.testing.assert_close(weight @ weight.t(), torch.eye(4))


@pytest.mark.parametrize("name", ["gmixer_12_224", "vit_small_patch16_rope_mixed_224", "resnet18"])
def test_without_memory_the_same_is_observed(name):
    with observing() as real:
        net = timm.create_model(name)
    with observing() as empty, torch.device("meta"):
        shapes = timm.create_model(name)
    assert real.laws(net) == empty.laws(shapes)
    assert real.unknown(net) == empty.unknown(shapes)


def test_strided_writes_make_a_tensor_unknown():
    def make():
        weight = torch.rand(4, 4)
        weight[:, 1] = 0
        return weight

    assert observed(make)["weight"] == "overwritten in places"


def test_modules():
    bound = 1 / math.sqrt(3)
    found = observed(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 5)))
    assert found["parametrizations.weight.original0"] == "made by norm from random values"
    assert found["parametrizations.weight.original1"].b == pytest.approx(bound)
    assert observed(lambda: nn.Embedding(5, 3)) == {"weight": normal()}
    assert observed(lambda: nn.Embedding(5, 3, padding_idx=0)) == {"weight": (Stretch(3, 15, normal()),)}
    assert observed(lambda: nn.BatchNorm2d(3)) == {}
    assert set(observed(lambda: nn.LSTM(3, 4))) == set(dict(nn.LSTM(3, 4).named_parameters()))


def test_copies_and_shared_tensors():
    def make():
        first = nn.Linear(3, 3)
        shared = nn.Linear(3, 3)
        shared.weight = first.weight
        same_memory = nn.Linear(3, 3)
        same_memory.weight.data = first.weight.data
        return nn.Sequential(first, copy.deepcopy(first), shared, same_memory)

    found = observed(make)
    assert found["1.weight"] == "a copy of made.0.weight"
    assert isinstance(found["0.weight"], Law)
    assert "2.weight" not in found
    assert "3.weight" not in found
    assert isinstance(found["3.bias"], Law)


def test_parts_of_one_draw_are_independent():
    def make():
        return nn.ParameterList(map(nn.Parameter, torch.randn(6, 2).chunk(3)))

    assert observed(make) == {"0": normal(), "1": normal(), "2": normal()}


def test_what_reads_a_draw_reads_real_values():
    with observing():
        weight = torch.empty(300, 300)
        nn.init.trunc_normal_(weight, 0.1, 0.5, -0.4, 1.1)
        half = torch.randn(4000).half() * 3
        read = (weight + 0 * weight).mean().item(), half.sort().values
        assert weight[0, 0].item() == pytest.approx(float(weight.flatten()[0]))
    assert read[0] == pytest.approx(truth(trunc(0.1, 0.5, -0.4, 1.1)).mean(), abs=0.01)
    assert read[1].float().std().item() == pytest.approx(3, rel=0.1)


def test_operations_go_on_from_real_values():
    with observing() as seen:
        net = nn.Linear(50, 50)
        before = net.weight.sum().item()
        with torch.no_grad():
            net.weight.mul_(2)
        assert net.weight.sum().item() == pytest.approx(2 * before, rel=1e-5)
    assert seen.laws(net)["weight"][0].law.b == pytest.approx(2 / math.sqrt(50))


def test_loaded_values_are_constants(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(nn.Linear(3, 4).state_dict(), path)
    with observing() as seen:
        net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        net[0].load_state_dict(torch.load(path))
    assert set(seen.laws(net)) == {"1.weight", "1.bias"}
    assert torch.equal(net[0].weight, torch.load(path)["weight"])


def test_random_state_and_torch_are_as_before():
    original, state = nn.init._no_grad_trunc_normal_, torch.get_rng_state()
    with observing():
        nn.init.orthogonal_(torch.empty(4, 4).bernoulli_())
        torch.manual_seed(5)
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match="2 or more dimensions"), observing():
        nn.init.orthogonal_(torch.rand(3).bernoulli_())
    assert torch.equal(state, torch.get_rng_state())
    assert nn.init._no_grad_trunc_normal_ is original
    assert torch.rand(1000).std().item() == pytest.approx(1 / math.sqrt(12), rel=0.1)


def test_impossible_draws_are_errors():
    with pytest.raises(ConfigError, match="impossible"), observing():
        torch.empty(3).uniform_(1, 0)


def test_threads_take_turns():
    found = []

    def work(width):
        found.append((width, observed(lambda: nn.Linear(width, 1))["weight"].b))

    threads = [threading.Thread(target=work, args=(width,)) for width in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dict(found) == {width: pytest.approx(1 / math.sqrt(width)) for width in range(1, 9)}
