"""Moving averages of what is learned: timm's, but of that alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

import sparsetune as st
from sparsetune.train import step as stepping
from sparsetune.train.checkpoint import Average

CONFIG = st.FitConfig(epochs=2, batch_size=64, lr=0.05)


@pytest.fixture
def timms(monkeypatch) -> list[ModelEmaV3]:
    """timm's own averages beside ours, of the whole model."""
    made = []

    class Beside(stepping.Stepper):
        def _move(self):
            super()._move()
            if not made:
                made.append(ModelEmaV3(self.net, decay=0.9, use_warmup=True))
            self.count = getattr(self, "count", 0) + 1
            made[0].update(self.net, step=self.count)

    monkeypatch.setattr("sparsetune.train.loop.Stepper", Beside)
    return made


@pytest.mark.parametrize("accumulated", [1, 2])
def test_averages_are_timm_s_and_what_is_evaluated_and_left(tiny, digits, timms, accumulated):
    net = tiny()
    config = replace(CONFIG, batch_size=32, grad_accum_steps=accumulated)
    history = st.fit(net, digits, replace(config, model_ema=True, model_ema_decay=0.9))
    (theirs,) = timms
    for name, value in theirs.module.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value, msg=name)
    x = torch.stack([digits.preprocessing.apply(digits.test[i][0]) for i in range(len(digits.test))])
    with torch.no_grad():
        logits = theirs.module(x)
    loss = nn.functional.cross_entropy(logits, digits.test.labels).item()
    assert history[-1].test_loss == pytest.approx(loss, rel=1e-4)
    plain = st.fit(tiny(), digits, config)
    assert [r.train_loss for r in plain] == [r.train_loss for r in history], "the training is the same"
    assert plain[0].test_loss != history[0].test_loss


def test_only_what_is_learned_is_kept_twice(tiny, digits):
    net = tiny()
    learned = [p for p in net.parameters() if p.requires_grad]
    average = Average(learned, 0.9)
    assert sum(mean.numel() for mean in average.means) == sum(p.numel() for p in learned)
    assert len(learned) == sum(len(part.learned) for part in st.adapted(net).plan)


def test_small_changes_of_coarse_numbers_add_up():
    value = torch.ones(1, dtype=torch.bfloat16)
    average = Average([value], 0.999)
    average.update()
    value.fill_(2.0)
    for _ in range(10**4):
        average.update()
    average.put()
    assert value.item() == pytest.approx(2.0, abs=0.01)
    average.back()
    assert value.item() == 2.0


@pytest.mark.parametrize("keep", ["last", "best"])
def test_stopped_at_every_step_averages_end_the_same(tiny, digits, tmp_path, keep):
    data = replace(digits, validation=digits.test.take(np.arange(30)))
    config = replace(CONFIG, keep=keep, lr=0.3, model_ema=True, model_ema_decay=0.9)
    straight, pieces = tiny(), []
    history = st.fit(straight, data, config)
    while len(pieces) < 2:
        net = tiny()
        pieces = st.fit(net, data, config, checkpoint=tmp_path / "c", resume=True, time_budget=0.0)
    assert [r.test_loss for r in pieces] == [r.test_loss for r in history]
    assert all(torch.equal(net.state_dict()[name], value) for name, value in straight.state_dict().items())
    again = tiny()
    st.fit(again, data, config, checkpoint=tmp_path / "c", resume=True)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in straight.state_dict().items())


def test_the_best_epoch_s_averages_are_kept(tiny, digits):
    """A rate that rises spoils the last epochs, so an earlier one is best on validation."""
    data = replace(digits, validation=digits.test.take(np.arange(50)))
    config = st.FitConfig(epochs=4, lr=0.1, keep="best", model_ema=True, model_ema_decay=0.5)
    net = tiny()
    history = st.fit(net, data, replace(config, sched="none", lr=2.0))
    losses = [record.validation_loss for record in history]
    best = 1 + losses.index(min(losses))
    assert history[-1].kept == (best if best != 4 else None)
    x = torch.stack([data.preprocessing.apply(data.validation[i][0]) for i in range(50)])
    with torch.no_grad():
        loss = nn.functional.cross_entropy(net(x), data.validation.labels).item()
    assert loss == pytest.approx(min(losses), rel=1e-4)
