from __future__ import annotations

import time

import pytest
import torch

from sparsetune.bench.timing import Figure, figure, take_turns


def test_actions_take_turns_and_warm_up():
    done, told = [], []
    actions = {"a": lambda: done.append("a"), "b": lambda: done.append("b")}
    found = take_turns(actions, "cpu", rounds=3, warmup=2, progress=lambda *n: told.append(n))
    assert done == ["a", "b"] * 5
    assert {key: len(values) for key, values in found.items()} == {"a": 3, "b": 3}
    assert told == [(i, 5) for i in range(1, 6)]


def test_times_are_milliseconds():
    found = take_turns({"sleep": lambda: time.sleep(0.05)}, "cpu", rounds=2, warmup=0)
    assert all(50 <= each < 1000 for each in found["sleep"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpus_work_is_waited_for():
    x = torch.randn(8192, 8192, device="cuda")
    actions = {1: lambda: x @ x, 8: lambda: [x @ x for _ in range(8)]}
    found = take_turns(actions, "cuda", rounds=5, warmup=2)
    assert 4 < sorted(found[8])[2] / sorted(found[1])[2] < 12


def test_a_ratio_is_of_the_same_round():
    assert figure([1, 20, 3], [2, 10, 3]) == Figure(median=3, low=1, high=20, ratio=1)
    assert figure([5.0], None) == Figure(5, 5, 5, None)
