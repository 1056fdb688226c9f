from __future__ import annotations

import pytest
import torch
from forge import stirred

import sparsetune as st
from sparsetune.delta.values import stack
from sparsetune.errors import ConfigError, DeltaError

FIRST = st.Learn(fraction=0.5, layers=["blocks.0"], norm=False, head=False)
SECOND = st.Learn(fraction=0.5, layers=["blocks.1"], norm=True, head=True)
X = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))


def saved(path, learn: st.Learn, seed: int, name: str = "test_vit", **kwargs):
    """A delta of a small transformer, which has no running statistics."""
    net = stirred(st.adapt_(st.create(name, num_classes=4), learn), seed)
    st.save(net, path, **kwargs)
    return path


def test_deltas_of_different_layers_act_together(tmp_path):
    first = saved(tmp_path / "first", FIRST, 1)
    second = saved(tmp_path / "second", SECOND, 2, classes=list("abcd"))
    stack([first, second], tmp_path / "both")
    expected = st.create("test_vit", num_classes=4)
    with torch.no_grad():
        for path in (first, second):
            one, plain = st.merge_(st.load(path)), st.create("test_vit", num_classes=4)
            for (name, value), old in zip(one.named_parameters(), plain.parameters(), strict=True):
                if not torch.equal(value, old):
                    expected.get_parameter(name).copy_(value)
    assert torch.equal(st.load(tmp_path / "both")(X), expected.eval()(X))
    header = st.inspect(tmp_path / "both")
    assert header.learn == st.Learn(fraction=0.5, layers=["blocks.0", "blocks.1"])
    assert header.classes == ("a", "b", "c", "d")
    assert header.training == {"stack": ["first", "second"]}
    st.verify(tmp_path / "both")


def test_deltas_with_a_value_in_common_are_refused(tmp_path):
    files = [saved(tmp_path / str(seed), SECOND, seed) for seed in (1, 2)]
    with pytest.raises(
        DeltaError, match=r"1 and .*2 both hold '.*', with other values, so they do not stack"
    ):
        stack(files, tmp_path / "both")
    whole = saved(tmp_path / "whole", st.Learn(fraction=0.5, norm=False, head=False), 3)
    with pytest.raises(DeltaError, match=r"both hold 'blocks\.1"):
        stack([whole, files[0]], tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_running_statistics_are_values_in_common(tmp_path):
    layers = st.Learn(fraction=0.5, layers=["layer1"], norm=False, head=False)
    other = st.Learn(fraction=0.5, layers=["layer2"], norm=False, head=False)
    files = [
        saved(tmp_path / str(seed), learn, seed, "test_resnet") for seed, learn in enumerate((layers, other))
    ]
    with pytest.raises(DeltaError, match=r"both hold '.*running_mean'"):
        stack(files, tmp_path / "both")


def test_only_deltas_of_one_kind_stack(tmp_path):
    first = saved(tmp_path / "first", FIRST, 1)
    wider = saved(tmp_path / "wider", st.Learn(fraction=0.75, layers=["blocks.1"], norm=False), 2)
    with pytest.raises(DeltaError, match=r"wider .*fraction 0.75.* does not stack on .*fraction 0.5"):
        stack([first, wider], tmp_path / "both")
    with pytest.raises(ConfigError, match="1 delta makes no stack"):
        stack([first], tmp_path / "both")
