"""``Learn``: what can be asked for, and how many indices of a dimension that is."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsetune.errors import ConfigError
from sparsetune.spec.learn import DIMS, FROZEN, Learn


@pytest.mark.parametrize(
    ("fraction", "whole", "k"),
    [
        (0.29, 100, 29),
        (0.07, 16, 1),
        (0.0624, 16, 0),
        (0.0625, 16, 1),
        (0.1, 16, 1),
        (0.1, 640, 64),
        (0.7, 10, 7),
        (1e-05, 100_000, 1),
        (0, 16, 0),
        (1, 16, 16),
        (1.0, 7, 7),
    ],
)
def test_a_fraction_of_the_filters_is_rounded_down(fraction, whole, k):
    assert Learn(fraction=fraction).size(whole) == k


@given(st.integers(0, 10**4), st.integers(1, 4096))
def test_a_fraction_is_the_decimal_that_was_written(ten_thousandths, whole):
    written = Decimal(ten_thousandths).scaleb(-4)
    assert Learn(fraction=float(written)).size(whole) == int(written * whole)


@given(st.integers(0, 100), st.integers(1, 64), st.sampled_from(DIMS))
def test_a_number_of_filters_is_at_most_all(filters, whole, dim):
    assert Learn(filters=filters, dim=dim).size(whole) == min(filters, whole)


@pytest.mark.parametrize("dim", ["in", "height", "width"])
def test_slices_inside_a_filter_hold_at_least_one_index(dim):
    assert Learn(fraction=0.1, dim=dim).size(3) == 1
    assert Learn(fraction=0.9, dim=dim).size(3) == 2
    assert Learn(fraction=0, dim=dim).size(3) == 0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {},
            "nothing says how much to learn; give fraction (0.1 is 10 % of each layer), filters, rank or "
            "dimensions.",
        ),
        (
            {"fraction": 0.1, "filters": 2},
            "fraction 0.1 and filters 2 each say how much to learn; keep one.",
        ),
        ({"fraction": 1.5}, "fraction 1.5 is not between 0 and 1; 0.1 learns 10 % of each layer."),
        ({"fraction": -0.1}, "fraction -0.1 is not between 0 and 1; 0.1 learns 10 % of each layer."),
        ({"fraction": float("nan")}, "fraction nan is not between 0 and 1; 0.1 learns 10 % of each layer."),
        ({"fraction": True}, "fraction True is not between 0 and 1; 0.1 learns 10 % of each layer."),
        ({"fraction": "0.1"}, "fraction 0.1 is not between 0 and 1; 0.1 learns 10 % of each layer."),
        ({"filters": -1}, "filters -1 is not a whole number of 0 or more."),
        ({"filters": 1.0}, "filters 1.0 is not a whole number of 0 or more."),
        ({"rank": 4, "filters": 2}, "filters 2 and rank 4 each say how much to learn; keep one."),
        ({"rank": 0}, "rank 0 is not a whole number of 1 or more; filters=0 learns no layer."),
        ({"rank": 1.0}, "rank 1.0 is not a whole number of 1 or more; filters=0 learns no layer."),
        ({"rank": 4, "dim": "in"}, "dim 'in' is of slices, and a rank has none; leave dim out."),
        (
            {"rank": 4, "frozen": "zero"},
            "frozen 'zero' leaves nothing that a rank could add to; use fraction or filters.",
        ),
        ({"filters": 1, "dim": "depth"}, "dim 'depth' is not one of out, in, height, width."),
        ({"filters": 1, "frozen": "one"}, "frozen 'one' is not one of random, zero, pretrained."),
        (
            {"filters": 1, "layers": "block3"},
            "layers 'block3' is not a list of module-name patterns such as ['block3'].",
        ),
        (
            {"filters": 1, "layers": [""]},
            "layers ('',) is not a list of module-name patterns such as ['block3'].",
        ),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_with_its_remedy(settings, sentence):
    with pytest.raises(ConfigError) as caught:
        Learn(**settings)
    assert str(caught.value) == sentence


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        Learn(fraction=2, filters=-1, dim="depth", frozen="one", layers="a")
    told = str(caught.value).splitlines()
    assert [line.split()[0] for line in told] == [
        "fraction",
        "fraction",
        "filters",
        "dim",
        "frozen",
        "layers",
    ]


@pytest.mark.parametrize(
    ("learn", "everything"),
    [
        (Learn(fraction=1), True),
        (Learn(fraction=1.0, norm=False), True),
        (Learn(fraction=0.999), False),
        (Learn(fraction=1.0, layers=["a"]), False),
        (Learn(filters=10**9), False),
    ],
)
def test_everything_is_a_fraction_of_one_of_all_layers(learn, everything):
    assert learn.everything is everything


SPECS = st.builds(
    Learn,
    fraction=st.floats(0, 1),
    dim=st.sampled_from(DIMS),
    layers=st.none() | st.lists(st.text(min_size=1, max_size=4), max_size=3),
    norm=st.booleans(),
    head=st.booleans(),
    frozen=st.none() | st.sampled_from(FROZEN),
)


@given(SPECS | st.builds(Learn, rank=st.integers(1, 99), norm=st.booleans()))
def test_json_keeps_every_setting(learn):
    again = Learn.from_json(json.loads(json.dumps(learn.to_json())))
    assert again == learn
    assert hash(again) == hash(learn)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "x",
        {"share": 0.1},
        {"fraction": 0.1, "norm": 1},
        {"fraction": 0.1, "head": "no"},
        {},
        {"rank": "4"},
    ],
)
def test_json_that_is_no_spec_is_refused(value):
    with pytest.raises(ConfigError):
        Learn.from_json(value)
