from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsetune as st
from sparsetune.bench.bench import MEASURES, Workload, bench

SHORT = Workload(batch_size=2, rounds=1, warmup=0)


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_times_every_contestant_and_leaves_the_model_alone(amp):
    net = st.create("test_resnet", num_classes=10)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    told = []
    work = Workload(batch_size=2, rounds=3, amp=amp)
    rows, missing = bench(net, st.Learn(fraction=0.1), work, lambda *n: told.append(n))
    assert missing == {}
    assert [row.name for row in rows] == ["full", "ours", "masked", "lora"]
    assert told == [(i, 5) for i in range(1, 6)]
    full, ours, masked, lora = rows
    assert full.learned_parameters == sum(p.numel() for p in net.parameters())
    assert ours.learned_parameters == masked.learned_parameters == 37_189
    assert lora.learned_parameters == pytest.approx(37_189, rel=0.01)
    assert all(each.ratio == 1 for each in full.figures.values())
    for row in rows:
        assert row.figures.keys() >= {"step", "infer", "peak", "state"}
        for each in row.figures.values():
            assert 0 < each.low <= each.median <= each.high
    assert full.figures["peak"].median > 3 * 4 * full.learned_parameters  # values, momentum and gradients
    assert ours.figures["peak"].median < full.figures["peak"].median
    state = [row.figures["state"].median for row in rows]
    assert state == [
        8 * n for n in (full.learned_parameters, 37_189, full.learned_parameters, lora.learned_parameters)
    ]
    assert all(set(row.figures) <= set(MEASURES) for row in rows)
    after = net.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert net.training


def test_figures_as_json():
    rows, _ = bench(st.create("test_resnet"), st.Learn(filters=0), SHORT)
    assert [row.name for row in rows] == ["full", "ours", "masked"]
    value = rows[1].to_json()
    assert value["step_ms"] == rows[1].figures["step"].median
    assert value["step_spread_ms"] == [value["step_ms"]] * 2
    assert value["file_bytes"] < value["peak_bytes"]
    assert value["switch_ratio"] is None


class Padded(nn.Conv2d):
    """Pads by itself, as PEFT's two convolutions of its kind then do as well."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.pad(x, (1, 1, 1, 1)))


def test_what_peft_cannot_run_is_left_out():
    net = nn.Sequential(Padded(3, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
    rows, missing = bench(net, st.Learn(fraction=0.5), SHORT)
    assert [row.name for row in rows] == ["full", "ours", "masked"]
    assert missing["lora"].startswith("PEFT's model cannot take pictures of 3x32x32 (")
