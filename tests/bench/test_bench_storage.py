from __future__ import annotations

import torch
from torch import nn

import sparsetune as st
from sparsetune.bench.bench import SWITCHES, contestants, keep

LEARN = st.Learn(fraction=0.25)


def test_files_loads_and_switches():
    net = st.create("test_resnet", num_classes=10)
    found = keep(contestants(net, LEARN)[0], "cpu", 2)
    times = {key: len(values) for key, values in found.items()}
    assert times == {
        **{(name, "file"): 1 for name in ("full", "ours", "lora")},
        **{(name, "load"): 2 for name in ("full", "ours")},
        **{(name, "switch"): 2 * SWITCHES for name in ("ours", "lora")},
    }
    assert all(value > 0 for values in found.values() for value in values)
    values = sum(value.nbytes for value in net.state_dict().values())
    learned = st.plan(net, LEARN).delta_bytes
    assert values < found["full", "file"][0] < 1.1 * values
    assert learned < found["ours", "file"][0] < 1.1 * learned


def test_a_users_own_model_has_no_delta_to_load():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    models = {"full": net, "ours": st.adapt_(nn.Sequential(*net), st.Learn(fraction=0.5))}
    assert [*keep(models, "cpu", 1)] == [("full", "file"), ("full", "load")]
    assert torch.is_tensor(net[0].weight)
