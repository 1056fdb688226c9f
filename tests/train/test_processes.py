from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import together
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

import sparsetune as st
from sparsetune.data.loading import loader
from sparsetune.errors import ConfigError
from sparsetune.host import is_main
from sparsetune.sliced.adapt import adapted
from sparsetune.train.processes import processes


def launch(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Run two processes that train together on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=300)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, list[tuple[dict, dict]]]:
    """What each of two processes came to in each case, one after another: its state, and what it tells."""
    folder, names = tmp_path_factory.mktemp("together"), ("vit", "wrn", "stopped", "accumulated")
    done = launch(together.__file__, str(folder), *names)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("left") == 2
    read = {
        name: [(folder / f"{name}-{rank}.pt", folder / f"{name}-{rank}.json") for rank in (0, 1)]
        for name in names
    }
    return {
        name: [(torch.load(state), json.loads(told.read_text())) for state, told in both]
        for name, both in read.items()
    }


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_two_processes_learn_what_one_does_and_send_only_what_is_learned(trained, tmp_path):
    (first, told), (second, told_again) = trained["vit"]
    assert same(first, second)
    assert told["history"] == told_again["history"]
    alone, history = together.case("vit", tmp_path)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-6)
    assert told["history"][-1]["train_loss"] == pytest.approx(history[-1].train_loss, rel=1e-5)
    assert told["history"][-1]["test_loss"] == pytest.approx(history[-1].test_loss, rel=1e-4)
    logits, labels = (torch.tensor(values) for values in told["look"])
    assert torch.equal(labels, together.digits(32).test.labels)  # in their order, whoever has predicted them
    torch.testing.assert_close(logits, torch.tensor(together.LOOK[0]), rtol=1e-3, atol=1e-4)

    learned = sum(part.learned_numel for part in adapted(alone).plan) * 4
    assert 0 < learned < 0.5 * adapted(alone).plan.total_parameters * 4
    steps = 2 * 3
    assert told["traffic"] == {"reduced": steps * learned, "broadcast": 0, "steps": steps}


def test_batches_that_make_a_step_are_sent_once(trained, tmp_path):
    (first, told), (second, _) = trained["accumulated"]
    assert same(first, second)
    alone, history = together.case("accumulated", tmp_path)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-6)
    assert told["history"][-1]["test_loss"] == pytest.approx(history[-1].test_loss, rel=1e-4)
    learned = sum(part.learned_numel for part in adapted(alone).plan) * 4
    assert told["traffic"] == {"reduced": 2 * 3 * learned, "broadcast": 0, "steps": 2 * 5}


def test_statistics_are_the_main_process_and_a_stop_changes_no_bit(trained):
    (first, told), (second, _) = trained["wrn"]
    assert same(first, second)
    plan = adapted(together.wrn()).plan
    statistics = sum(buffer.nbytes for buffer in plan.buffers)
    assert told["traffic"]["broadcast"] == 6 * statistics
    (stopped, told_stopped), (again, _) = trained["stopped"]
    assert same(stopped, again)
    assert same(first, stopped)
    assert told_stopped["history"] == told["history"]


def test_the_command_line_on_two_processes_writes_and_speaks_once(tmp_path):
    """One of the processes has no test picture, and the last batch three for both."""
    words = "fit --model wrn28_4 --filters 1 --epochs 1 --batch-size 30 --device cpu"
    words += " --train-limit 63 --test-limit 1"
    done = launch("-m", "sparsetune", *words.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1
    (delta,) = tmp_path.glob("runs/*/delta.safetensors")
    assert {path.name for path in delta.parent.iterdir()} == {
        "config.json",
        "confusion.png",
        "curves.png",
        "delta.safetensors",
        "metrics.jsonl",
        "mistakes.png",
        "report.json",
    }
    data = st.open_data("digits", test_limit=1)
    ((x, y),) = loader(data.test, data.preprocessing, batch_size=2)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(st.load(delta)(x), y).item()
    (told,) = map(json.loads, (delta.parent / "metrics.jsonl").read_text().splitlines())
    assert told["test_loss"] == pytest.approx(loss, rel=1e-4)


def test_a_users_own_accelerator_keeps_its_settings(tiny, digits):
    AcceleratorState._reset_state(reset_partial_state=True)  # what another test's trainer has left
    mine = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=3)
    try:
        for amp in (None, "bf16"):
            st.fit(tiny(), digits, st.FitConfig(epochs=1, amp=amp))
            assert mine.mixed_precision == "bf16"
            assert mine.gradient_accumulation_steps == 3
        assert mine.prepare(torch.nn.Linear(2, 2))(torch.zeros(1, 2)).dtype == torch.float32
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    st.fit(tiny(), digits, st.FitConfig(epochs=1))
    assert AcceleratorState._shared_state == {}


def test_refuses_what_no_process_can_do(monkeypatch):
    with pytest.raises(ConfigError, match="device 'banana' is unknown"), processes("banana", None):
        pass
    assert is_main()
    monkeypatch.setenv("RANK", "1")
    assert not is_main()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(ConfigError, match="device 'cpu:0' is one for all processes; say cpu"),
        processes("cpu:0", None),
    ):
        pass
