"""What a module of a model is."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from timm import layers as timm_layers
from torch import nn

from sparsetune.parts.layers import head_names, is_norm, is_sliceable, sites


class Norm(nn.Module):
    """A user's own normalisation layer."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))


class NormedLinear(nn.Linear):
    """A linear map that normalises its weight: no normalisation layer."""


NORMS = [
    nn.BatchNorm1d(4),
    nn.BatchNorm2d(4),
    nn.SyncBatchNorm(4),
    nn.InstanceNorm2d(4, affine=True),
    nn.GroupNorm(2, 4),
    nn.LayerNorm(4),
    nn.LayerNorm([4, 4]),
    nn.RMSNorm(4),
    timm_layers.BatchNormAct2d(4),
    timm_layers.LayerNorm2d(4),
    timm_layers.RmsNorm(4),
    timm_layers.SimpleNorm(4),
    timm_layers.EvoNorm2dS0(8),
    timm_layers.FilterResponseNormTlu2d(4),
    Norm(),
]
OTHERS = [
    NormedLinear(4, 4),
    nn.Sequential(nn.BatchNorm2d(4)),
    nn.PReLU(4),
    timm_layers.LayerScale(4),
    timm_layers.ConvNormAct(4, 4),
]


@pytest.mark.parametrize("module", NORMS, ids=lambda m: type(m).__name__)
def test_is_a_normalisation_layer(module):
    assert is_norm(module)
    assert not is_sliceable(module)


@pytest.mark.parametrize("module", OTHERS, ids=lambda m: type(m).__name__)
def test_is_no_normalisation_layer(module):
    assert not is_norm(module)


@pytest.mark.parametrize(
    ("module", "sliceable"),
    [
        (nn.Conv1d(2, 2, 1), True),
        (nn.Conv2d(2, 2, 1), True),
        (nn.Conv3d(2, 2, 1), True),
        (nn.Linear(2, 2), True),
        (timm_layers.Conv2dSame(2, 2, 1), True),
        (timm_layers.StdConv2d(2, 2, 1), True),
        (nn.ConvTranspose2d(2, 2, 1), True),
        (nn.Bilinear(2, 2, 2), False),
        (nn.Embedding(2, 2), False),
        (nn.MultiheadAttention(2, 1), True),
    ],
    ids=lambda v: type(v).__name__,
)
def test_layers_with_filters_can_be_sliced(module, sliceable):
    assert is_sliceable(module) is sliceable


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("resnet18", ("fc",)),
        ("mobilenetv3_small_050", ("classifier",)),
        ("deit_tiny_distilled_patch16_224", ("head", "head_dist")),
        ("wrn28_4", ("fc",)),
        ("torchvision/vgg11", ("classifier.6",)),
        ("torchvision/resnet18", ("fc",)),
        ("torchvision/vit_b_16", ("heads.head",)),
        ("torchvision/squeezenet1_1", ()),
    ],
)
def test_the_head_is_the_classifier(name, heads):
    library, _, plain = name.rpartition("/")
    build = torchvision.models.get_model if library else timm.create_model
    with torch.device("meta"):
        assert head_names(build(plain)) == heads


def test_a_shared_parameter_is_one_site_with_all_its_homes():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3, bias=False))
    net[1].weight = net[2].weight = net[0].weight
    found = list(sites(net))
    assert [site.name for site in found] == ["0.weight", "0.bias", "1.bias"]
    assert found[0].homes == (("0", "weight"), ("1", "weight"), ("2", "weight"))
    assert found[0].module is net[0]
    assert found[2].module_name == "1"
