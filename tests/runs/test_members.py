from __future__ import annotations

import pytest
import torch

import sparsetune as st
from sparsetune.errors import ConfigError
from sparsetune.runs.members import run_members
from sparsetune.runs.settings import Run

CONFIG = st.FitConfig(epochs=1, batch_size=32, lr=0.05, seed=4)
RUN = Run(
    model="test_resnet", learn=st.Learn(fraction=0.25), config=CONFIG, train_limit=96, test_limit=50, size=32
)


def test_members_share_a_backbone_and_differ_in_their_training(tmp_path):
    together = run_members(RUN, 3, tmp_path / "e")
    assert together.finished
    headers = [st.inspect(delta) for delta in together.deltas]
    assert len({header.fingerprint for header in headers}) == 1
    assert [header.training["config"]["seed"] for header in headers] == [4, 5, 6]
    data = st.open_data("digits", test_limit=50, size=32)
    x = torch.stack([data.preprocessing.apply(data.test[i][0]) for i in range(50)])
    with torch.no_grad():
        p = torch.stack([st.load(delta)(x).double().softmax(1) for delta in together.deltas])
    assert not torch.equal(p[0], p[1])
    assert together.scores.top1 == (p.mean(0).argmax(1) == data.test.labels).double().mean()
    assert 0 < together.diversity.disagreement < 1


def test_an_ensemble_goes_on_where_its_time_was_up(tmp_path):
    straight = run_members(RUN, 2, tmp_path / "straight")
    calls = 0
    while True:
        calls += 1
        stopped = run_members(RUN, 2, tmp_path / "stopped", resume=True, time_budget=0.0)
        if stopped.finished:
            break
        assert stopped.scores is None
    assert calls > 3
    for one, other in zip(straight.deltas, stopped.deltas, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert stopped.scores == straight.scores


def test_one_is_no_ensemble(tmp_path):
    with pytest.raises(ConfigError, match="members 1 is no ensemble; give 2 or more"):
        run_members(RUN, 1, tmp_path / "e")
