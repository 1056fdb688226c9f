"""Ways to spend a budget: where the bytes go, told by the layers' order in the model."""

from __future__ import annotations

import pytest
import torch
from forge import stirred
from hypothesis import given, settings
from hypothesis import strategies as some

import sparsetune as st
from sparsetune.delta.saving import write_plain
from sparsetune.runs.spend import (
    DEPTHS,
    LATER,
    MIDDLE,
    RESERVE,
    UNIFORM,
    VECTOR,
    WAYS,
    spend,
    ways,
)

BUDGET = 30_000


def plain():
    return st.create("wrn28_4", depth=10, width=1, num_classes=10)


@pytest.mark.parametrize("name", [*WAYS])
def test_each_keeps_the_budget_and_uses_it(name):
    learn = spend(name, plain(), BUDGET)
    assert 0.8 * BUDGET < st.plan(plain(), learn).delta_bytes <= BUDGET
    assert {*learn.amounts} == {"dimensions" if name == VECTOR else "rank"}


@pytest.mark.parametrize("name", [name for name in DEPTHS if "third" in name])
def test_a_part_of_the_depth_gets_all_of_it(name):
    convs = [name for name, module in plain().named_modules() if isinstance(module, torch.nn.Conv2d)]
    one, two = len(convs) // 3, 2 * len(convs) // 3
    places = {
        "middle third": slice(one, two),
        "last third": slice(two, None),
        "last two thirds": slice(one, None),
    }
    wanted = convs[places[name.split(", ")[1]]]
    made = st.plan(plain(), spend(name, plain(), BUDGET))
    learned = [part.homes[0][0] for part in made if part.layer and part.learned]
    assert learned
    assert {*learned} <= {*wanted}
    assert {part.name for part in made if part.learned} >= {"fc.weight", "fc.bias"}


def test_what_a_model_has_not_is_none():
    one = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    assert spend(MIDDLE, one, BUDGET) is None
    assert spend(LATER, one, BUDGET) == spend("low rank, uniform", one, BUDGET)
    none = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(8))
    assert {spend(name, none, BUDGET) for name in DEPTHS} == {st.Learn(filters=0)}
    assert spend(VECTOR, none, BUDGET) == st.Learn(filters=0, norm=False)


@settings(max_examples=15, deadline=None)
@given(nbytes=some.integers(9_000, 400_000), dtype=some.sampled_from([None, "int8", "int6"]))
def test_a_vector_takes_the_budget_and_never_more(nbytes, dtype, tmp_path_factory):
    """WRN-10-1's weights are 3 x 16 x 9 of the first convolution, and so on; never more values than these."""
    learn = spend(VECTOR, plain(), nbytes, dtype=dtype)
    path = tmp_path_factory.mktemp("budget") / "a.safetensors"
    net = stirred(st.adapt_(plain(), learn), 0)
    with torch.no_grad():
        for value in net.parameters():
            value.uniform_(-1, 1)  # all steps of int6 equally often
    st.save(net, path, dtype=dtype)
    most = sum(m.weight.numel() for m in plain().modules() if isinstance(m, torch.nn.Conv2d))
    assert path.stat().st_size <= nbytes
    assert learn.dimensions == most or path.stat().st_size >= 0.87 * (nbytes - RESERVE - 500)
    assert (learn.norm, learn.head) == (False, False)


def test_over_trained_weights_the_head_is_learned_whole(tmp_path):
    path = tmp_path / "whole.safetensors"
    write_plain(plain(), path)
    net = st.create("wrn28_4", depth=10, width=1, num_classes=10, checkpoint=path)
    assert spend(VECTOR, net, BUDGET).head
    assert not spend(VECTOR, net, BUDGET, base=st.Learn(filters=0, head=False)).head


def test_a_vector_may_have_as_many_values_as_there_are_weights():
    most = sum(m.weight.numel() for m in plain().modules() if isinstance(m, torch.nn.Conv2d))
    assert spend(VECTOR, plain(), 10**6).dimensions == most


def test_the_default_follows_from_the_backbone(tmp_path):
    assert ways(plain(), BUDGET) == (UNIFORM, LATER)
    path = tmp_path / "whole.safetensors"
    write_plain(plain(), path)
    file = st.create("wrn28_4", depth=10, width=1, num_classes=10, checkpoint=path)
    assert ways(file, BUDGET) == ways(own(), BUDGET) == (VECTOR, LATER)


def own():
    return torch.nn.Sequential(*(torch.nn.Conv2d(8, 8, 3) for _ in range(6)))


def test_without_room_for_rank_two_everywhere_a_random_backbone_learns_a_vector():
    """By hand: rank 2 of WRN-10-1's eleven layers beside its norms and head, without what the file says."""
    convs = {m: [*m.weight.shape] for m in plain().modules() if isinstance(m, torch.nn.Conv2d)}
    two = sum(2 * (o + i * h * w) for o, i, h, w in convs.values())
    rest = st.plan(plain(), st.Learn(filters=0)).delta_bytes
    assert ways(plain(), rest + 4 * two) == (UNIFORM, LATER)
    assert ways(plain(), rest + 4 * two - 1) == (VECTOR,)
    assert ways(plain(), rest + 4 * two - 1, dtype="int8") == (UNIFORM, LATER)
