"""Kill what writes, at random moments, and look whether anything is torn, lost, or ends otherwise.

    python tests/fuzz/kills.py [--fits 90] [--saves 90] [--studies 20] [--terms 20] [--results FILE]

- ``fits``: a training is killed and resumed until it ends: its delta and its metrics are those of one that
  was left alone, and its checkpoint can be read after each kill.
- ``saves``: a process that writes one of two deltas again and again: what is there is one of them, whole.
- ``studies``: ``sparsetune reproduce paper``, likewise: no row is lost, and the last ones are equal.
- ``terms``: ``sparsetune fit`` is sent SIGTERM: it ends with 143 soon, and goes on to the same delta.

It ends with 1 if anything was not so.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch

import sparsetune as st
from sparsetune.host import describe_machine
from sparsetune.runs.run import run
from sparsetune.studies.store import open_store
from sparsetune.train.checkpoint import read_history

sys.path.insert(0, str(Path(__file__).parent.parent))
from forge import STOPPED, moved, small

SETTINGS = replace(STOPPED, config=STOPPED.config.but(epochs=8), train_limit=200)
STUDY = ("reproduce", "paper", "--preset", "smoke", "--only", "table1", "--jobs", "2", "--json")
FIT = ("fit", "--model", "test_resnet", "--fraction", "0.2", "--train-limit", "600", "--epochs", "6")
TIMES = ("seconds",)
"""What differs from one training to the next."""


def forked(work: Callable[[], object]) -> int:
    """Do ``work`` in a child; return its process number."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def killed(child: int, seconds: float) -> bool:
    """Kill a child after so long; return whether it had not ended by itself."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def told(folder: Path) -> list[dict[str, Any]]:
    """Return what a run's metrics say, but for times."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def fits(kills: int, chance: random.Random, home: Path) -> list[str]:
    """Kill trainings."""
    began = time.monotonic()
    os.waitpid(forked(lambda: run(SETTINGS, home / "straight")), 0)
    usual, wrong, done = time.monotonic() - began, [], 0
    delta = (home / "straight" / "delta.safetensors").read_bytes()
    for number in count():
        folder = home / f"run{number}"
        known = 0
        while killed(
            forked(lambda folder=folder: run(SETTINGS, folder, resume=True)), chance.uniform(0, usual)
        ):
            done += 1
            checkpoint = folder / "checkpoint.safetensors"
            epochs = len(read_history(checkpoint)) if checkpoint.is_file() else known
            if epochs < known:
                wrong.append(f"kill {done}: {known} epochs were done, and {epochs} are")
            known = epochs
        if not (folder / "delta.safetensors").is_file():
            wrong.append(f"run {number} ended without a delta")
        elif (folder / "delta.safetensors").read_bytes() != delta or told(folder) != told(home / "straight"):
            wrong.append(f"run {number} ended otherwise than one that was not killed")
        if done >= kills:
            return wrong
    return wrong


def saves(kills: int, chance: random.Random, home: Path) -> list[str]:
    """Kill a process that saves."""
    nets, path, whole, wrong = [moved(small(), seed).eval() for seed in (1, 2)], home / "saved", [], []
    for number, net in enumerate(nets):
        st.save(net, home / str(number))
        whole.append((home / str(number)).read_bytes())
    st.save(nets[0], path)

    def again() -> None:
        for number in count():
            st.save(nets[number % 2], path)

    for number in range(kills):
        killed(forked(again), chance.uniform(0.005, 0.1))
        if path.read_bytes() not in whole:
            wrong.append(f"kill {number}: the file is neither of both")
    left = [each.name for each in home.iterdir() if each.name.endswith(".part")]
    for name in left:
        os.utime(home / name, (0, 0))
    st.save(nets[0], path)
    if any((home / name).exists() for name in left):
        wrong.append("what was left half-written stays")
    return wrong


def command(*words: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start the command line."""
    line = [sys.executable, "-m", "sparsetune", *words, "--out", str(folder)]
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def studies(kills: int, chance: random.Random, home: Path) -> list[str]:
    """Kill a study."""

    def rows(folder: Path) -> dict[str, Any]:
        if not (folder / "results.sqlite").is_file():
            return {}
        with open_store(folder, write=False) as store:
            return {row.id: {**row.result, "seconds": None} for row in store.rows()}

    began = time.monotonic()
    if command(*STUDY, folder=home / "study").wait():
        return ["the study does not run"]
    usual, wrong, done = time.monotonic() - began, [], 0
    for number in count():
        folder, before = home / f"study{number}", dict[str, Any]()
        while True:
            started = command(*STUDY, folder=folder)
            try:
                code = started.wait(chance.uniform(1, usual))
                break
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait()
                done += 1
            if any(rows(folder).get(name) != row for name, row in before.items()):
                wrong.append(f"kill {done}: a row is gone or another")
            before = rows(folder)
        if code or rows(folder) != rows(home / "study"):
            wrong.append(f"study {number} ended otherwise than one that was not killed")
        if done >= kills:
            return wrong
    return wrong


def terms(kills: int, chance: random.Random, home: Path) -> list[str]:
    """End trainings with SIGTERM."""
    began = time.monotonic()
    if command(*FIT, folder=home / "fit").wait():
        return ["fit does not run"]
    usual, wrong, done = time.monotonic() - began, [], 0
    delta = (home / "fit" / "delta.safetensors").read_bytes()
    for number in count():
        folder = home / f"fit{number}"
        while True:
            resume = ["--resume"] * folder.is_dir()
            started = command(*FIT, *resume, folder=folder)
            try:
                code = started.wait(chance.uniform(usual / 2, usual))
                break
            except subprocess.TimeoutExpired:
                asked = time.monotonic()
                started.terminate()
                code = started.wait()
                done += 1
            if code not in (143, 0, -signal.SIGTERM) or time.monotonic() - asked > 10:
                wrong.append(f"SIGTERM {done}: code {code} after {time.monotonic() - asked:.1f} s")
        if code or (folder / "delta.safetensors").read_bytes() != delta:
            wrong.append(f"fit {number} ended otherwise than one that was not stopped")
        if done >= kills:
            return wrong
    return wrong


KINDS = {"fits": (fits, 90), "saves": (saves, 90), "studies": (studies, 20), "terms": (terms, 20)}


def main() -> int:
    """Kill, and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, (_, kills) in KINDS.items():
        parser.add_argument(f"--{name}", type=int, default=kills)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, help="a file to which a line with what was seen is added")
    given = parser.parse_args()
    torch.set_num_threads(1)
    seen: dict[str, Any] = {"seed": given.seed}
    for name, (kind, _) in KINDS.items():
        if asked := getattr(given, name):
            with tempfile.TemporaryDirectory() as folder:
                wrong = kind(asked, random.Random(given.seed), Path(folder))
            seen[name] = {"at_least": asked, "wrong": wrong}
            print(f"{name}: {asked} kills, {len(wrong)} wrong", *wrong, sep="\n  ", flush=True)
    if given.results:
        with given.results.open("a") as file:
            file.write(json.dumps({**seen, "run": describe_machine()}) + "\n")
    return int(any(each["wrong"] for name, each in seen.items() if name != "seed"))


if __name__ == "__main__":
    sys.exit(main())
