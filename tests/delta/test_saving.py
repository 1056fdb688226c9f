"""From a model to its file and back: exactly, from the file alone, whatever a stranger put into it."""

import copy
import json
import os
import random
import re
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from forge import Parts, fresh, moved, same, small
from safetensors.torch import load_file, save_file
from torch import nn

import sparsetune as st
from sparsetune.delta.saving import fill
from sparsetune.errors import (
    BackboneError,
    ConfigError,
    DeltaError,
    Notice,
    SparsetuneError,
    StorageError,
    UnknownNameError,
)
from sparsetune.sliced.adapt import frozen_values

LEARNS = {
    "fraction": st.Learn(fraction=0.2),
    "filters": st.Learn(filters=1),
    "in": st.Learn(fraction=0.5, dim="in"),
    "height": st.Learn(filters=2, dim="height"),
    "width": st.Learn(fraction=0.4, dim="width"),
    "layers": st.Learn(layers=["block3"], fraction=1.0, head=False),
    "nonorm": st.Learn(fraction=0.2, norm=False),
    "nohead": st.Learn(fraction=0.2, head=False),
    "zero": st.Learn(fraction=0.2, frozen="zero"),
    "whole": st.Learn(fraction=1.0),
    "nothing": st.Learn(filters=0, norm=False, head=False),
}
OTHERS = {
    "densenet": ("densenet100_12", {"depth": 10, "growth_rate": 8}),
    "timm": ("test_resnet", {}),
    "torchvision": ("torchvision/shufflenet_v2_x0_5", {}),
    "regnet": ("torchvision/regnet_y_400mf", {}),
    "transformer": ("vit_tiny_patch16_224", {"img_size": [16, 16], "depth": 2}),
}
PICTURES = torch.linspace(-2, 2, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)


def variants():
    for name, learn in LEARNS.items():
        yield name, small(learn)
    for name in ("half", "bfloat16", "double"):
        yield name, getattr(small(), name)()
    for name, (model, kwargs) in OTHERS.items():
        net = st.create(model, num_classes=5, seed=4, **kwargs)
        yield name, moved(st.adapt_(net, st.Learn(fraction=0.3)))


def logits(net):
    with torch.no_grad():
        return net.eval()(PICTURES.to(next(iter(net.parameters()), PICTURES).dtype))


LOAD = """
import sys, json, torch, sparsetune as st
from pathlib import Path
from safetensors.torch import save_file
from test_saving import logits
for path in Path(sys.argv[1]).glob("*.safetensors"):
    net = st.load(path)
    assert not net.training
    values = {name: value.clone() for name, value in net.state_dict().items()}
    save_file({**values, "logits": logits(net)}, path.with_suffix(".loaded"))
    st.save(net, path.with_suffix(".again"))
    values = {name: value.clone() for name, value in st.merge_(net).state_dict().items()}
    save_file(values, path.with_suffix(".merged"))
print("[]")
"""


def test_everything_comes_back_in_a_new_process(tmp_path):
    expected = {}
    for name, net in variants():
        path = tmp_path / f"{name}.safetensors"
        st.save(net, path)
        values = {key: value.clone() for key, value in net.state_dict().items()}
        expected[name] = {**values, "logits": logits(net)}, st.merge_(net).state_dict()
    fresh(LOAD, tmp_path, OMP_NUM_THREADS=torch.get_num_threads())
    for name, both in expected.items():
        for kind, values in zip(("loaded", "merged"), both, strict=True):
            found = load_file(tmp_path / f"{name}.{kind}")
            assert found.keys() == values.keys(), name
            for key, value in values.items():
                assert found[key].dtype == value.dtype, (name, key)
                assert torch.equal(found[key], value), (name, key)
        file = tmp_path / f"{name}.safetensors"
        assert file.read_bytes() == file.with_suffix(".again").read_bytes(), name


def test_saving_twice_gives_the_same_bytes(tmp_path):
    for name in "ab":
        words = {"classes": list("abcdefghij"), "training": {"z": 1, "a": {"y": 2.5, "b": []}}}
        st.save(small(), tmp_path / name, **words)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_neither_saving_nor_loading_touches_the_model_or_random_state(tmp_path):
    net = small().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    states = torch.get_rng_state(), random.getstate()
    st.save(net, tmp_path / "a")
    st.load(tmp_path / "a")
    st.verify(tmp_path / "a")
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_mixed_dtypes_come_back(tmp_path):
    net = small().half()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()
    st.save(net, tmp_path / "a")
    assert same(net, st.load(tmp_path / "a"))


def test_values_that_are_not_finite_are_saved_but_not_verified(tmp_path):
    for value in (torch.nan, torch.inf):
        net = small()
        with torch.no_grad():
            net.fc.bias[3] = value
        st.save(net, tmp_path / "a", training={"loss": value, "deep": [{"loss": -value}], "fine": 0.5})
        assert st.inspect(tmp_path / "a").training == {"loss": None, "deep": [{"loss": None}], "fine": 0.5}
        assert torch.equal(st.load(tmp_path / "a").fc.bias.isfinite(), torch.arange(10) != 3)
        with pytest.raises(DeltaError, match=r"'fc\.bias' holds values that are not finite"):
            st.verify(tmp_path / "a")
    st.save(small(), tmp_path / "a")
    assert st.verify(tmp_path / "a") == st.inspect(tmp_path / "a")


@pytest.mark.parametrize(
    ("name", "learned"), [("wrn28_4", None), ("wrn28_10", 3_669_829), ("densenet100_12", 90_196)]
)
def test_size_is_at_most_1_03_of_the_values(tmp_path, name, learned):
    net = st.adapt_(st.create(name, num_classes=10, seed=0), st.Learn(fraction=0.1))
    statistics = sum(
        2 * module.num_features * 4 + 8 for module in net.modules() if isinstance(module, nn.BatchNorm2d)
    )
    learned = learned or sum(value.numel() for value in net.parameters())
    epoch = dict.fromkeys(("train_loss", "train_top1", "test_top1", "test_loss", "lr", "ece"), 0.123456789)
    st.save(
        net,
        tmp_path / "a",
        classes=["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
        preprocessing=st.Preprocessing((3, 32, 32), (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        training={
            "data": "cifar10",
            "train_pictures": 50_000,
            "config": asdict(st.FitConfig()),
            "result": {"epoch": 200, **epoch},
        },
    )
    assert (tmp_path / "a").stat().st_size <= 1.03 * (4 * learned + statistics)
    assert st.inspect(tmp_path / "a").learned_bytes == 4 * learned + statistics


# What save refuses


@pytest.mark.parametrize("cast", [nn.Module.float, nn.Module.half])
def test_a_frozen_value_changed_by_hand_is_refused(tmp_path, cast):
    net = cast(small(st.Learn(fraction=0.2, head=False)))
    st.save(net, tmp_path / "honest")
    for name, values in frozen_values(net, st.adapted(net).plan):
        kept = values.flatten()[-1].clone()
        values.view(-1)[-1] += 1
        with pytest.raises(DeltaError, match="frozen values"):
            st.save(net, tmp_path / name)
        values.view(-1)[-1] = kept
    st.save(net, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "honest").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_frozen_values_rounded_on_the_way_are_refused(tmp_path):
    for net in (small().half().float(), small().bfloat16().half()):
        with pytest.raises(DeltaError, match=r"frozen values .* so .* back"):
            st.save(net, tmp_path / "a")


def test_a_model_trained_before_adapt_is_refused(tmp_path):
    net = st.merge_(small())
    st.adapt_(net, st.Learn(fraction=0.1))
    with pytest.raises(DeltaError, match=r"frozen values are not those of seed 0.*Backbone.from_module"):
        st.save(net, tmp_path / "a")


def test_a_model_whose_layers_were_replaced_is_refused():
    net = st.create("wrn28_4", depth=10, width=1, num_classes=10)
    net.fc = nn.Linear(64, 3)
    with pytest.raises(DeltaError, match="the layers are not those of wrn28_4"):
        st.adapt_(net, st.Learn(fraction=0.1))


def test_such_a_model_is_saved_as_the_users_own(tmp_path):
    whole = st.merge_(small())
    net = st.adapt_(whole, st.Learn(fraction=0.1), st.Backbone.from_module(whole))
    st.save(moved(net), tmp_path / "a")
    with pytest.raises(DeltaError, match=r"user's own model wrn28_4; build that and pass it as load"):
        st.load(tmp_path / "a")
    assert same(net, st.load(tmp_path / "a", st.merge_(small())))


def test_a_plain_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not adapted"):
        st.save(st.create("wrn28_4", depth=10, width=1), tmp_path / "a")


deep: list = []
for _ in range(40):
    deep = [deep]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ({"classes": range(10)}, "are not all texts"),
        ({"classes": ["a"]}, "1 class names were given for 10 classes"),
        ({"classes": ["a\n", *"bcdefghij"]}, "does not print on one line"),
        ({"training": {"a": {1, 2}}}, "not plain JSON"),
        ({"training": {"a": torch.zeros(1)}}, "not plain JSON"),
        ({"training": {"deep": deep}}, "nested more than 32 deep"),
        ({"training": {"words": ["x" * 900] * 5000}}, "shorten"),
    ],
)
def test_words_that_a_file_cannot_hold_are_refused(tmp_path, words, problem):
    with pytest.raises(ConfigError, match=problem):
        st.save(small(), tmp_path / "a", **words)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_keeps_what_is_there(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    for place in (tmp_path / "file" / "a", tmp_path):
        with pytest.raises(StorageError, match=r"cannot write .*; free space") as caught:
            st.save(small(), place)
        assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# A user's own model


class Own(nn.Module):
    def __init__(self, seed=0, width=6):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 4)
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("seen", torch.zeros(2, dtype=torch.int32))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for value in self.parameters():
                value.copy_(torch.randn(value.shape, generator=generator))

    def forward(self, x):
        return self.scale * self.head(self.norm(self.conv(x)).mean((2, 3)))


@pytest.fixture
def owned(tmp_path):
    net = moved(st.adapt_(Own(), st.Learn(fraction=0.5)))
    net.seen += 3
    st.save(net, tmp_path / "own.safetensors")
    return net, tmp_path / "own.safetensors"


def test_an_own_model_comes_back_into_a_fresh_copy(owned):
    net, path = owned
    found = st.load(path, module=Own())
    assert same(net, found)
    assert torch.equal(logits(net), logits(found))
    header = st.inspect(path)
    assert (header.library, header.model, header.backbone.kind) == ("module", "Own", "module")


def test_an_own_model_must_be_passed(owned):
    with pytest.raises(
        DeltaError, match=r"the user's own model Own; build that and pass it as load\(path, module"
    ):
        st.load(owned[1])


def test_other_values_are_another_backbone_and_the_model_stays_plain(owned):
    module = Own(seed=1)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(BackboneError, match=r"fingerprint [0-9a-f]{12}….*the user's own Own gives"):
        st.load(owned[1], module=module)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    st.adapt_(module, st.Learn(fraction=0.5))


def test_other_shapes_are_named(owned):
    with pytest.raises(
        DeltaError, match=r"'conv.weight' with shape \(3, 3, 3, 3\); Own expects \(4, 3, 3, 3\)"
    ):
        st.load(owned[1], module=Own(width=8))


def test_missing_and_extra_layers_are_named(owned):
    more, less = Own(), Own()
    more.more = nn.BatchNorm2d(2)
    del less.seen
    with pytest.raises(DeltaError, match=r"lacks 'more.weight', which Own expects with shape \(2,\)"):
        st.load(owned[1], module=more)
    with pytest.raises(DeltaError, match=r"holds 'seen', which Own does not learn"):
        st.load(owned[1], module=less)


def test_another_kind_of_values_is_named(owned, tmp_path):
    parts = Parts(owned[1])
    entry = next(item for item in parts.index if item[0] == "seen")
    entry[1] = "float32"
    parts.packed["float32"] += parts.packed.pop("int32")
    with pytest.raises(DeltaError, match=r"'seen' as float32; Own expects torch.int32"):
        st.load(parts.write(tmp_path / "forged"), module=Own())


def test_a_damaged_file_leaves_the_model_alone(owned, tmp_path):
    data = bytearray(owned[1].read_bytes())
    data[data.index(Parts(owned[1]).packed["float32"])] ^= 1
    (tmp_path / "damaged").write_bytes(data)
    module = Own(seed=1).half()
    with pytest.raises(DeltaError, match="do not match their checksum"):
        st.load(tmp_path / "damaged", module=module)
    assert module.conv.weight.dtype == torch.float16


# A checkpoint file as backbone


@pytest.fixture
def over_file(tmp_path):
    """A delta over a checkpoint that has another class count, both in one folder."""
    whole = st.create("wrn28_4", depth=10, width=1, num_classes=7, seed=5)
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    net = st.create(
        "wrn28_4", depth=10, width=1, num_classes=10, seed=6, checkpoint=tmp_path / "whole.safetensors"
    )
    st.save(moved(st.adapt_(net, st.Learn(fraction=0.2, head=False))), tmp_path / "delta.safetensors")
    return net, tmp_path / "delta.safetensors", tmp_path / "whole.safetensors"


def test_a_checkpoint_beside_the_delta_is_found(over_file, monkeypatch, tmp_path):
    net, delta, _ = over_file
    assert same(net, st.load(delta))
    monkeypatch.chdir(tmp_path)
    assert same(net, st.load("delta.safetensors"))
    header = st.inspect(delta)
    assert (header.backbone.kind, header.backbone.source) == ("file", "whole.safetensors")


def test_a_checkpoint_elsewhere_is_passed(over_file, tmp_path):
    net, delta, whole = over_file
    (tmp_path / "far").mkdir()
    elsewhere = whole.rename(tmp_path / "far" / "renamed.safetensors")
    with pytest.raises(
        BackboneError, match=r"'whole.safetensors' \(SHA-256 [0-9a-f]{64}\).*not at hand; pass"
    ):
        st.load(delta)
    assert same(net, st.load(delta, backbone=elsewhere))


def test_a_checkpoint_is_found_where_the_run_had_it_or_here(over_file, tmp_path, monkeypatch):
    net, delta, whole = over_file
    (tmp_path / "far").mkdir()
    elsewhere = whole.rename(tmp_path / "far" / whole.name)
    settings = delta.parent / "config.json"
    for text in (
        "[" * 100_000,
        "[]",
        "{}",
        '{"init_from": 3}',
        json.dumps({"init_from": "/other.safetensors"}),
    ):
        settings.write_text(text)
        with pytest.raises(BackboneError, match="not at hand"):
            st.load(delta)
    settings.write_text(json.dumps({"init_from": str(elsewhere)}))
    assert same(net, st.load(delta))
    settings.unlink()
    monkeypatch.chdir(elsewhere.parent)
    assert same(net, st.load(delta))


def test_another_checkpoint_of_that_name_is_refused(over_file):
    _, delta, whole = over_file
    other = st.create("wrn28_4", depth=10, width=1, num_classes=7, seed=9)
    save_file(other.state_dict(), whole)
    with pytest.raises(BackboneError, match=r"with fingerprint .* pass the checkpoint with SHA-256 [0-9a-f]"):
        st.load(delta)


def test_the_same_values_in_another_file_are_the_same_backbone(over_file, tmp_path):
    net, delta, whole = over_file
    values = load_file(whole)
    values["fc.weight"], values["fc.bias"] = torch.zeros(9, 64), torch.zeros(9)
    save_file(values, tmp_path / "mirror.safetensors", metadata={"from": "elsewhere"})
    again = st.load(delta, backbone=tmp_path / "mirror.safetensors")
    assert same(net, again)
    st.save(again, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == delta.read_bytes()


@pytest.mark.parametrize(
    "source", ["../whole.safetensors", "{0}/whole.safetensors", "..", "", "x/../../whole"]
)
def test_a_source_is_not_followed_out_of_the_folder(over_file, tmp_path, source):
    _, delta, _ = over_file
    (tmp_path / "inner").mkdir()
    parts = Parts(delta)
    parts.header["backbone"]["source"] = source.format(tmp_path)
    forged = parts.write(tmp_path / "inner" / "forged.safetensors")
    with pytest.raises(BackboneError, match="not at hand"):
        st.load(forged)


def test_what_learn_says_of_the_backbone_must_hold(over_file):
    _, _, whole = over_file
    plain = st.create("wrn28_4", depth=10, width=1, checkpoint=whole, num_classes=7)
    with pytest.raises(ConfigError, match="frozen='random' was asked for, but the backbone is file whole"):
        st.adapt_(plain, st.Learn(fraction=0.1, frozen="random"))


# A delta over another


def test_fill_takes_over_values_of_the_same_slices(tmp_path):
    first, second = small(), moved(small(), seed=9)
    st.save(first, tmp_path / "a")
    fill(second, tmp_path / "a")
    assert same(first, second)


def test_fill_refuses_another_backbone_or_slice(tmp_path):
    st.save(small(), tmp_path / "a")
    for other in (small(seed=1), small(st.Learn(fraction=0.4))):
        with pytest.raises(DeltaError, match="start from a delta of the same"):
            fill(other, tmp_path / "a")


def test_fill_leaves_a_classifier_of_other_classes_as_it_is(tmp_path):
    whole = moved(small(st.Learn(fraction=1.0)))
    st.save(whole, tmp_path / "a")
    net = small(st.Learn(fraction=1.0), num_classes=4)
    head = net.fc.weight.detach().clone()
    with pytest.warns(Notice, match="knows 10 classes, so the classifier for 4 was drawn anew"):
        fill(net, tmp_path / "a")
    assert torch.equal(net.fc.weight, head)
    others = [name for name, _ in net.named_parameters() if not name.startswith("fc.")]
    assert all(torch.equal(net.get_parameter(name), whole.get_parameter(name)) for name in others)


# Forgery


@pytest.fixture
def parts(tmp_path):
    st.save(small(), tmp_path / "honest.safetensors")
    return Parts(tmp_path / "honest.safetensors")


def model(**changes):
    return lambda header: header["model"].update(changes)


def backbone(**changes):
    return lambda header: header.update(backbone=changes)


def zeroed(header):
    header["learn"].update(frozen="zero")
    header.update(backbone={"kind": "zero", "base": {"kind": "seed"}})


SHA = "0" * 64
FORGED = {
    "fingerprint": (
        lambda h: h.update(fingerprint=SHA),
        BackboneError,
        "fingerprint 000000000000…, but seed 0",
    ),
    "seed": (backbone(kind="seed", seed=1), BackboneError, "seed 1 gives"),
    "generator": (backbone(kind="seed", generator=2), BackboneError, "generator 2 .*install sparsetune=="),
    "zero": (backbone(kind="zero", base={"kind": "seed"}), DeltaError, "contradict each other"),
    "learn zero": (lambda h: h["learn"].update(frozen="zero"), DeltaError, "contradict each other"),
    "both zero": (zeroed, BackboneError, "fingerprint"),
    "dtype": (lambda h: h.update(dtype="float64"), BackboneError, "fingerprint"),
    "classes": (
        model(num_classes=11),
        DeltaError,
        r"'fc.weight' with shape \(10, 64\); wrn28_4 expects \(11",
    ),
    "other model": (model(name="resnet18", kwargs={}), DeltaError, "resnet18 expects"),
    "near name": (model(name="wrn28_44"), UnknownNameError, "did you mean wrn28_4 or"),
    "torchvision name": (
        model(library="torchvision", name="resnet19"),
        UnknownNameError,
        "torchvision/resnet18",
    ),
    "library": (model(library="transformers"), DeltaError, "user's own model"),
    "unsure depth": (model(kwargs={"depth": 11}), ConfigError, "depth"),
    "unknown argument": (model(kwargs={"evil": 1}), ConfigError, "unexpected keyword"),
    "layers": (lambda h: h["learn"].update(layers=["blok"]), UnknownNameError, "did you mean block"),
    "filters": (lambda h: h["learn"].update(filters=1, fraction=None), DeltaError, "wrn28_4 expects"),
    "frozen": (lambda h: h["learn"].update(frozen="pretrained"), ConfigError, "backbone is seed 0"),
    "module": (backbone(kind="module", source="Own"), DeltaError, "user's own model"),
    "pretrained": (
        backbone(kind="pretrained", source="a/b"),
        BackboneError,
        "weights a/b; pass allow_network=True",
    ),
    "file": (backbone(kind="file", source="none", sha256=SHA), BackboneError, "not at hand; pass its path"),
}


@pytest.mark.parametrize(("forge", "kind", "words"), FORGED.values(), ids=FORGED)
def test_a_forged_header_is_refused(parts, tmp_path, forge, kind, words):
    forge(parts.header)
    path = parts.write(tmp_path / "forged.safetensors")
    with pytest.raises(kind, match=words) as caught:
        st.load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


OTHER_RELEASE = {
    "a layer's shape": (
        model(num_classes=11),
        DeltaError,
        r"'fc.weight' with shape \(10, 64\); wrn28_4 expects",
    ),
    "a name": (model(name="wrn28_44"), UnknownNameError, "'wrn28_44' is unknown; did you mean wrn28_4"),
    "an argument": (model(kwargs={"evil": 1}), ConfigError, "unexpected keyword argument 'evil'"),
    "a module's name": (lambda h: h["learn"].update(layers=["blok"]), UnknownNameError, "pattern 'blok'"),
    "an initial value": (backbone(kind="seed", seed=1), BackboneError, "seed 1 gives [0-9a-f]{12}… here"),
}


@pytest.mark.parametrize(("forge", "kind", "words"), OTHER_RELEASE.values(), ids=OTHER_RELEASE)
def test_a_model_of_another_release_is_told_with_the_version_to_install(parts, tmp_path, forge, kind, words):
    forge(parts.header)
    parts.header["versions"]["timm"] = "0.9.9"
    path = parts.write(tmp_path / "old.safetensors")
    with pytest.raises(kind, match=words) as caught:
        st.load(path)
    here = version("timm")
    assert str(caught.value).endswith(
        f"; it was saved with timm 0.9.9 and this is {here}: install timm==0.9.9."
    )
    assert "\n" not in str(caught.value)


RESERVED = [
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
    "weights",
]
RESERVED += [
    "weights_backbone",
    "pretrained_backbone",
    "device",
    "dtype",
    "seed",
    "name",
    "checkpoint",
    "revision",
]


@pytest.mark.parametrize("name", RESERVED)
def test_arguments_that_reach_disk_or_network_are_refused(parts, tmp_path, name):
    for value in (True, "/etc/passwd", {"url": "http://127.0.0.1/"}):
        parts.header["model"]["kwargs"] = {name: value}
        with pytest.raises(ConfigError, match=f"model argument '{name}' cannot be passed"):
            st.load(parts.write(tmp_path / "forged.safetensors"))


HOSTILE = {
    "wide": model(kwargs={"depth": 10, "width": 100_000}),
    "wider": model(kwargs={"depth": 10, "width": 10**12}),
    "deeper": model(kwargs={"depth": 6 * 10**15 + 4, "width": 1}),
    "many classes": model(num_classes=10**15),
    "many layers": model(name="resnet18", kwargs={"layers": [250_000] * 4}),
    "large picture": model(name="vit_tiny_patch16_224", kwargs={"img_size": 500_000}),
    "large window": model(
        name="swin_tiny_patch4_window7_224", kwargs={"img_size": 20_000, "window_size": 5_000}
    ),
    "hub": model(name="hf-hub:a/b", kwargs={}),
    "old hub": model(name="hf_hub:a/b", kwargs={}),
    "HUB": model(name="HF-HUB:a/b", kwargs={}),
    "space hub": model(name=" hf-hub:a/b", kwargs={}),
    "hub in timm": model(name="timm/hf-hub:a/b", kwargs={}),
    "local": model(name="local-dir:/etc", kwargs={}),
    "LOCAL": model(name="Local-Dir:/etc", kwargs={}),
    "path": model(name="/etc/passwd", kwargs={}),
    "backbone of torchvision": model(library="torchvision", name="fcn_resnet50", kwargs={}),
    "detector of torchvision": model(library="torchvision", name="retinanet_resnet50_fpn", kwargs={}),
    "pretrained": backbone(kind="pretrained", source="timm/resnet18.a1_in1k"),
    "long name": model(name="x" * 100_000),
}
ATTACKED = """
import json, resource, sys, time
import timm, torch, torchvision  # what these do as they are imported is theirs
from pathlib import Path
import sparsetune as st
from sparsetune.delta.rebuild import TRIAL
events = []
watched = ("socket.", "urllib.", "http.", "pickle.", "subprocess.", "os.system")
def hook(name, args):
    own = name == "subprocess.Popen" and args[:2] == (sys.executable, [sys.executable, "-I", "-c", TRIAL])
    if name.startswith(watched) and not own:
        events.append(name)
sys.addaudithook(hook)
st.load(sys.argv[2])
found = {}
for path in sorted(Path(sys.argv[1]).glob("*.forged")):
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        st.load(path)
        error = "accepted"
    except st.SparsetuneError as caught:
        error = str(caught)
    mebibytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    found[path.stem] = [error, mebibytes, time.process_time() - start, events[:]]
print(json.dumps(found))
"""


def test_a_strangers_file_reaches_neither_network_nor_memory(parts, tmp_path):
    for name, forge in HOSTILE.items():
        forged = Parts(tmp_path / "honest.safetensors")
        forge(forged.header)
        forged.write(tmp_path / f"{name}.forged")
    found = fresh(ATTACKED, tmp_path, tmp_path / "honest.safetensors")
    assert found.keys() == HOSTILE.keys()
    for name, (error, mebibytes, seconds, events) in found.items():
        assert error.startswith(str(tmp_path / name)), name
        assert "\n" not in error, name
        assert events == [], name
        assert mebibytes < 200, name
        assert seconds < 20, name
    assert "allow_network" in found["hub"][0]


# Published weights, from caches that look as if they had been fetched

PUBLISHED = """
import json, os, sys
from pathlib import Path
home = Path(sys.argv[1])
import timm, torch, torchvision
import sparsetune as st
from safetensors.torch import save_file
from forge import moved, same
from sparsetune.backbone.origin import origin_of


def publish(repository, net, commit, config=None):
    folder = home / "hf/hub" / ("models--" + repository.replace("/", "--"))
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs/main").write_text(commit)
    values = {name: value.contiguous() for name, value in net.state_dict().items()}
    save_file(values, snapshot / "model.safetensors")
    if config:
        (snapshot / "config.json").write_text(json.dumps(config))


def error(call):
    try:
        call()
    except st.SparsetuneError as caught:
        return f"{type(caught).__name__}: {caught}"
    return None


found = {"missing": [error(lambda: st.create("test_resnet", pretrained=True)),
                     error(lambda: st.create("torchvision/shufflenet_v2_x0_5", pretrained=True))]}
torch.manual_seed(0)
first, second = timm.create_model("test_resnet"), timm.create_model("test_resnet")
publish("timm/test_resnet.r160_in1k", first, "a" * 40)
publish("someone/theirs", first, "c" * 40, {"architecture": "test_resnet", "num_classes": 1000,
        "pretrained_cfg": {"classifier": "fc", "first_conv": "conv1.0", "num_classes": 1000}})
shuffle = torchvision.models.shufflenet_v2_x0_5()
url = torchvision.models.get_model_weights("shufflenet_v2_x0_5").DEFAULT.url
cache = home / "torch/hub/checkpoints"
cache.mkdir(parents=True, exist_ok=True)
torch.save(shuffle.state_dict(), cache / url.rsplit("/", 1)[1])
cases = {"timm": ("test_resnet", first), "hub": ("hf-hub:someone/theirs", first),
         "torchvision": ("torchvision/shufflenet_v2_x0_5", shuffle)}
nets, mirrors = {}, {kind: home / f"{kind}.mirror" for kind in cases}
for kind, (_, published) in cases.items():
    save_file({name: value.contiguous() for name, value in published.state_dict().items()}, mirrors[kind])
for kind, (name, published) in cases.items():
    for classes in (None, 10):
        state = torch.get_rng_state()
        net = st.create(name, pretrained=True, num_classes=classes, seed=3)
        assert torch.equal(state, torch.get_rng_state())
        values = published.state_dict()
        equal = [key for key, value in net.state_dict().items() if torch.equal(value, values[key])
                 or value.shape != values[key].shape]
        assert len(equal) == len(values), kind
        if classes:
            plain = st.create(name, num_classes=classes, seed=3)
            assert torch.equal(plain.fc.weight, net.fc.weight)
        backbone = origin_of(net).backbone
        key = f"{kind} {classes}"
        found[key] = [backbone.kind, backbone.source, backbone.revision]
        nets[key] = moved(st.adapt_(net, st.Learn(fraction=0.2, frozen="pretrained", head=False)))
        st.save(net, home / f"{key}.safetensors")
publish("timm/test_resnet.r160_in1k", second, "b" * 40)
for key, net in nets.items():
    path = home / f"{key}.safetensors"
    found["refused " + key] = error(lambda: st.load(path))
    assert same(net, st.load(path, allow_network=True)), key
    if not key.startswith("hub"):
        assert same(net, st.load(path, backbone=mirrors[key.split()[0]])), key
    st.save(st.load(path, allow_network=True), home / "again")
    assert (home / "again").read_bytes() == path.read_bytes()
net = st.create("test_resnet", pretrained=True)
assert torch.equal(net.fc.weight, second.fc.weight)
found["latest"] = origin_of(net).backbone.revision
print(json.dumps(found))
"""


def test_published_weights_come_back_at_their_revision(tmp_path):
    home = {"HF_HOME": tmp_path / "hf", "HF_HUB_OFFLINE": 1, "TORCH_HOME": tmp_path / "torch"}
    proxies = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    found = fresh(PUBLISHED, tmp_path, **home, **proxies)
    for message in found.pop("missing"):
        assert message.startswith("BackboneError: pretrained weights of ")
        assert re.search(
            r"; (run `hf download timm/test_resnet.r160_in1k`|download https://\S+\.pth) where there is a",
            message,
        )
        assert "\n" not in message
    for classes in ("None", "10"):
        assert found[f"timm {classes}"] == ["pretrained", "timm/test_resnet.r160_in1k", "a" * 40]
        assert found[f"hub {classes}"] == ["pretrained", "someone/theirs", "c" * 40]
        assert found[f"torchvision {classes}"] == [
            "pretrained",
            "torchvision/shufflenet_v2_x0_5",
            "IMAGENET1K_V1",
        ]
    assert found["latest"] == "b" * 40
    refused = {name: message for name, message in found.items() if name.startswith("refused")}
    assert len(refused) == 6
    for name, message in refused.items():  # what the Hub's cache has of timm's own models is no network
        if "refused timm" in name:
            assert message is None
        else:
            assert "pass allow_network=True (--allow-network)" in message


def test_a_generator_of_another_version_may_have_been_checked_by_nobody_else(parts, tmp_path):
    net = small(st.Learn(fraction=1.0))
    st.save(net, tmp_path / "whole")
    whole = Parts(tmp_path / "whole")
    whole.header["backbone"]["generator"] = 0
    with pytest.raises(BackboneError, match="generator 0"):
        st.load(whole.write(tmp_path / "forged"))


def test_inspect_builds_nothing(parts, tmp_path):
    parts.header["model"]["name"] = "no such model"
    header = st.inspect(parts.write(tmp_path / "forged"))
    assert header.model == "no such model"
    assert replace(header, model="wrn28_4", payload="", entries=()) == replace(
        st.inspect(tmp_path / "honest.safetensors"), payload="", entries=()
    )


def test_every_error_of_loading_is_ours():
    for path in ("", ".", "none", "/dev/null", Path("/proc/self/mem"), os.devnull):
        with pytest.raises(SparsetuneError, match=r"pass a delta|not an intact delta"):
            st.load(path)


# Frozen values that no seed gives


@pytest.fixture
def mixed(tmp_path):
    """A transformer whose position frequencies are sines of random angles, over its file."""
    arguments = {"img_size": [32, 32], "depth": 2, "num_classes": 5}
    net = st.adapt_(st.create("vit_small_patch16_rope_mixed_224", **arguments), st.Learn(fraction=0.1))
    st.save(moved(net), tmp_path / "mixed.safetensors")
    return net, tmp_path / "mixed.safetensors"


def test_frozen_values_that_no_seed_gives_travel(mixed, tmp_path):
    net, path = mixed
    made = st.adapted(net).plan
    held = Parts(path).tensors()
    assert {name for name in held if name.endswith(".frozen")} == {"rope.freqs.frozen"}
    assert torch.equal(held["rope.freqs.frozen"], net.rope.freqs)
    assert (
        made.stored_bytes
        == made.to_json()["stored_bytes"]
        == 4 * net.rope.freqs.numel()
        == 4 * 2 * 2 * 6 * 32
    )
    values = {name for name in held if not name.endswith(".frozen")}
    assert made.delta_bytes == 4 * sum(held[name].numel() for name in values) + made.stored_bytes
    assert "with 3.0 KiB that no seed gives" in str(made)
    found = st.load(path)
    assert st.adapted(found).plan.stored_bytes == made.stored_bytes
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(all_values(net), all_values(found), strict=True))
    st.save(found, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def all_values(net):
    return [*net.named_parameters(), *net.named_buffers()]


def test_what_another_machine_makes_of_them_does_not_matter(mixed, monkeypatch):
    net, path = mixed
    cos = torch.cos
    monkeypatch.setattr(torch, "cos", lambda x: torch.nextafter(cos(x), torch.ones(())))
    made = st.create("vit_small_patch16_rope_mixed_224", img_size=[32, 32], depth=2, num_classes=5)
    assert not torch.equal(made.rope.freqs, net.rope.freqs)
    assert torch.equal(st.load(path).rope.freqs, net.rope.freqs)


def test_a_slice_of_a_stored_weight_travels_beside_its_rest(tmp_path):
    net = st.create("wrn28_4", depth=10, width=1)
    name = "block1.0.conv1.weight"
    net._sparsetune_stored = name, "bn.weight"
    st.adapt_(net, st.Learn(fraction=0.25))
    st.save(moved(net), tmp_path / "stored.safetensors")
    held = Parts(tmp_path / "stored.safetensors").tensors()
    assert torch.equal(torch.cat([held[name], held[f"{name}.frozen"]]), st.merge_(net).get_parameter(name))
    assert "bn.weight.frozen" not in held
    assert same(net, st.merge_(st.load(tmp_path / "stored.safetensors")))
    zeroed = st.create("wrn28_4", depth=10, width=1)
    zeroed._sparsetune_stored = (name,)
    assert st.plan(zeroed, st.Learn(fraction=0.25, frozen="zero")).stored_bytes == 0


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (
            lambda entry: entry.__setitem__(2, [7, 2, 32]),
            DeltaError,
            r"'rope.freqs.frozen' with shape \(7, 2",
        ),
        (
            lambda entry: entry.__setitem__(0, "rope.freq.frozen"),
            DeltaError,
            "'rope.freq.frozen', which .* does",
        ),
        (lambda entry: entry.__setitem__(0, "norm.weight.frozen"), DeltaError, "'norm.weight.frozen', which"),
        (None, BackboneError, "fingerprint"),
    ],
    ids=["shape", "name", "learned whole", "value"],
)
def test_forged_frozen_values_are_refused(mixed, tmp_path, change, kind, words):
    parts = Parts(mixed[1])
    if change is None:
        parts.packed["float32"] = parts.packed["float32"][:-1] + b"\x01"
    else:
        change(parts.index[-1])
        size = torch.Size(parts.index[-1][2]).numel() - 2 * 2 * 6 * 32
        parts.packed["float32"] = (parts.packed["float32"] + bytes(4 * max(size, 0)))[
            : len(parts.packed["float32"]) + 4 * size
        ]
    with pytest.raises(kind, match=words):
        st.load(parts.write(tmp_path / "forged.safetensors"))


def test_a_user_s_own_backbone_holds_its_values_itself(tmp_path):
    net = st.create("vit_small_patch16_rope_mixed_224", img_size=[32, 32], depth=1)
    st.adapt_(net, st.Learn(fraction=0.1), st.Backbone.from_module(net))
    st.save(net, tmp_path / "own.safetensors")
    assert not any(name.endswith(".frozen") for name in Parts(tmp_path / "own.safetensors").tensors())


# What must not be saved or half done


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("leaf", ["conv.weight_frozen", "head.weight"])
def test_frozen_values_that_changed_are_refused_in_any_dtype(dtype, leaf, tmp_path):
    make = lambda: st.adapt_(Own(), st.Learn(fraction=0.5, head=False))  # noqa: E731
    st.save(make().to(dtype), tmp_path / "a")
    assert st.load(tmp_path / "a", module=Own()).conv.weight.dtype == dtype
    net = make()
    net.get_buffer(leaf).data.mul_(1.5)
    with pytest.raises(DeltaError, match="frozen values changed since adapt_"):
        st.save(net.to(dtype), tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "learn", [st.Learn(fraction=0.5), st.Learn(fraction=0.5, frozen="zero"), st.Learn(rank=1)]
)
def test_a_failed_load_leaves_the_model_as_it_was(learn, tmp_path):
    st.save(st.adapt_(Own(), learn).half(), tmp_path / "a")
    module = Own(seed=1).train()
    with torch.no_grad():
        for value in module.parameters():
            value.add_(1)
    module.head.bias.requires_grad_(False)
    kept = copy.deepcopy(module)
    parts = Parts(tmp_path / "a")
    parts.header["fingerprint"] = "0" * 64
    path = parts.write(tmp_path / "b")
    with pytest.raises(BackboneError, match="with fingerprint"):
        st.load(path, module=module)
    assert same(module, kept)
    assert module.training
    for (name, a), (_, b) in zip(module.named_parameters(), kept.named_parameters(), strict=True):
        assert a.requires_grad == b.requires_grad, name
