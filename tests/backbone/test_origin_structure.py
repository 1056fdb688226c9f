"""A model that a file could not give back is refused before it is trained."""

import copy

import pytest
import torch
from timm.layers.norm_act import freeze_batch_norm_2d
from torch import nn

import sparsetune as st
from sparsetune.errors import ConfigError, DeltaError

LEARN = st.Learn(fraction=0.25)
CONFIG = st.FitConfig(epochs=1, batch_size=64, lr=0.05)


def plain(name="wrn28_4"):
    return st.create(name, num_classes=10, **({"depth": 10, "width": 1} if name == "wrn28_4" else {}))


def resized(net):
    net.set_input_size((96, 96))
    return net


def without_relu(net):
    net.bn1.act = net.block1[0].relu = nn.GELU()
    return net


def strided(net):
    net.conv1.stride = (2, 2)
    return net


def classified(net):
    net.reset_classifier(7)
    return net


BEFORE = {
    "set_input_size": lambda: resized(plain("test_vit")),
    "freeze_batch_norm_2d": lambda: freeze_batch_norm_2d(plain()),
    "activation": lambda: without_relu(plain()),
    "stride": lambda: strided(plain()),
    "classifier": lambda: classified(plain()),
}


@pytest.mark.parametrize("name", BEFORE)
def test_a_created_model_with_other_layers_is_refused_by_adapt_(name):
    net = BEFORE[name]()
    with pytest.raises(DeltaError, match=r"layers are not those of \w+, so no file .*Backbone\.from_module"):
        st.adapt_(net, LEARN)
    assert not hasattr(net, "_sparsetune_adapted")
    assert st.adapt_(net, LEARN, st.Backbone.from_module(net)) is net


def test_what_changes_no_output_is_no_other_layer(tmp_path):
    net = nn.SyncBatchNorm.convert_sync_batchnorm(plain())
    for module in net.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.momentum = 0.01
    st.save(st.adapt_(net, LEARN), tmp_path / "x")
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(st.load(tmp_path / "x")(x), net.eval()(x))


@pytest.mark.parametrize("change", [freeze_batch_norm_2d, without_relu])
def test_an_adapted_model_with_other_layers_is_refused_before_training(change, digits, tmp_path):
    net = change(st.adapt_(plain(), LEARN))
    for use in (lambda: st.fit(net, digits, CONFIG), lambda: st.save(net, tmp_path / "x")):
        with pytest.raises(ConfigError, match="do that before adapt_"):
            use()
    assert not list(tmp_path.iterdir())


def test_methods_that_change_layers_are_refused():
    net = st.adapt_(plain("test_vit"), LEARN)
    with pytest.raises(ConfigError, match=r"^set_input_size would change layers .*merge_"):
        copy.deepcopy(net).set_input_size((96, 96))
    st.merge_(net).set_input_size((96, 96))


def test_values_that_the_seed_does_not_give_are_refused_before_training(digits):
    net = plain()
    net.load_state_dict(st.create("wrn28_4", depth=10, width=1, num_classes=10, seed=3).state_dict())
    with pytest.raises(DeltaError, match="frozen values are not those of seed 0"):
        st.fit(st.adapt_(net, LEARN), digits, CONFIG)


WRAPS = {"compile": lambda net: torch.compile(net, backend="eager"), "parallel": nn.DataParallel}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("before", [True, False])
def test_a_wrapped_model_is_adapted_trained_and_saved_as_itself(wrap, before, digits, tmp_path):
    alone, net = st.adapt_(plain(), LEARN), plain()
    wrapped = st.adapt_(WRAPS[wrap](net), LEARN) if before else WRAPS[wrap](st.adapt_(net, LEARN))
    for model in (alone, wrapped):
        st.fit(model, digits, CONFIG)
    st.save(wrapped, tmp_path / "x")
    found = st.load(tmp_path / "x").state_dict()
    expected = alone.state_dict()
    assert list(found) == list(expected)
    assert all(torch.allclose(found[name], value, atol=1e-5) for name, value in expected.items())
    st.merge_(wrapped)
    assert list(net.state_dict()) == list(plain().state_dict())


def test_a_compiled_part_keeps_the_plain_names(tmp_path):
    net = plain()
    net.block1 = torch.compile(net.block1, backend="eager")
    st.save(st.adapt_(net, LEARN), tmp_path / "x")
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(st.load(tmp_path / "x")(x), net.eval()(x), atol=1e-6)
