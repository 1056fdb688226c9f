"""``plan``: the paper's rules and counts."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from torch import nn

import sparsetune.backbone.models  # noqa: F401
from sparsetune.errors import ConfigError, UnknownNameError
from sparsetune.parts.planning import plan
from sparsetune.spec.learn import DIMS, Learn

WHOLE = {"fraction": 1.0, "head": False}
BN = {"filters": 0, "head": False}
FC = {"filters": 0}
DENSENET, WRN4, WRN10 = "densenet100_12", "wrn28_4", "wrn28_10"


def shapes(name: str, **kwargs) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


@pytest.mark.parametrize(
    ("name", "classes", "learn", "members", "learned"),
    [
        (DENSENET, 10, {"fraction": 1.0}, 1, 769_162),
        (DENSENET, 100, {"fraction": 1.0}, 1, 800_032),
        (DENSENET, 10, BN, 1, 23_988),
        (DENSENET, 10, {"layers": ["conv1"], **WHOLE}, 1, 24_636),
        (DENSENET, 10, {"layers": ["block1"], **WHOLE}, 1, 194_484),
        (DENSENET, 10, {"layers": ["block2"], **WHOLE}, 1, 258_996),
        (DENSENET, 10, {"layers": ["block3"], **WHOLE}, 1, 291_252),
        (DENSENET, 10, FC, 1, 27_418),
        (DENSENET, 100, FC, 1, 58_288),
        (WRN4, 10, {"fraction": 1.0}, 1, 5_849_050),
        (WRN4, 100, {"fraction": 1.0}, 1, 5_872_180),
        (WRN4, 10, BN, 1, 7_200),
        (WRN4, 10, {"layers": ["conv1"], **WHOLE}, 1, 7_632),
        (WRN4, 10, {"layers": ["block1"], **WHOLE}, 1, 275_488),
        (WRN4, 10, {"layers": ["block2"], **WHOLE}, 1, 1_121_312),
        (WRN4, 10, {"layers": ["block3"], **WHOLE}, 1, 4_463_648),
        (WRN4, 10, FC, 1, 9_770),
        (WRN4, 100, FC, 1, 32_900),
        (WRN10, 10, BN, 1, 17_952),
        (WRN10, 10, {"fraction": 0.1}, 1, 3_669_829),
        (WRN10, 10, {"fraction": 0.4}, 1, 14_606_284),
        (DENSENET, 10, {"fraction": 0.1}, 1, 90_196),
        (DENSENET, 10, {"fraction": 0.4}, 1, 305_701),
        (DENSENET, 10, FC, 5, 137_090),
        (DENSENET, 10, {"fraction": 0.1}, 5, 450_980),
        (DENSENET, 10, {"fraction": 0.4}, 5, 1_528_505),
        (DENSENET, 10, {"fraction": 0.7}, 5, 2_664_470),
        (DENSENET, 10, {"fraction": 1.0}, 5, 3_845_810),
    ],
)
def test_learned_parameters_are_the_papers(name, classes, learn, members, learned):
    made = plan(shapes(name, num_classes=classes), Learn(**learn))
    assert made.learned_parameters * members == learned


def small(linear: bool = False) -> nn.Module:
    """A convolution ``(8, 4, 5, 3)`` with bias, a norm, a grouped convolution, a head; maybe a linear map."""
    net = nn.Sequential()
    net.stem = nn.Sequential(nn.Conv2d(4, 8, (5, 3)), nn.BatchNorm2d(8))
    net.body = nn.Sequential(nn.Conv2d(8, 6, 1, groups=2, bias=False))
    if linear:
        net.mix = nn.Linear(6, 7)
    net.fc = nn.Linear(7 if linear else 6, 2)
    return net


@pytest.mark.parametrize(
    ("learn", "expected"),
    [
        # stem (8, 4, 5, 3) and its bias, body (6, 4, 1, 1), mix (7, 6) and its bias
        ({"fraction": 0.5}, [(0, 4), (0, 4), (0, 3), (0, 3), (0, 3)]),
        ({"fraction": 0.1}, [(0, 0), (0, 0), (0, 0), (0, 0), (0, 0)]),
        ({"filters": 7}, [(0, 7), (0, 7), (0, 6), (0, 7), (0, 7)]),
        ({"filters": 0}, [(0, 0), (0, 0), (0, 0), (0, 0), (0, 0)]),
        ({"fraction": 0.1, "dim": "in"}, [(1, 1), (0, 8), (1, 1), (1, 1), (0, 7)]),
        ({"filters": 2, "dim": "in"}, [(1, 2), (0, 8), (1, 2), (1, 2), (0, 7)]),
        ({"fraction": 0.5, "dim": "height"}, [(2, 2), (0, 8), (0, 6), (0, 7), (0, 7)]),
        ({"fraction": 0.9, "dim": "width"}, [(3, 2), (0, 8), (0, 6), (0, 7), (0, 7)]),
        ({"filters": 0, "dim": "width"}, [(0, 0), (0, 0), (0, 0), (0, 0), (0, 0)]),
        ({"fraction": 1.0}, [(0, 8), (0, 8), (0, 6), (0, 7), (0, 7)]),
    ],
)
def test_slices_and_their_biases(learn, expected):
    made = plan(small(linear=True), Learn(**learn))
    assert [(part.dim, part.k) for part in made if part.layer] == expected


@pytest.mark.parametrize(("kind", "k"), [(nn.Conv1d, (2, 1)), (nn.Conv3d, (4, 1))])
def test_width_is_the_last_dimension_of_any_kernel(kind, k):
    net = nn.Sequential(kind(2, 3, 3))
    assert [(part.dim, part.k) for part in plan(net, Learn(filters=1, dim="width"))] == [k, (0, 3)]


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_norm_and_head_are_learned_whole_or_not_at_all(norm, head, fraction):
    whole = {
        part.name: part.whole
        for part in plan(small(), Learn(fraction=fraction, norm=norm, head=head))
        if not part.layer
    }
    assert whole == {"stem.1.weight": norm, "stem.1.bias": norm, "fc.weight": head, "fc.bias": head}


class Scaled(nn.Module):
    """A layer with a parameter that is neither a layer's, a norm's, nor the head's."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1)
        self.scale = nn.Parameter(torch.ones(()))
        self.fc = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("learn", "learned"),
    [
        ({"fraction": 0.5}, False),
        ({"filters": 2}, False),
        ({"layers": ["conv"], "fraction": 1.0}, False),
        ({"fraction": 1.0}, True),
    ],
)
def test_other_parameters_are_learned_only_with_everything(learn, learned):
    part = next(part for part in plan(Scaled(), Learn(**learn)) if part.name == "scale")
    assert (part.whole, part.learned_numel) == (learned, int(learned))


def test_everything_is_everything():
    net = shapes("vit_tiny_patch16_224")
    made = plan(net, Learn(fraction=1.0))
    assert all(part.whole for part in made)
    assert made.learned_parameters == made.total_parameters == sum(p.numel() for p in net.parameters())
    assert made.frozen_parameters == 0


@pytest.mark.parametrize(
    ("patterns", "layers"),
    [
        (["block3"], {"block3"}),
        (["block3.0"], {"block3.0"}),
        (["block*"], {"block1", "block2", "block3"}),
        (["block?.0.conv1"], {"block1.0.conv1", "block2.0.conv1", "block3.0.conv1"}),
        (["conv1", "block[23]"], {"conv1", "block2", "block3"}),
        (["*.shortcut"], {"block1.0.shortcut", "block2.0.shortcut", "block3.0.shortcut"}),
        ([], set()),
    ],
)
def test_a_pattern_covers_all_under_the_modules_that_it_matches(patterns, layers):
    made = plan(shapes("wrn28_4", depth=10), Learn(layers=patterns, fraction=0.5, norm=False, head=False))
    for part in made:
        under = any(part.name.startswith(layer + ".") for layer in layers)
        assert (part.k > 0) == (under and part.layer), part.name


def test_a_pattern_without_a_match_names_what_is_near():
    with pytest.raises(
        UnknownNameError, match=r"^layers pattern 'blok3' is unknown; did you mean block3.*convolution"
    ):
        plan(shapes("wrn28_4"), Learn(layers=["block1", "blok3"], fraction=0.5))


@pytest.mark.parametrize("pattern", ["bn1", "block3.0.bn1"])
def test_a_pattern_that_covers_no_layer_is_unknown(pattern):
    with pytest.raises(UnknownNameError, match=f"^layers pattern '{pattern}' is unknown"):
        plan(shapes("wrn28_4"), Learn(layers=[pattern], fraction=0.5))


def test_a_pattern_for_the_classifier_alone_points_to_head():
    with pytest.raises(ConfigError, match=r"^layers pattern 'fc' covers only the classifier; use head=True"):
        plan(shapes("wrn28_4"), Learn(layers=["fc"], fraction=0.5))


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("fraction", [0, 0.1, 0.5, 1.0])
def test_sums_are_those_of_the_parts(dim, fraction):
    net = small(linear=True).half()
    made = plan(net, Learn(fraction=fraction, dim=dim))
    assert made.learned_parameters == sum(
        torch.empty(part.learned_shape).numel() if part.k else 0 for part in made
    )
    assert made.total_parameters == sum(p.numel() for p in net.parameters())
    statistics = 2 * 8 * 2 + 8  # mean and variance of 8 channels in 2 bytes each, one int64 counter
    assert made.delta_bytes == 2 * made.learned_parameters + statistics
    assert [buffer.name for buffer in made.buffers] == [name for name, _ in net.named_buffers()]


def test_json_and_table_say_the_counts():
    made = plan(small(), Learn(fraction=0.5))
    value = json.loads(json.dumps(made.to_json()))
    assert value["learned_parameters"] == made.learned_parameters == 4 * 60 + 4 + 16 + 3 * 4 + 14
    assert value["total_parameters"] == 8 * 60 + 8 + 16 + 24 + 14
    assert value["layers"][0] == {
        "name": "stem.0.weight",
        "shape": [8, 4, 5, 3],
        "dim": 0,
        "learned": 4,
        "of": 8,
        "rank": 0,
        "dimensions": 0,
        "learned_parameters": 240,
    }
    table = str(made).splitlines()
    assert len(table) == 1 + len(made.parts) + 1
    assert table[1].split() == ["stem.0.weight", "8x4x5x3", "4/8", "240"]
    assert table[-1].startswith("286 of 542 values learned (52.8%); delta about ")
    assert value["notes"] == list(made.notes) == []


def test_a_plan_changes_nothing():
    net = small()
    before = {name: (id(value), value._version) for name, value in net.state_dict(keep_vars=True).items()}
    plan(net, Learn(fraction=0.5, frozen="zero"))
    after = {name: (id(value), value._version) for name, value in net.state_dict(keep_vars=True).items()}
    assert after == before
