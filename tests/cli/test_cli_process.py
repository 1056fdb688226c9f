"""What only a process of its own shows: signals, pipes, terminals, exit codes."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-c", "from sparsetune.cli import main; main()"]
SHORT = "fit --model test_resnet --fraction 0.25 --train-limit 200 --test-limit 50 --lr 0.05"


def start(words: str) -> subprocess.Popen:
    """Start the command; Ctrl-C reaches it even where the tests themselves run in the background."""
    return subprocess.Popen(
        [*COMMAND, *words.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_ctrl_c_ends_with_130_and_the_run_goes_on(sparsetune):
    command = f"{SHORT} --epochs 20 --out"
    with start(f"{command} r --workers 1") as process:
        for line in process.stderr:
            if line.startswith("epoch   2"):
                process.send_signal(signal.SIGINT)
                break
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "interrupted; all that was finished is kept."
    assert "Traceback" not in err
    lines = len(Path("r/metrics.jsonl").read_text().splitlines())
    assert 2 <= lines < 20
    value = sparsetune(f"{command} r --resume --json").json
    assert [record["epoch"] for record in value["epochs"]] == list(range(1, 21))
    sparsetune(f"{command} straight")
    straight, resumed = Path("straight"), Path("r")
    assert (straight / "delta.safetensors").read_bytes() == (resumed / "delta.safetensors").read_bytes()


def test_a_reader_that_leaves_early_is_no_error():
    with start("models") as process:
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""


def test_mistakes_exit_with_2_and_one_line():
    with start("fit --fraction 1.5") as process:
        out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert err == "error: fraction 1.5 is not between 0 and 1; 0.1 learns 10 % of each layer.\n"


@pytest.mark.slow
def test_on_a_terminal_there_is_a_bar():
    shown, terminal = pty.openpty()
    command = [*COMMAND, *SHORT.split(), "--epochs", "3"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, text=True)
    os.close(terminal)
    seen = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while True:
            seen += os.read(shown, 65536)
    out, _ = process.communicate()
    assert process.returncode == 0
    text = seen.decode()
    assert "━" in text
    assert "epoch 3/3" in text
    assert "\x1b" not in out


@pytest.mark.slow
def test_published_weights_without_a_network_are_one_sentence(tmp_path):
    command = [*COMMAND, *SHORT.split(), "--pretrained"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    process = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr.startswith("error: pretrained weights of test_resnet cannot be had (")
    assert len(process.stderr.splitlines()) == 1
    assert not Path("runs").exists()
