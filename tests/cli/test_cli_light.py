"""What needs no model is told without torch, and what may be chosen is completed by the shell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sparsetune as st
from sparsetune.spec.config import AMPS, PRECISIONS, SCHEDS
from sparsetune.spec.learn import DIMS, FROZEN

DELTA = Path(__file__).parent.parent / "golden" / "format1-plain.safetensors"
HEAVY = ("torch", "timm", "torchvision", "accelerate", "matplotlib", "pyarrow", "sklearn", "huggingface_hub")
MAIN = "import sys; from sparsetune.cli import main; sys.argv[0] = 'sparsetune'"
LOADED = f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("--help", 0, "Your pictures: sparsetune fit"),
        ("--version", 0, f"{st.__version__}\n"),
        ("fit --help", 0, "Pictures a step."),
        ("compare --help", 0, "Trainings side by side."),
        ("nosuch", 2, "No such command 'nosuch'"),
        ("fit --nosuch 3", 2, "No such option"),
        (
            "fit --fraction 1.5 --sched cosin --model-kwargs x",
            2,
            "error: fraction 1.5 is not between 0 and 1",
        ),
        ("fit --fraction .1 --budget 20KB", 2, "error: --budget chooses what is learned"),
        ("plan --model wrn28_4 --dim depth", 2, "dim 'depth' is not one of out, in, height, width."),
        ("compress a -o b --dtype int4", 2, "error: dtype 'int4' is not one of bf16, fp16, int8, int6."),
        (f"info {DELTA}", 0, "fingerprint  "),
        (f"info {DELTA} --json", 0, '"fingerprint": "'),
        ("info nosuch", 2, "error: nosuch is not a file"),
    ],
)
def test_it_answers_without_torch(words, code, told):
    script = f"{MAIN}\ntry: main()\nfinally: {LOADED}"
    command = [sys.executable, "-c", script, *words.split()]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stderr
    assert told in (result.stdout if code == 0 else result.stderr)
    assert result.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("words", ["fit --nosuch 3", "fit --fraction 1.5", "info nosuch"])
def test_a_mistake_is_told_without_numpy(words):
    script = f"{MAIN}\ntry: main()\nfinally: print('numpy' in sys.modules, file=sys.stderr)"
    command = [sys.executable, "-c", script, *words.split()]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == "False"


def completed(words: str) -> list[str]:
    """What bash is told of the last word, which may be empty."""
    count = words.count(" ")
    env = {"_SPARSETUNE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(count)}
    command = [sys.executable, "-c", f"{MAIN}; main()"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | env)
    assert result.stderr == ""
    return result.stdout.split()


@pytest.mark.parametrize(
    ("words", "choices"),
    [
        ("sparsetune fit --sched ", SCHEDS),
        ("sparsetune fit --amp ", AMPS),
        ("sparsetune fit --dtype ", ("float32", *PRECISIONS)),
        ("sparsetune plan --dim ", DIMS),
        ("sparsetune plan --frozen ", FROZEN),
        ("sparsetune compress --dtype ", PRECISIONS),
    ],
)
def test_choices_are_in_the_help_and_completed(sparsetune, words, choices):
    assert completed(words) == [*choices]
    assert completed(words + choices[-1][:2]) == [each for each in choices if each[:2] == choices[-1][:2]]
    command, option = words.split()[1:]
    told = sparsetune(command, "--help").out
    lines = iter(told.splitlines())
    about = next(line for line in lines if line.startswith("│") and f" {option} " in line)
    about += next(lines) + next(lines)
    assert all(choice in about for choice in choices)


def test_optimisers_are_completed_from_timm():
    assert {"momentum", "muon"} <= {*completed("sparsetune fit --opt m")}
    assert completed("sparsetune fit --opt yel") == ["yellowfin"]
