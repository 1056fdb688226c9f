"""Modules that users wrote, or that other libraries built: adapted, trained, saved, and loaded again."""

import copy

import pytest
import torch
from forge import fresh, moved, same
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, weight_norm

import sparsetune as st
from sparsetune.errors import BackboneError, ConfigError

TOKENS = torch.arange(24).reshape(4, 6) % 20
PICTURES = torch.linspace(-2, 2, 4 * 3 * 7 * 7).reshape(4, 3, 7, 7)
ROWS = torch.linspace(-2, 2, 16).reshape(4, 4)


class Recurrent(nn.Module):
    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.recurrent = kind(8, 8, batch_first=True, bidirectional=True)
        self.hidden = nn.Linear(16, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x=TOKENS):
        return self.head(torch.relu(self.hidden(self.recurrent(self.embedding(x))[0][:, -1])))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.attention = nn.MultiheadAttention(8, 2, kdim=4, vdim=4, batch_first=True, bias=False)
        self.narrow = nn.Linear(8, 4)
        self.head = nn.Linear(8, 3)

    def forward(self, x=TOKENS):
        x = self.encoder(self.embedding(x))
        narrow = self.narrow(x)
        return self.head(self.attention(x, narrow, narrow, need_weights=False)[0].mean(1))


class Functional(nn.Module):
    """Uses its layers' weights past their forwards, and one of them twice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.again = nn.Conv2d(3, 6, 3, bias=False)
        self.again.weight = self.conv.weight
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x=PICTURES):
        x = F.conv2d(x, self.conv.weight, self.conv.bias) + self.again(x)
        x = F.linear(x.mean((2, 3)), self.mix.weight * 2, self.mix.bias)
        return self.head(torch.relu(x) @ self.mix.weight.T)


class Odd(nn.Module):
    """Complex, integer and scalar parameters, in lists and dictionaries."""

    def __init__(self):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(4, dtype=torch.complex64))
        self.order = nn.Parameter(torch.tensor([2, 0, 1]), requires_grad=False)
        self.some = nn.ParameterList([torch.randn(4), torch.randn(())])
        self.more = nn.ParameterDict({"scale": torch.randn(6)})
        self.hidden = nn.Linear(4, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x=ROWS):
        x = torch.fft.ifft(torch.fft.fft(x) * self.filter).real * self.some[0] + self.some[1]
        return self.head(torch.relu(self.hidden(x)) * self.more["scale"])[:, self.order]


class Normed(nn.Module):
    """Weights that are computed from other parameters."""

    def __init__(self):
        super().__init__()
        self.first = weight_norm(nn.Conv2d(3, 6, 3))
        self.second = parametrizations.weight_norm(nn.Conv2d(6, 6, 3))
        self.third = nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 3)

    def forward(self, x=PICTURES):
        return self.head(self.third(self.second(self.first(x)).relu()).mean((2, 3)))


class Headless(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 3, 1))

    def forward(self, x=PICTURES):
        return super().forward(x)


MODULES = {
    "lstm": Recurrent,
    "gru": lambda: Recurrent(nn.GRU),
    "attention": Attention,
    "functional": Functional,
    "odd": Odd,
    "normed": Normed,
    "headless": Headless,
}
LEARNS = [st.Learn(fraction=0.5), st.Learn(fraction=0.5, dim="in", norm=False), st.Learn(fraction=1.0)]


def build(name, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MODULES[name]()


def output(net):
    with torch.no_grad():
        return net()


def cast(net, dtype):
    """Cast the floating values and no complex ones."""
    return net._apply(lambda value: value.to(dtype) if value.is_floating_point() else value)


def masked_step(net, made, lr=0.1):
    """A plain step of the plain net that moves only what ``made`` says is learned."""
    net().square().mean().backward()
    with torch.no_grad():
        for part in made:
            parameter = net.get_parameter(part.name)
            if part.k and parameter.grad is not None:
                rows = slice(None) if part.whole else slice(0, part.k)
                at = (slice(None),) * part.dim + (rows,) if part.shape else ()
                parameter[at] -= lr * parameter.grad[at]
            parameter.grad = None


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    ("name", "learn"),
    [(name, learn) for name in MODULES for learn in LEARNS if not (name == "odd" and learn.everything)],
)
def test_a_module_learns_its_slices_and_comes_back(name, learn, tmp_path):
    net, plain = build(name), build(name)
    st.adapt_(net, learn)
    optimizer = torch.optim.SGD([value for value in net.parameters() if value.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        net().square().mean().backward()
        optimizer.step()
        masked_step(plain, st.adapted(net).plan)
    st.save(net, tmp_path / "delta")
    loaded = st.load(tmp_path / "delta", module=build(name))
    assert same(net.eval(), loaded)
    expected = output(net)
    assert torch.equal(output(loaded), expected)
    assert torch.allclose(output(plain.eval()), expected, atol=1e-5)
    st.merge_(loaded)
    assert list(loaded.state_dict()) == list(plain.state_dict())
    for part in st.adapted(net).plan:
        module, leaf = part.homes[0]
        assert torch.equal(loaded.get_parameter(part.name), getattr(net.get_submodule(module), leaf))
    assert torch.allclose(output(loaded), expected, atol=1e-6)
    loaded.train()().square().mean().backward()
    assert all(value.grad is not None for value in loaded.parameters() if value.requires_grad)


@pytest.mark.parametrize("name", ["lstm", "attention", "odd"])
def test_a_copy_of_a_module_is_its_own(name):
    net = st.adapt_(build(name), st.Learn(fraction=0.5)).eval()
    twin, before = copy.deepcopy(net), net()
    moved(twin)
    assert torch.equal(net(), before)
    assert not torch.equal(twin(), before)


def test_what_is_neither_layer_nor_norm_nor_head_is_frozen_unless_all_is_learned():
    parts = {part.name: part for part in st.plan(build("odd"), st.Learn(fraction=0.5))}
    frozen = {name for name, part in parts.items() if not part.k}
    assert frozen == {"filter", "order", "some.0", "some.1", "more.scale"}
    for name in ("embedding.weight", "recurrent.weight_hh_l0"):
        assert not {part.name: part for part in st.plan(build("lstm"), st.Learn(fraction=0.5))}[name].k
    assert {part.name for part in st.plan(build("odd"), st.Learn(fraction=1.0)) if not part.k} == {"order"}


def test_a_complex_parameter_is_not_learned():
    net = build("odd")
    with pytest.raises(ConfigError, match=r"'filter' would be learned but .* torch.complex64.*below 1"):
        st.adapt_(net, st.Learn(fraction=1.0))
    assert net.filter.requires_grad


def test_a_model_says_which_modules_classify():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.classify, self.decode = nn.Linear(4, 2), nn.Linear(4, 4)

        def get_classifier(self):
            return self.classify

    parts = {part.name: (part.k, part.size) for part in st.plan(Two(), st.Learn(fraction=0.5))}
    assert parts["classify.weight"] == (2, 2)
    assert parts["decode.weight"] == (2, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_module_is_loaded_in_the_dtype_of_the_file_and_complex_values_stay(dtype, tmp_path):
    net = moved(st.adapt_(cast(build("odd"), dtype), st.Learn(fraction=0.5)))
    assert net.hidden.weight.dtype == dtype
    st.save(net, tmp_path / "delta")
    found = st.load(tmp_path / "delta", module=build("odd"))
    assert same(net, found)
    assert torch.equal(found.filter, build("odd").filter)


def test_a_timm_model_with_weights_of_its_own_is_the_users(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    weights = timm.create_model("test_resnet").state_dict()

    def published(classes=1000):
        net = timm.create_model("test_resnet", num_classes=classes)
        head = {name: value for name, value in net.state_dict().items() if name.startswith("fc.")}
        net.load_state_dict(weights if classes == 1000 else {**weights, **head})
        return net

    net = moved(st.adapt_(published(3), st.Learn(fraction=0.2)))
    st.save(net, tmp_path / "delta")
    assert same(net, st.load(tmp_path / "delta", module=published(3)))
    with pytest.raises(BackboneError, match="pass a ResNet with the values that it held when it was adapted"):
        st.load(tmp_path / "delta", module=timm.create_model("test_resnet", num_classes=3))


def test_fit_trains_a_module_that_returns_logits(tmp_path):
    class Digits(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.norm = nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64)
            self.classify = nn.Linear(64 * 9, 10)

        def forward(self, x):
            return self.classify(F.max_pool2d(self.norm(self.conv(x)).relu(), 2).flatten(1))

    data = st.open_data("digits", train_limit=600, test_limit=200)
    net = st.adapt_(Digits(), st.Learn(fraction=0.25))
    assert st.fit(net, data, st.FitConfig(epochs=2, lr=0.05))[-1].test_top1 > 0.5
    st.save(net, tmp_path / "delta", classes=data.classes, preprocessing=data.preprocessing)
    assert same(net, st.load(tmp_path / "delta", module=Digits()))


# transformers


TRANSFORMERS = """
import json, sys
import torch, sparsetune as st
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

def build(kind, seed):
    torch.manual_seed(seed)
    if kind == "resnet":
        return ResNetForImageClassification(ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=10))
    shape = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                 num_labels=10)
    if kind == "bert":
        return BertForSequenceClassification(BertConfig(vocab_size=64, max_position_embeddings=64, **shape))
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, **shape))

data = st.open_data("digits", train_limit=64, test_limit=32)
x, y = next(iter(st.data.loader(data.train, data.preprocessing, batch_size=64)))
inputs = {"vit": x, "resnet": x, "bert": (x[:, 0].flatten(1) * 8).long().clamp(0, 63)}
delta = sys.argv[1]

def train(kind):
    net = build(kind, 0)
    save_file({k: v.contiguous().clone() for k, v in net.state_dict().items()}, f"{delta}.{kind}.whole")
    st.adapt_(net, st.Learn(fraction=0.25))
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(net(inputs[kind]).logits, y)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0], losses
    st.save(net.eval(), f"{delta}.{kind}")
    return net

def load(kind):
    net = build(kind, 0 if kind != "bert" else 1)
    if kind == "bert":
        net.load_state_dict(load_file(f"{delta}.{kind}.whole"))
    return st.load(f"{delta}.{kind}", module=net)

found = {}
for kind in inputs:
    trained, loaded = train(kind), load(kind)
    with torch.no_grad():
        assert torch.equal(loaded(inputs[kind]).logits, trained(inputs[kind]).logits), kind
    found[kind] = [part.name for part in st.adapted(loaded).plan if part.whole and not part.layer][-2:]
print(json.dumps(found))
"""


def test_transformers_classifiers_come_back(tmp_path):
    found = fresh(TRANSFORMERS, tmp_path / "delta")
    assert found["vit"] == found["bert"] == ["classifier.weight", "classifier.bias"]
    assert found["resnet"] == ["classifier.1.weight", "classifier.1.bias"]
