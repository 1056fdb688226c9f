import hashlib
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from safetensors.torch import save_file
from torch import nn

import sparsetune as st
from sparsetune.backbone.origin import file_digest, fingerprint, load_checkpoint, take_values
from sparsetune.backbone.source import Backbone
from sparsetune.errors import BackboneError, ConfigError

SEED = Backbone(kind="seed", seed=3)
SHA = "0" * 64

backbones = some.one_of(
    some.builds(Backbone, kind=some.sampled_from(["seed", "module", "pretrained"]), seed=some.integers(0)),
    some.builds(
        Backbone, kind=some.just("pretrained"), source=some.text(), revision=some.none() | some.text()
    ),
    some.builds(Backbone, kind=some.just("file"), source=some.text(), sha256=some.just(SHA)),
)


@given(backbones)
def test_to_json_and_back_is_equal(backbone):
    for value in (backbone, backbone.zeroed()):
        assert Backbone.from_json(value.to_json()) == value
        assert value.describe()


def test_zero_stands_over_another():
    zero = SEED.zeroed()
    assert (zero.kind, zero.base, zero.root, zero.seed) == ("zero", SEED, SEED, 3)
    assert zero.zeroed() is zero
    assert zero.describe() == "zero, the rest from seed 3"


def deep(levels):
    value = {"kind": "seed"}
    for _ in range(levels):
        value = {"kind": "zero", "base": value}
    return value


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "seed",
        {},
        {"kind": None},
        {"kind": ["seed"]},
        {"kind": "seed", "seed": -1},
        {"kind": "seed", "seed": True},
        {"kind": "seed", "seed": 1.0},
        {"kind": "seed", "seed": "1"},
        {"kind": "seed", "generator": None},
        {"kind": "seed", "evil": 1},
        {"kind": "seed", "base": None},
        {"kind": "seed", "base": {"kind": "seed"}},
        {"kind": "zero"},
        {"kind": "zero", "base": None},
        {"kind": "zero", "base": {"kind": "evil"}},
        deep(2),
        deep(700),
        {"kind": "file"},
        {"kind": "file", "source": "a"},
        {"kind": "file", "sha256": SHA},
        {"kind": "file", "source": None, "sha256": SHA},
        {"kind": "pretrained", "source": 1},
        {"kind": "pretrained", "revision": ["a"]},
    ],
)
def test_a_strangers_json_is_refused_in_one_line(value):
    with pytest.raises(ConfigError, match="backbone") as caught:
        Backbone.from_json(value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_fingerprint_is_the_documented_digest():
    values = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    expected = hashlib.sha256(
        b"a.weight\0float32\x002,3\0"
        + struct.pack("<6f", *range(6))
        + b"b\0float64\0\0"
        + struct.pack("<d", 7)
    ).hexdigest()
    assert fingerprint([("a.weight", values), ("b", torch.tensor(7.0, dtype=torch.float64))]) == expected
    assert fingerprint([]) == hashlib.sha256().hexdigest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_fingerprint_depends_on_values_not_on_memory(dtype):
    values = torch.randn(4, 3, 2, 2).to(dtype)
    plain = fingerprint([("w", values)])
    assert fingerprint([("w", values.to(memory_format=torch.channels_last))]) == plain
    assert fingerprint([("w", torch.cat([values, values])[:4])]) == plain
    assert fingerprint([("w", values.transpose(0, 1).contiguous().transpose(0, 1))]) == plain


def test_fingerprint_tells_name_dtype_shape_and_value():
    base = torch.zeros(2, 3)
    other = base.clone()
    other[1, 2] = -0.0
    found = {
        fingerprint([("w", base)]),
        fingerprint([("v", base)]),
        fingerprint([("w", base.double())]),
        fingerprint([("w", base.reshape(3, 2))]),
        fingerprint([("w", base[:1]), ("w", base[1:])]),
        fingerprint([("w", other)]),
        fingerprint([("w", base[:0])]),
    }
    assert len(found) == 7


def net():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 4))


def test_take_values_copies_all_but_another_head():
    ours, theirs = net(), nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 9))
    head = ours[3].weight.detach().clone()
    found = theirs.state_dict()
    take_values(ours, found, "it")
    assert torch.equal(ours[0].weight, theirs[0].weight)
    assert torch.equal(ours[3].weight, head)
    assert found["3.weight"].shape == (9, 2)


def changed(state, what):
    if what == "missing":
        del state["0.bias"]
    elif what == "extra":
        state["7.weight"] = torch.zeros(1)
    else:
        state["0.weight"] = torch.zeros(2, 1, 5, 5)
    return state


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("missing", r"it lacks '0.bias', which the model expects with shape \(2,\)"),
        ("extra", "it holds '7.weight', which the model does not have"),
        ("misshaped", r"it holds '0.weight' with shape \(2, 1, 5, 5\); the model expects \(2, 1, 3, 3\)"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(what, words):
    with pytest.raises(BackboneError, match=words):
        take_values(net(), changed(net().state_dict(), what), "it")


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint", b"\x80\x04}."])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "some.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BackboneError, match=r"some\.pth is not a readable safetensors") as caught:
        load_checkpoint(net(), path)
    assert "\n" not in str(caught.value)


def test_a_pickled_checkpoint_is_not_opened(tmp_path):
    torch.save(net().state_dict(), tmp_path / "some.pth")
    remedy = (
        r"convert it once with safetensors\.torch\.save_file\(torch\.load\('.*some\.pth', weights_only=True\)"
    )
    with pytest.raises(BackboneError, match=f"not a readable safetensors .* none is read: .* {remedy}"):
        load_checkpoint(net(), tmp_path / "some.pth")


def test_file_digest(tmp_path):
    data = bytes(range(256)) * 9000
    (tmp_path / "file").write_bytes(data)
    assert file_digest(tmp_path / "file") == hashlib.sha256(data).hexdigest()
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(BackboneError, match=r"cannot be read: .*; pass the path"):
            file_digest(path)


def test_from_module_names_the_class():
    assert st.Backbone.from_module(net()).describe() == "the user's own Sequential"


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_model_without_a_classifier_takes_the_rest(tmp_path, name):
    """As timm does with its own weights for ``num_classes=0``."""
    whole = st.create(name, num_classes=7, seed=4)
    save_file(
        {key: value.contiguous() for key, value in whole.state_dict().items()}, tmp_path / "w.safetensors"
    )
    bare = st.create(name, num_classes=0, checkpoint=tmp_path / "w.safetensors").eval()
    x = torch.randn(2, *bare.default_cfg["input_size"])
    expected = whole.eval().forward_head(whole.forward_features(x), pre_logits=True)
    torch.testing.assert_close(bare(x), expected)
