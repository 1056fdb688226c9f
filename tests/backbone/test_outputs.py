from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.googlenet import GoogLeNetOutputs
from torchvision.models.inception import InceptionOutputs

import sparsetune as st
from sparsetune.backbone.outputs import check_classifier, logits_of, loss_of
from sparsetune.data.preprocessing import Augment
from sparsetune.errors import ConfigError
from sparsetune.train.metrics import predict_logits

MAIN, ONE, TWO = (torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
Y = torch.tensor([0, 2, 1, 2])


def entropy(logits: torch.Tensor) -> torch.Tensor:
    return (logits.exp().sum(1).log() - logits[torch.arange(4), Y]).mean()


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (MAIN, entropy(MAIN)),
        (SimpleNamespace(logits=MAIN, hidden_states=None), entropy(MAIN)),
        (InceptionOutputs(MAIN, ONE), entropy(MAIN) + 0.4 * entropy(ONE)),
        (InceptionOutputs(MAIN, None), entropy(MAIN)),
        (GoogLeNetOutputs(MAIN, TWO, ONE), entropy(MAIN) + 0.3 * entropy(ONE) + 0.3 * entropy(TWO)),
        ((MAIN, ONE), entropy(MAIN) + 0.4 * entropy(ONE)),
    ],
)
def test_the_loss_counts_the_main_logits_whole_and_auxiliary_ones_as_their_papers_do(output, expected):
    assert torch.equal(logits_of(output), MAIN)
    torch.testing.assert_close(loss_of(output, Y), expected)


@pytest.mark.parametrize("weights", [None, torch.tensor([2.0, 0.5, 1.0])])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_of_a_mixed_picture_is_the_mixture_of_its_losses(weights, smoothing):
    other, share = Y.roll(1), 0.3
    mixed = share * F.one_hot(Y, 3).float() + (1 - share) * F.one_hot(other, 3).float()
    for output in (MAIN, (MAIN, ONE)):
        one, two = (loss_of(output, labels, smoothing, weights) for labels in (Y, other))
        torch.testing.assert_close(
            loss_of(output, mixed, smoothing, weights), share * one + (1 - share) * two
        )
    pure = loss_of(MAIN, F.one_hot(Y, 3).float(), smoothing, weights)
    torch.testing.assert_close(pure, loss_of(MAIN, Y, smoothing, weights))


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ([{"boxes": ONE, "scores": TWO}], "a list of a dict of boxes, scores"),
        (OrderedDict(out=torch.zeros(4, 3, 8, 8)), "a OrderedDict of out"),
        (torch.zeros(4, 3, 8, 8), r"a tensor of shape \(4, 3, 8, 8\)"),
        (
            [torch.zeros(4, 8, 2, 2), torch.zeros(4, 8, 1, 1)],
            r"a list of a tensor of shape \(4, 8, 2, 2\) ",
        ),
        (
            (MAIN, torch.zeros(4, 64)),
            r"a tuple of a tensor of shape .* and a tensor of shape \(4, 64\)",
        ),
        (None, "a NoneType where"),
        ([], "a list of nothing"),
    ],
)
def test_what_holds_no_logits_is_described_and_says_what_to_pass(output, words):
    with pytest.raises(ConfigError, match=f"^the model gives {words}.*; pass a classifier, or a module"):
        logits_of(output)


class Net(nn.Module):
    """A convolution and a linear map, whose output is wrapped as given."""

    def __init__(self, wrap, classes: int = 10) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, classes)
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.fc(self.norm(self.conv(x)).mean((2, 3))))


SHORT = st.FitConfig(epochs=1, batch_size=50, lr=0.01)


@pytest.mark.parametrize("frozen", [False, True])
def test_fit_refuses_before_anything_changed(digits, frozen):
    for wrap, classes, words in [
        (lambda x: {"features": x}, 10, "gives a dict of features where a classifier gives"),
        (lambda x: [x[:, :, None, None]], 10, "gives a list of a tensor of shape"),
        (lambda x: x, 7, "the model has 7 outputs but digits has 10 classes; create it with num_classes=10"),
    ]:
        net = st.adapt_(Net(wrap, classes).train(), st.Learn(fraction=0.5))
        net.norm.train(not frozen)
        before = {name: value.clone() for name, value in net.state_dict().items()}
        seen = []
        with pytest.raises(ConfigError, match=words):
            st.fit(net, digits, SHORT, watch=seen.append)
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        assert not seen


def test_the_check_leaves_each_mode_as_it_was():
    net = Net(lambda x: x)
    net.norm.eval()
    check_classifier(net, (3, 8, 8), 10, "digits")
    assert (net.training, net.conv.training, net.norm.training) == (True, True, False)


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        (
            "torchvision/resnet18",
            {"num_classes": 7},
            "the model has 7 outputs but digits has 10 classes",
        ),
        ("test_resnet", {"num_classes": 0}, "has 0 classes but digits has 10; create it with num_classes=10"),
        ("test_resnet", {"features_only": True}, "gives a list of a tensor of shape"),
        ("torchvision/lraspp_mobilenet_v3_large", {"num_classes": 10}, "gives a OrderedDict of out where"),
    ],
)
def test_models_that_do_not_classify_the_data_are_refused(digits, name, kwargs, words):
    net = st.adapt_(st.create(name, **kwargs), st.Learn(fraction=0.1))
    small = st.open_data("digits", train_limit=50, test_limit=20, size=64)
    with pytest.raises(ConfigError, match=words):
        st.fit(net, small, SHORT)


def test_googlenet_trains_its_auxiliary_heads_and_predicts_by_the_main_one():
    data = st.open_data("digits", train_limit=10, test_limit=10, size=32)
    net = st.adapt_(st.create("torchvision/googlenet", num_classes=10), st.Learn(filters=0))
    before = [net.aux1.fc2.weight.clone(), net.aux2.fc2.weight.clone()]
    history = st.fit(net, data, st.FitConfig(epochs=1, batch_size=20, lr=0.01))
    assert history[0].train_loss > 1.3 * math.log(10)  # the main loss alone is near log 10 at first
    assert not any(map(torch.equal, before, [net.aux1.fc2.weight, net.aux2.fc2.weight]))
    x = torch.randn(2, 3, 32, 32)
    logits, _ = predict_logits(net, [(x, torch.zeros(2))])
    with torch.no_grad():
        assert torch.equal(logits, net.eval()(x))


def test_a_step_descends_the_gradient_of_the_whole_loss(digits):
    """One step of plain SGD moves the classifier by the gradient that plain autograd gives."""
    net = Net(lambda logits: SimpleNamespace(logits=logits))
    net.load_state_dict({name: value * 0.5 for name, value in net.state_dict().items()}, strict=True)
    st.adapt_(net, st.Learn(filters=0, norm=False))
    data = st.open_data("digits", train_limit=50, test_limit=10)
    x = torch.stack([data.preprocessing.apply(data.train[i][0]) for i in range(50)])
    y = torch.tensor([data.train[i][1] for i in range(50)])
    plain = replace(data, augment=Augment())
    start = net.fc.weight.detach().clone()
    loss = F.cross_entropy(net.train()(x).logits, y)
    (wanted,) = torch.autograd.grad(loss, net.fc.weight)
    config = st.FitConfig(epochs=1, batch_size=50, lr=0.1, opt="momentum", momentum=0.0, weight_decay=0.0)
    st.fit(net, plain, replace(config, sched="none"))
    torch.testing.assert_close(net.fc.weight.detach(), start - 0.1 * wanted)
