"""What cannot be followed is refused, and the sentence names the module."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparsetune.errors import ConfigError
from sparsetune.narrow.follow import follow


class Net(nn.Module):
    """A convolution, then whatever ``middle`` does, then a linear map of the pooled channels."""

    def __init__(self, middle, width=8):
        super().__init__()
        self.conv, self.middle, self.head = nn.Conv2d(3, 8, 3, padding=1), middle, nn.Linear(width, 2)

    def forward(self, x):
        return self.head(self.middle(self.conv(x)).mean((2, 3)))


class Does(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, x):
        return self.what(x)


def following(net, side=6):
    return follow(net.eval(), torch.randn(2, 3, side, side), {"conv.weight": 3, "conv.bias": 3})


def live(net, **kwargs):
    """Which channels of the linear map's input depend on the picture."""
    found = following(net, **kwargs)
    roots = {found.root(flow) for flow in found.live}
    return [found.root(flow) in roots for flow in found.reads[-1].flows]


FIRST = [True] * 3 + [False] * 5
ALL = [True] * 8


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (lambda x: x, FIRST),
        (F.relu, FIRST),
        (lambda x: F.relu_(x), FIRST),
        (lambda x: F.gelu(x).mul_(2).add_(x), FIRST),
        (lambda x: 2 * x - 1, FIRST),
        (lambda x: x + torch.ones(()), FIRST),
        (lambda x: x + x.mean((2, 3), keepdim=True), FIRST),
        (lambda x: F.max_pool2d(x, 2), FIRST),
        (lambda x: F.avg_pool2d(x, 2), FIRST),
        (lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), FIRST),
        (lambda x: F.avg_pool2d(x, 3, 1, 1), ALL),
        (lambda x: F.pad(x, (1, 1)), ALL),
        (lambda x: F.dropout(x, 0.5, True), ALL),
        (lambda x: F.dropout(x, 0.0, True), FIRST),
        (lambda x: F.dropout(x, 0.5, False), FIRST),
        (lambda x: x.reshape(*x.shape[:2], -1, 4), FIRST),
    ],
)
def test_which_channels_depend_on_the_picture(what, expected):
    assert live(Net(Does(what))) == expected


def test_concatenation_and_flattening():
    assert live(Net(Does(lambda x: torch.cat([x, x], 1)), 16)) == FIRST * 2
    flattened = Does(lambda x: x.flatten(1).view(2, -1))
    found = following(nn.Sequential(nn.Conv2d(3, 8, 1), flattened, nn.Linear(8 * 36, 2)))
    assert len(found.reads[-1].flows) == 8 * 36


def test_sums_of_live_and_constant_channels_are_live():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.other = nn.Conv2d(8, 8, 1)

        def forward(self, x):
            return x + self.other(x)

    assert live(Net(Two())) == ALL


def test_groups_stay_together():
    found = following(Net(nn.Conv2d(8, 8, 3, groups=2)))
    assert [len(link) for link in found.links] == [8, 8]


def test_constants_on_their_way():
    norm = nn.BatchNorm2d(8)
    nn.init.uniform_(norm.bias, -1, 1)
    nn.init.uniform_(norm.running_mean, -1, 1)
    net = Net(nn.Sequential(norm, nn.SiLU(inplace=True), Does(lambda x: 2 * x + 1)))
    found = following(net)
    values = dict(net.named_parameters()) | dict(net.named_buffers())
    zeros = torch.zeros(1, 8, 5, 5)
    wanted = net.middle(zeros)[:, :, 2, 2]
    assert torch.allclose(found.constants(values)[found.reads[-1].slot], wanted)


@pytest.mark.parametrize(
    ("middle", "words"),
    [
        (nn.LayerNorm([8, 6, 6]), r"middle \(LayerNorm\) applies 'layer_norm'"),
        (nn.GroupNorm(2, 8), r"middle \(GroupNorm\) applies 'group_norm'"),
        (nn.PixelShuffle(2), r"middle \(PixelShuffle\) applies 'pixel_shuffle'"),
        (nn.ChannelShuffle(2), r"middle \(ChannelShuffle\) applies '.*channel_shuffle'"),
        (nn.Softmax(1), r"middle \(Softmax\) applies 'softmax'"),
        (nn.PReLU(8), r"middle \(PReLU\) applies 'prelu'"),
        (nn.ConvTranspose2d(8, 8, 1), r"middle \(ConvTranspose2d\) applies 'conv_transpose2d'"),
        (nn.Sequential(Does(lambda x: x.permute(0, 2, 3, 1))), r"middle.0 \(Does\) applies 'permute'"),
        (Does(lambda x: x.mean(1, keepdim=True)), r"middle \(Does\) applies 'mean'"),
        (Does(lambda x: x.mean()), r"middle \(Does\) applies 'mean'"),
        (Does(lambda x: x[:, :4]), r"middle \(Does\) applies 'getitem'"),
        (Does(lambda x: torch.cat([x, x], 2)), r"middle \(Does\) applies 'cat'"),
        (Does(lambda x: torch.cat([x, torch.zeros(2, 8, 6, 6)], 1)), r"middle \(Does\) applies 'cat'"),
        (Does(lambda x: x + torch.ones(8, 1, 1)), r"middle \(Does\) applies 'add'"),
        (Does(lambda x: x * x.mean((0, 2, 3))), r"applies 'mean'"),
        (Does(lambda x: torch.einsum("nchw,nchw->nchw", x, x)), r"middle \(Does\) applies 'einsum'"),
        (Does(lambda x: x.split(4, 1)[0]), r"middle \(Does\) applies 'split'"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1)), r"middle \(.*\) computes its weights"),
    ],
)  # fmt: skip
def test_refuses_by_name(middle, words):
    with pytest.raises(ConfigError, match=words + ".*keep the network as it is, or write it whole"):
        following(Net(middle))


def test_refuses_a_layer_used_twice():
    conv = nn.Conv2d(8, 8, 1)
    with pytest.raises(ConfigError, match=r"middle.0 \(Conv2d\) is used twice"):
        following(Net(nn.Sequential(conv, conv)))


def test_refuses_a_batch_that_does_not_fit():
    with pytest.raises(ConfigError, match=r"this Sequential cannot take a batch of 2x3x6x6 \(.*\); pass one"):
        following(nn.Sequential(nn.Conv2d(4, 8, 1)))


def test_refuses_several_outputs():
    class Both(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(ConfigError, match="this Both gives a tuple that slim cannot follow"):
        following(Both())


def test_leaves_no_hook_behind():
    net = Net(nn.GroupNorm(2, 8))
    with pytest.raises(ConfigError):
        following(net)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
