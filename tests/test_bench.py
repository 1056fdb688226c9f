from __future__ import annotations

import pytest
import torch

import sparsetune as st
from sparsetune.bench import bench


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_times_every_contestant_and_leaves_the_model_alone(amp):
    net = st.create("test_resnet", num_classes=10)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    told = []
    rows = bench(
        net, st.Learn(fraction=0.1), batch_size=2, rounds=3, amp=amp, progress=lambda *n: told.append(n)
    )
    assert [row.name for row in rows] == ["full", "ours", "masked"]
    assert told == [(i, 5) for i in range(1, 6)]
    assert rows[0].learned_parameters == sum(p.numel() for p in net.parameters())
    assert rows[1].learned_parameters == rows[2].learned_parameters == 37_189
    assert rows[0].step_ratio == rows[0].infer_ratio == rows[0].peak_ratio == 1
    assert rows[0].peak_bytes > 3 * 4 * rows[0].learned_parameters  # values, momentum and gradients
    assert rows[1].peak_bytes < rows[0].peak_bytes
    for row in rows:
        assert 0 < row.step_spread_ms[0] <= row.step_ms <= row.step_spread_ms[1]
        assert row.infer_ms > 0
    after = net.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert net.training
