from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

import sparsetune as st
from sparsetune.delta.saving import fill
from sparsetune.errors import ConfigError, Notice
from sparsetune.runs.run import run
from sparsetune.runs.settings import Run
from sparsetune.sliced.adapt import Taught, teach
from sparsetune.train.inputs import meet_classes

OLD, NEW = ("ant", "bee", "cat"), ("cat", "ant", "bee")
ROWS = [2, 0, 1]
LEARN = st.Learn(fraction=0.25)


class Net(nn.Module):
    """A classifier made of a convolution or a linear map, with or without a bias."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), head
        self.get_classifier = lambda: self.fc

    def forward(self, x):
        x = self.conv(x).mean((2, 3))
        return self.fc(x if isinstance(self.fc, nn.Linear) else x[:, :, None, None]).flatten(1)


@pytest.mark.parametrize("head", [nn.Linear(8, 3), nn.Linear(8, 3, bias=False), nn.Conv2d(8, 3, 1)])
def test_classes_in_another_order_take_their_rows_along(head):
    net = st.adapt_(Net(head), LEARN)
    teach(net, Taught(OLD))
    x = torch.randn(4, 3, 8, 8)
    before = net(x).detach()
    with pytest.warns(Notice, match="in another order; the rows of its classifier were put into the new one"):
        meet_classes(net, NEW)
    torch.testing.assert_close(net(x).detach(), before[:, ROWS], rtol=0, atol=0)


def test_other_classes_draw_the_classifier_anew_and_leave_the_rest():
    net = st.adapt_(Net(nn.Linear(8, 3)), LEARN)
    teach(net, Taught(OLD))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.warns(Notice, match=r"on the classes ant, bee, cat and not on dog, elk, fox; .* anew\."):
        meet_classes(net, ("dog", "elk", "fox"))
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"fc.weight", "fc.bias"}
    assert net.fc.weight.abs().max() <= 8**-0.5
    assert net.fc.weight.std() > 0.1
    assert not net.fc.bias.any()


def test_a_classifier_that_is_not_learned_cannot_follow():
    net = st.adapt_(Net(nn.Linear(8, 3)), st.Learn(fraction=0.25, head=False))
    teach(net, Taught(OLD))
    with pytest.raises(ConfigError, match="the same in another order, which a classifier that is not"):
        meet_classes(net, NEW)
    with pytest.warns(Notice, match="its classifier is not learned"):
        meet_classes(net, ("dog", "elk", "fox"))


@pytest.mark.parametrize("known", [None, OLD])
def test_the_same_or_unknown_classes_change_nothing(known):
    net = st.adapt_(Net(nn.Linear(8, 3)), LEARN)
    teach(net, Taught(known))
    before = net.fc.weight.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        meet_classes(net, OLD)
    assert torch.equal(net.fc.weight, before)


@pytest.fixture(scope="module")
def parted() -> tuple[st.Data, st.Data, st.Data]:
    """Three digits; the same with their classes in another order; and two others."""
    data = st.open_data("digits", train_limit=200, test_limit=100)
    old = {"ant": ["1"], "bee": ["2"], "cat": ["3"]}
    new = {name: old[name] for name in NEW}
    return data.regroup("a", old), data.regroup("a", new), data.regroup("a", {"dog": ["4"], "elk": ["5"]})


def test_a_trained_model_knows_reordered_classes_at_once(parted, tmp_path):
    old, new, others = parted
    still = st.FitConfig(epochs=1, batch_size=64, lr=0.0)
    net = st.adapt_(st.create("wrn28_4", depth=10, width=1, num_classes=3), LEARN)
    trained = st.fit(net, old, st.FitConfig(epochs=6, batch_size=16))[-1].test_top1
    assert trained > 0.9
    st.save(net, tmp_path / "a.safetensors")
    assert st.inspect(tmp_path / "a.safetensors").classes == OLD
    with pytest.warns(Notice, match="in another order"):
        assert st.fit(st.load(tmp_path / "a.safetensors"), new, still)[-1].test_top1 > 0.9
    filled = st.adapt_(st.create("wrn28_4", depth=10, width=1, num_classes=3), LEARN)
    fill(filled, tmp_path / "a.safetensors")
    with pytest.warns(Notice, match="in another order"):
        assert st.fit(filled, new, still)[-1].test_top1 > 0.9
    st.save(filled, tmp_path / "b.safetensors")
    assert st.inspect(tmp_path / "b.safetensors").classes == NEW
    fewer = st.adapt_(st.create("wrn28_4", depth=10, width=1, num_classes=2), LEARN)
    head = fewer.fc.weight.clone()
    with pytest.warns(Notice, match="a.safetensors knows 3 classes, so the classifier for 2 was drawn anew"):
        fill(fewer, tmp_path / "a.safetensors")
    assert torch.equal(fewer.fc.weight, head)
    assert torch.equal(fewer.conv1.weight, net.conv1.weight)
    st.fit(fewer, others, still)


def test_a_run_that_starts_from_a_delta_says_so(tmp_path, digits):
    settings = Run(
        model="test_resnet",
        learn=LEARN,
        config=st.FitConfig(epochs=1, batch_size=32, lr=0.05),
        train_limit=50,
        test_limit=20,
    )
    run(settings, tmp_path / "a")
    delta = tmp_path / "a/delta.safetensors"
    net = st.load(delta)
    renamed = tmp_path / "renamed.safetensors"
    st.save(net, renamed, classes=[f"class {name}" for name in digits.classes])
    still = replace(settings, config=replace(settings.config, lr=0.0), init_from=str(renamed))
    with pytest.warns(Notice, match="was trained on the classes class 0, class 1, class 2 and 7 more"):
        run(still, tmp_path / "b")
    header = st.inspect(tmp_path / "b/delta.safetensors")
    assert header.classes == digits.classes
    assert not torch.equal(st.load(tmp_path / "b/delta.safetensors").fc.weight, net.fc.weight)
