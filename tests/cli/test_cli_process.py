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


@pytest.mark.parametrize(
    ("sent", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_an_interrupted_run_is_saved_and_goes_on(sparsetune, sent, code):
    """By Ctrl-C, or by what Slurm, Docker and ``timeout`` send."""
    command = f"{SHORT} --epochs 20 --out"
    with start(f"{command} r --workers 1") as process:
        for line in process.stderr:
            if line.startswith("epoch   2"):
                process.send_signal(sent)
                break
        out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == ""
    assert err.splitlines()[-2:] == [
        "interrupted; what was learned so far is in r. Go on with:",
        f"sparsetune {command} r --workers 1 --resume",
    ]
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


def test_one_run_has_one_owner(refused, sparsetune):
    """Who starts the same run a second time is told so at once, and once it was killed may go on with it."""
    command = f"{SHORT} --epochs 20 --out r"
    with start(command) as process:
        for line in process.stderr:
            if line.startswith("epoch   1"):
                break
        said = refused(*command.split(), "--resume")
        assert said == "another process is training in r; wait until it ends, or choose another --out."
        process.kill()
    assert sparsetune(command, "--resume", "--json").json["epochs"][-1]["epoch"] == 20


def test_a_half_done_run_is_named(sparsetune):
    first = f"{SHORT} --epochs 2 --time-budget 0s"
    folder = next(Path("runs").iterdir()) if sparsetune(first) else None
    told = sparsetune(f"{SHORT} --epochs 2").err
    assert (
        f"{folder} holds a half-done run of these settings; --resume goes on with it instead of anew." in told
    )


def test_too_little_memory_is_one_sentence(tmp_path):
    code = (
        "import resource, sys, torch, timm; from sparsetune.cli import main;"
        "from sparsetune.host import taken_bytes;"
        "resource.setrlimit(resource.RLIMIT_DATA, (taken_bytes('VmData') + 250 * 2**20,) * 2);"
        f"sys.argv[1:] = {[*SHORT.split(), '--size', '160', '--batch-size', '100', '--out', 'r']!r}; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert (
        "a step on 100 pictures takes more memory than there is; give a smaller --batch-size" in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert not Path("r").exists()
