from __future__ import annotations

import sys

import pytest
import torch
from torch.nn import functional as F

import sparsetune as st
from sparsetune.bench.bench import CONTESTANTS, contestants

LEARN = st.Learn(fraction=0.25)


def test_all_start_as_the_plain_model():
    net = st.create("test_resnet", num_classes=10).eval()
    models, missing = contestants(net, LEARN)
    assert [*models] == ["full", "ours", "masked", "lora"]
    assert missing == {}
    x = torch.randn(3, 3, 32, 32)
    for model in models.values():
        assert torch.allclose(model.eval()(x), net(x), atol=1e-5)
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("learn", [LEARN, st.Learn(filters=0), st.Learn(fraction=0.25, dim="in")])
def test_masked_gradients_are_the_whole_ones_where_ours_learns_and_zero_elsewhere(learn):
    net = st.create("test_resnet", num_classes=10)
    masked = contestants(net, learn)[0]["masked"]
    x, y = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    for model in (net, masked):
        F.cross_entropy(model(x), y).backward()
    found = dict(masked.named_parameters())
    count = 0
    for part in st.plan(net, learn):
        whole, own = net.get_parameter(part.name).grad, found[part.name].grad
        if part.k == 0:
            assert own is None
            continue
        assert torch.allclose(own.narrow(part.dim, 0, part.k), whole.narrow(part.dim, 0, part.k), atol=1e-6)
        assert own.narrow(part.dim, part.k, part.size - part.k).count_nonzero() == 0
        count += part.learned_numel
    assert CONTESTANTS["masked"].count(masked, st.plan(net, learn)) == count


def test_a_rank_is_compared_with_peft_at_as_many_values():
    net = st.create("test_resnet", num_classes=10)
    models, missing = contestants(net, st.Learn(rank=4))
    assert [*models] == ["full", "ours", "lora"]
    assert missing == {"masked": "no mask makes a gradient one of a rank."}
    ours, theirs = (
        sum(p.numel() for p in models[name].parameters() if p.requires_grad) for name in ("ours", "lora")
    )
    assert theirs == pytest.approx(ours, rel=0.05)


def test_without_peft_its_row_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    models, missing = contestants(st.create("test_resnet", num_classes=10), LEARN)
    assert [*models] == ["full", "ours", "masked"]
    assert missing == {"lora": "PEFT is not installed; run: pip install 'sparsetune[peft]'."}
