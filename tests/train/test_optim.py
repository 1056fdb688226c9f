from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as some
from torch import nn

import sparsetune as st
from sparsetune.errors import ConfigError
from sparsetune.train.optim import YellowFin, single_step


@pytest.mark.parametrize(
    ("high", "rate", "momentum"),
    [
        (1.0, 1 / 4, 1 / 4),  # D² hmin² / 2C = 1/4 = (1 - x)³ / x at x = 1/2
        (9.0, 1 / 4, 1 / 4),  # the spread asks for (3 - 1) / (3 + 1) = 1/2 too
        (49.0, 1 / 16, 9 / 16),  # and now for 3/4
    ],
)
def test_a_single_step_worked_by_hand(high, rate, momentum):
    assert single_step(variance=2.0, distance=1.0, high=high, low=1.0) == pytest.approx((rate, momentum))


@given(*[some.floats(1e-3, 1e3) for _ in range(3)])
@example(variance=0.001, distance=195.0, low=200.0)
def test_a_single_step_is_the_least_of_a_grid(variance, distance, low):
    rate, momentum = single_step(variance, distance, low, low)
    x = np.linspace(0, 1, 200_001)
    loss = x**2 * distance**2 + (1 - x) ** 4 / low**2 * variance
    found = momentum * distance**2 + rate**2 * variance
    assert found <= loss.min() * (1 + 1e-6)
    assert rate == pytest.approx((1 - math.sqrt(momentum)) ** 2 / low)


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e30, math.inf])
def test_gradients_that_vanish_or_explode_raise_nothing(value):
    single_step(value, value, value, value)


def test_two_steps_worked_by_hand():
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    tuner = YellowFin([weight], lr=0.1, beta=0.5)
    weight.grad = torch.tensor([2.0], dtype=torch.float64)
    tuner.step()
    assert weight.item() == pytest.approx(0.8)
    weight.grad = torch.tensor([4.0], dtype=torch.float64)
    tuner.step()
    # averages after gradients 2 and 4, each over 1 - 1/4: curvature from 4 to 12, variance 12 - (10/3)²,
    # distance (1/2 * 1/2 * 1/2 + 1/2 * 2.5 / 9) / (3/4)
    distance, variance = (0.125 + 0.5 * 2.5 / 9) / 0.75, 12 - (10 / 3) ** 2
    p = distance**2 * 4**2 / (2 * variance)
    (x,) = [root.real for root in np.roots([1, -3, 3 + p, -1]) if abs(root.imag) < 1e-9]
    assert x > (math.sqrt(3) - 1) / (math.sqrt(3) + 1)
    rate = 0.5 * 0.1 + 0.5 * (1 - x) ** 2 / 4 * 2 / 200
    momentum = 0.5 * x**2
    assert tuner.tuned == pytest.approx((rate, momentum))
    assert weight.item() == pytest.approx(0.8 - rate * (4 + momentum * 2))


def test_weight_decay_is_added_to_the_gradient():
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    weight.grad = torch.tensor([2.0], dtype=torch.float64)
    YellowFin([weight], lr=0.1, weight_decay=0.5).step()
    assert weight.item() == pytest.approx(1 - 0.1 * (2 + 0.5 * 1))


def test_it_converges_on_a_noisy_quadratic_and_faster_than_its_first_rate():
    curvature = torch.logspace(-2, 0, 20)
    noise = torch.Generator().manual_seed(0)

    def distance(make) -> float:
        weight = nn.Parameter(torch.ones(20))
        optimizer = make([weight])
        for _ in range(1500):
            weight.grad = curvature * weight.detach() + 1e-3 * torch.randn(20, generator=noise)
            optimizer.step()
        return float((curvature * weight.detach() ** 2).sum())

    ours, plain = distance(YellowFin), distance(lambda params: torch.optim.SGD(params, lr=0.1))
    assert ours < 1e-3 * float(curvature.sum())
    assert ours < plain / 3


def test_state_goes_on_where_it_was():
    def steps(weight, optimizer, numbers):
        for number in numbers:
            weight.grad = torch.full((3,), math.sin(number)) * weight.detach()
            optimizer.step()

    straight = nn.Parameter(torch.ones(3))
    optimizer = YellowFin([straight], weight_decay=1e-3)
    steps(straight, optimizer, range(10))
    stopped = nn.Parameter(straight.detach().clone())
    other = YellowFin([stopped], weight_decay=1e-3)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(straight, optimizer, range(10, 30))
    steps(stopped, other, range(10, 30))
    assert torch.equal(straight, stopped)
    assert other.tuned == optimizer.tuned


def test_a_schedule_lowers_the_tuned_rate_by_its_factor():
    moved = []
    for factor in (1.0, 0.1):
        weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer = YellowFin([weight], lr=0.1)
        optimizer.param_groups[0]["lr"] = 0.1 * factor
        weight.grad = torch.ones(1, dtype=torch.float64)
        optimizer.step()
        moved.append(weight.item())
    assert moved[1] == pytest.approx(moved[0] / 10)


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"momentum": 1.0}, {"beta": 1.0}, {"window": 0}])
def test_settings_out_of_range_are_one_sentence(wrong):
    with pytest.raises(ConfigError, match=r"YellowFin cannot start from .*; lr must be above 0"):
        YellowFin([nn.Parameter(torch.ones(1))], **wrong)


def test_fit_knows_it_by_name_and_frozen_values_stay(digits, tiny):
    net = tiny()
    before = st.merge_(copy.deepcopy(net)).state_dict()
    plan = st.adapted(net).plan
    st.fit(net, digits, st.FitConfig(epochs=1, opt="yellowfin", weight_decay=1e-2))
    after = st.merge_(net).state_dict()
    parts = {part.name: part for part in plan}
    for name, part in parts.items():
        frozen = slice(part.k, None)
        assert torch.equal(
            before[name].movedim(part.dim, 0)[frozen], after[name].movedim(part.dim, 0)[frozen]
        )
    assert not torch.equal(before["conv1.weight"], after["conv1.weight"])
