"""What a delta knows of the pictures that it was trained on, against plain sets of their contents."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import sparsetune as st
from sparsetune.data.splits import Overlap, Seen
from sparsetune.delta.values import soup

ONE = st.FitConfig(epochs=1, batch_size=32, lr=0.05)
RANDOM = np.random.default_rng(0)


def keys(count: int) -> np.ndarray:
    return RANDOM.integers(0, 2**64, count, dtype=np.uint64)


def contents(split: st.data.Split) -> set[bytes]:
    return {split[i][0].tobytes() for i in range(len(split))}


def test_few_pictures_are_counted():
    train, others = keys(160), keys(40)
    seen = Seen.of(train, others)
    assert seen.overlap(others) == Overlap(0, exact=True, held_out=True)
    assert seen.overlap(others[::-1]).held_out
    assert not seen.overlap(others[1:]).held_out
    mixed = np.concatenate([train[:33], others[:7]])
    assert seen.overlap(mixed) == Overlap(33, exact=True, held_out=False)
    assert seen.overlap(np.repeat(train[:1], 3)).pictures == 3


def test_of_many_a_sample_tells_about_how_many():
    train, others = keys(50_000), keys(100_000)
    seen = Seen.of(train, others[:10])
    assert seen.overlap(others) == Overlap(0, exact=False, held_out=False)
    found = seen.overlap(np.concatenate([train[:5000], others[:5000]]))
    assert not found.exact
    assert abs(found.pictures - 5000) < 4 * 10_000 * 0.5 / (10_000 * 1024 / 50_000) ** 0.5
    least = Seen.from_json(seen.to_json())
    assert len(least.hashes) == 64
    assert least.overlap(others).pictures == 0
    assert least.overlap(train).pictures == 50_000


def test_it_comes_back_from_a_summary_that_grows_with_the_values_alone():
    seen = Seen.of(keys(50_000), keys(10))
    for nbytes, count in ((0, 64), (40_000, 64), (400_000, 300), (10**8, 1024)):
        text = json.dumps(seen.to_json(nbytes))
        back = Seen.from_json(json.loads(text))
        assert back == replace(seen, hashes=seen.hashes[:count], whole=False)
        assert len(text) < max(600, 0.0055 * nbytes)
    assert all(len(piece) <= 1000 for piece in seen.to_json(10**8)["pictures"]["trained_on"])
    few = Seen.of(keys(300), keys(5))
    assert Seen.from_json(few.to_json(10**6)) == few


@pytest.mark.parametrize(
    "change",
    [
        {"trained_on": ["AAAA"]},
        {"trained_on": ["é"]},
        {"trained_on": [3]},
        {"trained_on": None},
        {"trained_on": []},
        {"whole": 1},
        {"held_out": None},
        {"shared": "1"},
        {"shared": True},
    ],
)
def test_a_strangers_summary_says_nothing(change):
    value = Seen.of(keys(5), keys(5)).to_json()["pictures"]
    assert Seen.from_json({"pictures": value})
    assert Seen.from_json({"pictures": {**value, **change}}) is None
    assert Seen.from_json({"pictures": {k: v for k, v in value.items() if k not in change}}) is None
    assert Seen.from_json({"pictures": [value]}) is None
    assert Seen.from_json({}) is None


def test_of_two_trainings_both_are_known():
    first, second, others = keys(200), keys(5000), keys(300)
    joined = Seen.of(second, others, earlier=Seen.of(first, keys(1)))
    assert joined.overlap(others) == Overlap(0, exact=False, held_out=True)
    assert abs(joined.overlap(first).pictures - 200) < 1e-9
    assert joined.overlap(second).pictures == 5000
    assert Seen.of(first[:50], others, Seen.of(first[50:], others)) == Seen.of(first, others)


def test_test_pictures_that_were_trained_on_are_counted():
    train, test = keys(2000), keys(100)
    assert Seen.of(train, test).shared == 0
    assert Seen.of(train, np.concatenate([test, train[:7]])).shared == 7
    assert Seen.of(train, test, earlier=Seen.of(test[:20], train)).shared == 20


def test_fit_and_save_and_load_pass_it_on(tiny, digits, tmp_path):
    """Two trainings one after the other, and an average of two deltas, know the pictures of both."""
    size = len(digits.train) // 2
    halves = [replace(digits, train=digits.train.take(np.arange(i * size, (i + 1) * size))) for i in (0, 1)]
    assert not contents(halves[0].train) & contents(halves[1].train)
    paths = [tmp_path / name for name in ("a", "b", "ab")]
    for half, path in zip(halves, paths, strict=False):
        net = tiny()
        st.fit(net, half, ONE)
        st.save(net, path)
    net = st.load(paths[0])
    st.fit(net, halves[1], ONE)
    st.save(net, paths[2], training={"mine": 1})
    soup(paths[:2], tmp_path / "soup")
    assert st.inspect(paths[2]).training["mine"] == 1
    for path, known in ((paths[0], [0]), (paths[1], [1]), (paths[2], [0, 1]), (tmp_path / "soup", [0, 1])):
        seen = Seen.from_json(st.inspect(path).training)
        for number, half in enumerate(halves):
            assert seen.overlap(half.train.keys()).pictures == size * (number in known)
        assert seen.overlap(digits.test.keys()).pictures == 0
        assert seen.overlap(digits.test.keys()).held_out


def test_a_model_that_fit_did_not_train_says_nothing(tiny, tmp_path):
    st.save(tiny(), tmp_path / "a")
    assert st.inspect(tmp_path / "a").training == {}
