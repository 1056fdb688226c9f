"""A trial against the same done by hand."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import sparsetune as st
from sparsetune.data.loading import loader
from sparsetune.data.splits import balanced, split_in_two
from sparsetune.runs.choosing import try_out

LEARN = st.Learn(rank=2)


@pytest.fixture(scope="module")
def ground():
    data = st.open_data("digits", train_limit=300, test_limit=20)
    part, held = split_in_two(data.train, 0.2, 0)
    return replace(data, train=part), held


def plain():
    return st.create("wrn28_4", depth=10, width=1, num_classes=10)


def tried(data, held, config, steps):
    net = plain()
    before = copy.deepcopy(net.state_dict())
    found = try_out(net, LEARN, data, held, config, steps)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    return found


@pytest.mark.parametrize(("steps", "epochs"), [(3, 1), (8, 2)])
def test_it_is_a_short_training_with_adamw_judged_with_each_batch_normalised(ground, steps, epochs):
    """Of 240 pictures, 3 steps of 64 take 192, and 8 steps all of them twice."""
    data, held = ground
    losses, top1 = tried(data, held, st.FitConfig(epochs=50, batch_size=64, lr=0.05), steps)
    part = balanced(data.train, 192, 0, "a limit") if steps == 3 else data.train
    net = st.adapt_(plain(), LEARN)
    config = st.FitConfig(epochs=epochs, batch_size=64, lr=0.005, opt="adamw")
    st.fit(net, replace(data, train=part, test=held), config)
    expected, right = [], []
    net.train()
    with torch.no_grad():
        for x, y in loader(held, data.preprocessing, batch_size=64):
            logits = net(x)
            expected.append(F.cross_entropy(logits, y, reduction="none"))
            right.append(logits.argmax(1) == y)
    wanted = torch.cat(expected).double()
    assert torch.allclose(losses.sort().values, wanted.sort().values, atol=1e-5)
    assert top1 == pytest.approx(float(torch.cat(right).double().mean()))
    assert len(losses) == 60


def test_another_optimiser_keeps_its_rate(ground):
    data, held = ground
    slow = tried(data, held, st.FitConfig(epochs=9, batch_size=64, lr=0.05), 3)
    own = tried(data, held, st.FitConfig(epochs=9, batch_size=64, lr=0.005, opt="adamw"), 3)
    assert torch.equal(slow[0], own[0])


def test_one_that_diverges_is_none(ground):
    data, held = ground
    assert tried(data, held, st.FitConfig(batch_size=64, lr=1e30, opt="adamw"), 3) is None


def test_better_pictures_learned_are_a_lower_loss(ground):
    data, held = ground
    longer, shorter = (tried(data, held, st.FitConfig(batch_size=64), steps)[0].mean() for steps in (90, 3))
    assert longer < shorter < math.log(10) + 1
    only = replace(data, train=data.train.take(np.flatnonzero(data.train.labels == 0)))
    assert tried(only, held, st.FitConfig(batch_size=16), 9)[0].mean() > shorter


def test_its_warm_up_is_the_same_share_of_its_steps(ground):
    data, held = ground
    slow = st.FitConfig(epochs=50, batch_size=64, lr=0.005, opt="adamw", warmup_epochs=25.0)
    losses, _ = tried(data, held, slow, 8)
    net = st.adapt_(plain(), LEARN)
    config = st.FitConfig(epochs=2, batch_size=64, lr=0.005, opt="adamw", warmup_epochs=1.0)
    st.fit(net, replace(data, test=held), config)
    net.train()
    with torch.no_grad():
        batches = [(net(x), y) for x, y in loader(held, data.preprocessing, batch_size=64)]
    wanted = torch.cat([F.cross_entropy(x, y, reduction="none") for x, y in batches]).double()
    assert torch.allclose(losses.sort().values, wanted.sort().values, atol=1e-5)


def test_it_needs_no_validation_pictures(ground):
    data, held = ground
    config = st.FitConfig(epochs=4, batch_size=64, keep="best", patience=2, val_share=0.1)
    assert tried(data, held, config, 3) is not None
