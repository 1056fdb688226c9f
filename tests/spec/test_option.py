"""What a settings' class says of its fields, and what follows from it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from sparsetune.spec import FitConfig, Learn, options_of, words


def test_each_field_is_described():
    for settings in (Learn, FitConfig):
        for name, each in options_of(settings).items():
            assert each.name == name
            assert each.help or name in ("momentum", "depthwise_sums")
            assert each.default == getattr(settings, name)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (Learn(fraction=0.1), "--fraction 0.1"),
        (Learn(filters=0, norm=False, head=False), "--filters 0 --no-norm --no-head"),
        (Learn(rank=2, layers=["a", "b.*"]), "--rank 2 --layers a --layers b.*"),
        (Learn(fraction=1.0, dim="in", frozen="zero"), "--fraction 1.0 --dim in --frozen zero"),
        (FitConfig(), ""),
        (FitConfig(momentum=0.5), ""),
        (
            FitConfig(sched="multistep", decay_milestones=(2, 4)),
            "--sched multistep --decay-milestones 2 --decay-milestones 4",
        ),
        (FitConfig(batch_size=8, compile=True, amp="bf16"), "--batch-size 8 --amp bf16 --compile"),
    ],
)
def test_the_words_of_a_command(settings, said):
    assert words(settings) == said.split()


def test_words_leave_out_what_is_said():
    assert words(FitConfig(workers=3, seed=2), without=["workers"]) == ["--seed", "2"]


@given(some.integers() | some.floats() | some.booleans() | some.none() | some.text())
def test_a_number_is_wrong_exactly_outside_its_range(value):
    fraction, filters = options_of(Learn)["fraction"], options_of(Learn)["filters"]
    whole = isinstance(value, int) and not isinstance(value, bool)
    left_out = value is None  # the default of both
    assert (filters.wrong(value) is None) == (left_out or (whole and value >= 0))
    number = whole or isinstance(value, float)
    assert (fraction.wrong(value) is None) == (left_out or (number and 0 <= value <= 1))
