"""A budget is spent, never overdrawn."""

import pytest
from forge import moved
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import nn

import sparsetune as st
from sparsetune.errors import ConfigError
from sparsetune.parts.precision import CODES
from sparsetune.runs.spend import RESERVE, allocate
from sparsetune.spec.config import PRECISIONS

HEAD = {"classes": list("abcdefghij")}


def plain(**kwargs):
    return st.create("wrn28_4", **{"depth": 10, "width": 1, "num_classes": 10, **kwargs})


NET = plain()
# norm's scale and shift, head, running mean and variance and counter of seven batch norms
NORMS = 16 + 16 + 16 + 32 + 32 + 64 + 64
BASE = 4 * (2 * NORMS + 650) + 4 * 2 * NORMS + 8 * 7


@settings(max_examples=15, deadline=None)
@given(nbytes=some.integers(16_000, 70_000))
def test_a_file_takes_the_budget_and_never_more(nbytes, tmp_path_factory):
    learn = allocate(NET, nbytes)
    path = tmp_path_factory.mktemp("budget") / "a.safetensors"
    made = st.plan(plain(), learn)
    st.save(st.adapt_(plain(), learn), path)
    assert path.stat().st_size <= nbytes
    assert made.delta_bytes + RESERVE <= nbytes
    assert made.delta_bytes + RESERVE >= nbytes - 2500 - 4 * 576
    assert learn.norm
    assert learn.head


@pytest.mark.parametrize("dtype", PRECISIONS)
@settings(max_examples=10, deadline=None)
@given(nbytes=some.integers(10_000, 30_000), norm=some.booleans())
def test_in_fewer_bits_too(dtype, nbytes, norm, tmp_path_factory):
    learn = allocate(NET, nbytes, base=st.Learn(filters=0, norm=norm), dtype=dtype)
    path = tmp_path_factory.mktemp("budget") / "a.safetensors"
    st.save(moved(st.adapt_(plain(), learn)), path, dtype=dtype)  # zeros would take a bit each in int6
    full = 50_000 * CODES[dtype].itemsize
    assert min(nbytes - 2500 - 4 * 576, full) <= path.stat().st_size <= nbytes


def test_95_percent_of_a_budget_of_ordinary_size_is_used():
    net = st.create("wrn28_4", num_classes=10)
    assert 190_000 <= st.plan(net, allocate(net, 200_000)).delta_bytes <= 200_000


def test_each_gets_one_more_in_turn():
    """By hand: two 1x1 convolutions whose ranks take 8 values each, over a budget that grows by one rank."""
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(4, 2))
    found = dict.fromkeys(learn.rank for learn in (allocate(net, n) for n in range(2400, 2600, 4)))
    assert [*found] == [None, (("0", 1),), 1, (("0", 2), ("1", 1)), 2]


def test_patterns_restrict_who_gets_any():
    learn = allocate(NET, 30_000, layers=["block2"])
    assert set(dict(learn.rank)) == {"block2.0.conv1", "block2.0.conv2", "block2.0.shortcut"}


def test_all_layers_alike_are_one_number():
    assert allocate(NET, 10**6).by_layer
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(4, 2))
    assert allocate(net, 10**6) == st.Learn(rank=2)


def test_class_names_count():
    names = [f"class number {i}" for i in range(200)]
    net = plain(num_classes=200)
    few, many = (allocate(net, 90_000, classes=classes) for classes in ((), names))
    gap = st.plan(net, few).delta_bytes - st.plan(net, many).delta_bytes
    assert gap >= sum(map(len, names))


def test_what_is_always_needed_comes_first():
    assert allocate(NET, BASE + RESERVE + 700) == st.Learn(filters=0)
    without = allocate(NET, BASE + RESERVE - 800)
    assert (without.norm, without.head) == (False, True)
    with pytest.raises(ConfigError) as caught:
        allocate(NET, 5000)
    assert str(caught.value).startswith("budget 5,000 bytes is below ")
    least = BASE - 4 * 2 * NORMS + RESERVE
    said = int(str(caught.value).split("below ")[1].split(" bytes")[0].replace(",", ""))
    assert least <= said <= least + 2000
    assert "the least that a delta of this model takes (running statistics and the classifier" in str(
        caught.value
    )


def test_attention_with_a_layer_inside_is_not_counted_twice():
    net = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 3))
    for nbytes in (4700, 5200, 5700):
        assert st.plan(net, allocate(net, nbytes)).delta_bytes + RESERVE <= nbytes
