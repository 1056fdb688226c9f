"""``arithmetic_share``: multiplications counted by hand."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from sparsetune.parts.planning import arithmetic_share, plan
from sparsetune.spec.learn import Learn

SIZE = 8
STEM = 4 * SIZE**2 * 3 * 9  # outputs times the 3x3 window over 3 channels
BODY = 8 * SIZE**2 * 4 // 2  # 1x1 over 4 channels in 2 groups
FC = 8 * 10


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.body = nn.Conv2d(4, 8, 1, groups=2)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(self.body(self.drop(self.bn(self.stem(x)))).mean((2, 3)))


FULL = 2 * STEM + 3 * BODY + 3 * FC  # nobody wants the gradient of the picture


@pytest.mark.parametrize(
    ("learn", "ours"),
    [
        (Learn(fraction=1.0), FULL),
        (Learn(fraction=0.5), 1.5 * STEM + 2.5 * BODY + 3 * FC),
        (Learn(fraction=0.5, dim="in"), (1 + 1 / 3) * STEM + 2.5 * BODY + 3 * FC),
        # A and B take 2 values for each first index and 2 for each other; twice, as each meets the other.
        (Learn(rank=1), (1 + 2 * (4 + 27) / (4 * 27)) * STEM + 3 * BODY + 3 * FC),
        (Learn(filters=0, head=False), STEM + 2 * BODY + 2 * FC),
        (Learn(filters=0), STEM + 2 * BODY + 3 * FC),
        (Learn(filters=0, norm=False), STEM + BODY + 2 * FC),
        (Learn(layers=["body"], fraction=1.0, norm=False, head=False), STEM + 2 * BODY + 2 * FC),
        (Learn(layers=["body"], filters=2, norm=False), STEM + 1.25 * BODY + 3 * FC),
    ],
    ids=str,
)
def test_share_of_a_small_net(learn, ours):
    net = Net()
    assert arithmetic_share(net, plan(net, learn), SIZE) == pytest.approx(ours / FULL, rel=1e-12)


class Tied(nn.Module):
    """A norm first, and two layers with one weight."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.a, self.b, self.fc = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.fc(self.b(self.a(self.norm(x))))


class Decoder(nn.Module):
    """A convolution, a transposed one, and attention over what they give."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 2, stride=2)
        self.up = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2)
        self.mix = nn.MultiheadAttention(6, 2, batch_first=True)
        self.fc = nn.Linear(6, 2)

    def forward(self, x):
        x = self.up(self.stem(x)).flatten(2).transpose(1, 2)
        return self.fc(self.mix(x, x, x)[0])


def test_share_of_transposed_convolutions_and_attention():
    pixels = SIZE**2
    stem, up = (
        pixels // 4 * 4 * 3 * 4,
        pixels // 4 * 4 * 3 * 4,
    )  # each input pixel meets 3 filters' 2x2 window
    mix, out, fc = pixels * 6 * 18, pixels * 6 * 6, pixels * 6 * 2
    full = 2 * stem + 3 * (up + mix + out + fc)
    learned = 0.5 * stem + 1 / 3 * up + 0.5 * (mix + out) + fc  # 1 filter of 3 in each group
    net = Decoder()
    expected = (stem + 2 * (up + mix + out + fc) + learned) / full
    assert arithmetic_share(net, plan(net, Learn(fraction=0.5)), SIZE) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("build", [Net, Tied], ids=lambda b: b.__name__)
def test_learning_everything_costs_a_full_step(build):
    net = build()
    assert arithmetic_share(net, plan(net, Learn(fraction=1.0)), 4) == 1.0


def test_a_model_that_takes_no_pictures_has_no_share():
    class Pair(nn.Linear):
        def forward(self, left, right):
            return super().forward(left) + super().forward(right)

    net = Pair(3, 3)
    assert arithmetic_share(net, plan(net, Learn(fraction=0.5))) is None


def test_a_timm_model_says_its_own_picture_size():
    net = timm.create_model("resnet18")
    made = plan(net, Learn(fraction=0.1))
    share = arithmetic_share(net, made)
    assert share == arithmetic_share(net, made, 224)
    assert 2 / 3 < share < 2.15 / 3
    assert share != arithmetic_share(net, made, 96)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training):
    net = Net().train(training)
    before = {name: (id(value), value.clone()) for name, value in net.state_dict(keep_vars=True).items()}
    random = torch.get_rng_state()
    arithmetic_share(net, plan(net, Learn(fraction=0.5)), SIZE)
    arithmetic_share(net, plan(net, Learn(fraction=0.5)), 0)
    after = net.state_dict(keep_vars=True)
    assert all(
        id(after[name]) == identity and torch.equal(after[name], value)
        for name, (identity, value) in before.items()
    )
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training == training and not module._forward_hooks for module in net.modules())
