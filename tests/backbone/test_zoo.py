"""Models by name: which there are, and that each is the same on every machine."""

import hashlib
import importlib
import math

import numpy as np
import pytest
import timm
import torch
from forge import fresh, same
from safetensors.torch import load_file, save_file
from torch import nn

import sparsetune as st
from sparsetune.backbone import zoo
from sparsetune.backbone.origin import origin_of
from sparsetune.backbone.zoo import recreate, skeleton, without_memory
from sparsetune.errors import BackboneError, ConfigError, UnknownNameError

SMALL_DIGEST = "f3d3a38b467bbff1f64a064c7a7953455636af1e19ceb3ed286bcab060e59bb2"
SMALL = {"depth": 10, "width": 1, "num_classes": 10}


def digest(net):
    found = hashlib.sha256()
    for name, value in net.state_dict().items():
        found.update(name.encode() + value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


# Names


def test_names_match_patterns():
    known = st.names()
    assert known == sorted(set(known))
    assert {"wrn28_4", "wrn28_10", "densenet100_12", "alexnet_cifar", "vgg19_cifar", "vgg19_bn_cifar"} <= set(
        known
    )
    assert {"resnet18", "torchvision/resnet18"} <= set(known)
    assert st.names("wrn*") == ["wrn28_10", "wrn28_4"]
    assert st.names("wrn28_?") == ["wrn28_4"]
    assert st.names("torchvision/resnet1*") == [
        "torchvision/resnet101",
        "torchvision/resnet152",
        "torchvision/resnet18",
    ]
    assert "torchvision/wide_resnet50_2" in st.names("resnet50")
    assert st.names("no such model") == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wrn28_44", "'wrn28_44' is unknown; did you mean wrn28_4 or"),
        ("torchvision/resnet19", "did you mean torchvision/resnet18 or"),
        ("torchvision/wrn28_4", "'torchvision/wrn28_4' is unknown"),
        ("timm/resnet18", "'timm/resnet18' is unknown"),
        ("HF-HUB:a/b", "'HF-HUB:a/b' is unknown"),
        ("local-dir:/tmp", "'local-dir:/tmp' is unknown"),
        ("", "'' is unknown"),
    ],
)
def test_an_unknown_name_has_near_matches(name, words):
    with pytest.raises(UnknownNameError, match=words) as caught:
        st.create(name)
    assert "\n" not in str(caught.value)


# Arguments


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"evil": 1}, "wrn28_4 cannot be built with .*unexpected keyword argument 'evil'"),
        ({"depth": 11}, "depth 11"),
        ({"width": -1}, "width -1"),
        ({"drop_rate": math.nan}, "cannot stand in a delta file"),
        ({"drop_rate": {1, 2}}, "cannot stand in a delta file"),
        ({"global_pool": nn.ReLU}, r"cannot stand in a delta file .*Backbone.from_module\(net\)"),
        ({"width": 2**20 + 1}, "sum up to more than"),
        ({"device": "cpu"}, "'device' cannot be passed"),
        ({"checkpoint_path": "x"}, "'checkpoint_path' cannot be passed"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, words):
    with pytest.raises(ConfigError, match=words) as caught:
        st.create("wrn28_4", **arguments)
    assert "\n" not in str(caught.value)


def test_arguments_are_kept_as_a_file_gives_them_back():
    net = st.create("vit_tiny_patch16_224", img_size=(32, 16), depth=1, num_classes=3)
    assert origin_of(net).kwargs == {"img_size": [32, 16], "depth": 1}
    assert same(net, recreate(origin_of(net)))


def test_the_class_count_is_the_models_own_unless_given():
    for name, own in {"resnet18": 1000, "wrn28_4": 10, "torchvision/resnet18": 1000}.items():
        assert origin_of(st.create(name)).num_classes == own
        assert origin_of(st.create(name, num_classes=7)).num_classes == 7
    for count, own in {None: 21, 3: 3}.items():
        net = st.create("torchvision/lraspp_mobilenet_v3_large", num_classes=count)
        assert net.classifier.high_classifier.out_channels == origin_of(net).num_classes == own
        assert same(net, recreate(origin_of(net)))


@pytest.mark.parametrize("count", [-1, 2.0, "2", True, np.int64(2), 10**30])
def test_a_class_count_is_a_whole_number(count):
    with pytest.raises(ConfigError, match=r"num_classes .* is not a whole number|cannot be built"):
        st.create("wrn28_4", **{**SMALL, "num_classes": count})


def test_both_sources_of_weights_are_refused():
    with pytest.raises(
        ConfigError, match=r"pretrained=True and checkpoint='a' both give the weights; keep one"
    ):
        st.create("wrn28_4", pretrained=True, checkpoint="a")


# Seeds


def test_the_same_seed_gives_the_same_bytes():
    assert digest(st.create("wrn28_4", **SMALL)) == SMALL_DIGEST
    assert digest(st.create("wrn28_4", **SMALL, seed=0)) == SMALL_DIGEST
    assert len({digest(st.create("wrn28_4", **SMALL, seed=seed)) for seed in (0, 1, 2**64, 2**64 + 1)}) == 4


@pytest.mark.parametrize("seed", [-1, 1.0, "1", None, True])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(ConfigError, match=r"seed .* is not a whole number"):
        st.create("wrn28_4", **SMALL, seed=seed)


def test_random_state_is_neither_read_nor_moved():
    found = set()
    for seed in range(3):
        torch.manual_seed(seed)
        np.random.seed(seed)
        states = torch.get_rng_state(), np.random.get_state()[1].tolist()
        found.add(digest(st.create("resnet18", num_classes=10)))
        with pytest.raises(ConfigError):
            st.create("resnet18", evil=1)
        skeleton(origin_of(st.create("wrn28_4", **SMALL)))
        assert torch.equal(states[0], torch.get_rng_state())
        assert states[1] == np.random.get_state()[1].tolist()
    assert len(found) == 1


def test_a_layer_does_not_depend_on_the_others():
    thin = st.create("wrn28_4", **SMALL).state_dict()
    deep = st.create("wrn28_4", **{**SMALL, "depth": 16, "num_classes": 100}).state_dict()
    convolutions = [name for name in thin if "conv" in name or "shortcut" in name]
    assert len(convolutions) == 1 + 3 * 2 + 2
    assert all(torch.equal(thin[name], deep[name]) for name in convolutions)
    assert torch.equal(thin["fc.weight"].flatten(), deep["fc.weight"].flatten()[: 10 * 64])


def test_names_make_streams_of_their_own():
    net = st.create("wrn28_4", **SMALL)
    weights = [value for name, value in net.state_dict().items() if name.endswith("conv2.weight")]
    first = {tuple(value.flatten()[:4].mul(value.numel() ** 0.5).tolist()) for value in weights}
    assert len(first) == len(weights) == 3


def test_constants_stay_the_models():
    net = st.create("resnet18", num_classes=10, zero_init_last=False)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight.unique(), torch.ones(1))
            assert not module.bias.any()
            assert not module.running_mean.any()
            assert torch.equal(module.running_var.unique(), torch.ones(1))
            assert module.num_batches_tracked == 0
    zeroed = st.create("resnet18", num_classes=10, zero_init_last=True)
    assert not zeroed.layer1[0].bn2.weight.any()
    assert torch.equal(zeroed.layer1[0].bn1.weight, torch.ones(64))
    assert torch.equal(zeroed.layer1[0].conv2.weight, net.layer1[0].conv2.weight)
    scaled = st.create("convnext_atto", num_classes=10, ls_init_value=1e-6)
    gammas = [value for name, value in scaled.named_parameters() if name.endswith("gamma")]
    assert gammas
    assert all(torch.equal(value.unique(), torch.tensor([1e-6])) for value in gammas)


def test_values_follow_the_observed_laws():
    net = st.create("resnet18", num_classes=10)
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            area = module.kernel_size[0] * module.kernel_size[1]
            expected = math.sqrt(2 / (area * module.out_channels))  # He et al. (2015), fan-out
            count = module.weight.numel()
            assert abs(module.weight.std() / expected - 1) < 5 / math.sqrt(2 * count) + 1e-4, name
            assert abs(module.weight.mean()) < 5 * expected / math.sqrt(count), name
            assert module.weight.abs().max() < 4.4 * expected, name
    bound = 1 / math.sqrt(net.fc.in_features)
    assert 0.99 * bound < net.fc.weight.abs().max() <= bound
    assert abs(net.fc.weight.std() / (bound / math.sqrt(3)) - 1) < 0.05
    transformer = st.create("vit_tiny_patch16_224", depth=1, num_classes=10)
    weight = transformer.blocks[0].attn.qkv.weight
    assert abs(weight.std() / 0.02 - 1) < 0.02


BUILD = """
import json
import sparsetune as st
from test_zoo import digest
nets = st.create("wrn28_10", num_classes=10, seed=0), st.create("vit_tiny_patch16_224", depth=2, seed=1)
print(json.dumps([digest(net) for net in nets]))
"""
EXPECTED = [
    "1e4b2c8b77127cbc0f624490f42bc672c9a30ceee03e09ac3895da59d5ba2d45",
    "5c0cbfe72495900e49e3b5f87551d772e79d2e108a85b9c95c3f750a4c961c0f",
]


def machines():
    home = "numpy._core" if hasattr(np, "_core") else "numpy.core"
    core = importlib.import_module(f"{home}._multiarray_umath")
    yield "here", {}
    for level in ("default", "avx2"):
        yield f"torch {level}", {"ATEN_CPU_CAPABILITY": level}
    for threads in (1, 2):
        yield f"{threads} threads", {"OMP_NUM_THREADS": threads}
    features = [name for name in core.__cpu_dispatch__ if core.__cpu_features__.get(name)]
    yield "numpy without " + " ".join(features), {"NPY_DISABLE_CPU_FEATURES": ",".join(features)}
    yield (
        "plain",
        {
            "ATEN_CPU_CAPABILITY": "default",
            "OMP_NUM_THREADS": 1,
            "NPY_DISABLE_CPU_FEATURES": ",".join(features),
            "DNNL_MAX_CPU_ISA": "SSE41",
        },
    )


@pytest.mark.slow
@pytest.mark.parametrize("settings", [pytest.param(env, id=name) for name, env in machines()])
def test_a_seed_gives_the_same_bytes_on_every_cpu(settings):
    assert fresh(BUILD, **settings) == EXPECTED


def test_a_seed_gives_the_same_bytes_here():
    assert digest(st.create("wrn28_10", num_classes=10, seed=0)) == EXPECTED[0]


# Checkpoints


@pytest.fixture
def whole(tmp_path):
    net = st.create("wrn28_4", **SMALL, seed=8)
    save_file(net.state_dict(), tmp_path / "whole.safetensors")
    return net, tmp_path / "whole.safetensors"


def test_values_come_from_a_checkpoint(whole):
    net, path = whole
    found = st.create("wrn28_4", **SMALL, checkpoint=path)
    assert same(net, found)
    backbone = origin_of(found).backbone
    assert (backbone.kind, backbone.source, backbone.seed) == ("file", "whole.safetensors", 0)
    assert backbone.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert same(found, recreate(origin_of(found), path))
    assert same(found, recreate(origin_of(found), str(path)))


def test_a_head_for_other_classes_is_drawn(whole):
    net, path = whole
    seeded = st.create("wrn28_4", **{**SMALL, "num_classes": 4}, seed=3)
    found = st.create("wrn28_4", **{**SMALL, "num_classes": 4}, seed=3, checkpoint=path)
    assert torch.equal(found.fc.weight, seeded.fc.weight)
    assert torch.equal(found.fc.bias, seeded.fc.bias)
    rest = [name for name in net.state_dict() if not name.startswith("fc.")]
    assert all(torch.equal(found.state_dict()[name], net.state_dict()[name]) for name in rest)
    assert same(found, recreate(origin_of(found), path))


def test_a_checkpoint_that_does_not_fit_is_named(whole):
    _, path = whole
    with pytest.raises(
        BackboneError, match=r"whole.safetensors holds 'block1.0.conv1.weight' with shape \(16, 16, 3, 3\)"
    ):
        st.create("wrn28_4", **{**SMALL, "width": 2}, checkpoint=path)
    with pytest.raises(
        BackboneError, match=r"whole.safetensors lacks 'block1.1.bn1.weight', which the model expects"
    ):
        st.create("wrn28_4", **{**SMALL, "depth": 16}, checkpoint=path)
    with pytest.raises(BackboneError, match=r"cannot be read: .*; pass the path of a safetensors checkpoint"):
        st.create("wrn28_4", **SMALL, checkpoint=path.parent / "none.safetensors")
    with pytest.raises(BackboneError, match="cannot be read"):
        st.create("wrn28_4", **SMALL, checkpoint=path.parent)


def test_the_checkpoint_is_needed_again_in_whatever_file(whole):
    _, path = whole
    net = st.create("wrn28_4", **SMALL, checkpoint=path)
    origin = origin_of(net)
    for missing in (None, path.parent / "none.safetensors", path.parent):
        with pytest.raises(
            BackboneError, match=r"the checkpoint 'whole.safetensors' .* pass its path as backbone"
        ):
            recreate(origin, missing)
    save_file(load_file(path), path.parent / "other.safetensors", metadata={"another": "file"})
    again = recreate(origin, path.parent / "other.safetensors").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "state_dict.model."]
)
def test_what_wrappers_put_before_names_is_taken_away(whole, prefix):
    net, path = whole
    save_file({prefix + name: value for name, value in net.state_dict().items()}, path)
    assert same(net, st.create("wrn28_4", **SMALL, checkpoint=path))


def test_other_prefixes_are_named(whole):
    net, path = whole
    values = {"net.trunk." + name: value for name, value in net.state_dict().items()}
    save_file({**values, "loss.weight": torch.ones(2)}, path)
    with pytest.raises(
        BackboneError, match=r"lacks 'conv1.weight'.*; take 'net.trunk.' away from 'net.trunk.c"
    ):
        st.create("wrn28_4", **SMALL, checkpoint=path)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("test_vit", {"img_size": 32}),
        ("test_vit", {"img_size": 96, "in_chans": 1}),
        ("test_resnet", {"in_chans": 1}),
        ("test_efficientnet", {"in_chans": 4}),
    ],
)
def test_a_checkpoint_is_fitted_to_other_pictures_as_timm_does(tmp_path, name, kwargs):
    path, delta = tmp_path / "whole.safetensors", tmp_path / "delta.safetensors"
    plain = timm.create_model(name, num_classes=10).state_dict()
    save_file({key: value.clone().contiguous() for key, value in plain.items()}, path)
    given = {"file": str(path), "num_classes": 10, "custom_load": False}
    theirs = timm.create_model(name, pretrained=True, num_classes=10, pretrained_cfg_overlay=given, **kwargs)
    net = st.create(name, num_classes=10, checkpoint=path, **kwargs)
    assert same(net, theirs)
    st.save(st.adapt_(net, st.Learn(fraction=0.25)), delta)
    loaded = st.merge_(st.load(delta))
    assert same(loaded, theirs)
    save_file(
        {key: value.clone() for key, value in loaded.state_dict().items()}, tmp_path / "fitted.safetensors"
    )
    assert same(st.merge_(st.load(delta, backbone=tmp_path / "fitted.safetensors")), theirs)


# Skeletons


def test_a_skeleton_has_the_shapes_and_no_values():
    for name in ("wrn28_4", "resnet18", "torchvision/resnet18", "torchvision/regnet_y_400mf"):
        net = st.create(name, num_classes=3)
        empty = skeleton(origin_of(net))
        shapes = {key: value.shape for key, value in net.state_dict().items()}
        assert {key: value.shape for key, value in empty.state_dict().items()} == shapes
        assert all(value.is_meta for value in empty.parameters())


def test_a_skeleton_is_not_too_large(monkeypatch):
    monkeypatch.setattr(zoo, "MOST_PARAMETERS", 10)
    with pytest.raises(ConfigError, match="more than 10 parameter tensors"):
        without_memory(lambda: nn.Sequential(*(nn.Linear(1, 1) for _ in range(6))))
    nn.Sequential(*(nn.Linear(1, 1) for _ in range(6)))
