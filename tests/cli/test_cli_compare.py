from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparsetune.studies.compare.methods import Comparison
from sparsetune.studies.store import open_store

SMOKE = "compare --preset smoke --only norm,lora --seeds 0"


def test_it_is_stopped_goes_on_and_ends_in_results_and_a_picture(sparsetune, in_process):
    with in_process():
        stopped = sparsetune(f"{SMOKE} --time-budget 1s --json --out o")
    wanted = Comparison(preset="smoke", only=("norm", "lora"), seeds=(0,)).jobs
    assert stopped.json["finished"] < stopped.json["jobs"] == len(wanted)
    assert stopped.err.splitlines()[-1] == "what is finished is kept; the same command goes on."
    done = sparsetune(f"{SMOKE} --json --out o").json
    assert done["added"] + stopped.json["finished"] == done["finished"] == done["jobs"]
    assert done["failed"] == {}
    first, *rows = map(json.loads, Path(done["results"]).read_text().splitlines())
    assert first["comparison"]["preset"] == "smoke"
    with open_store(Path("o"), write=False) as store:
        assert [asdict(row) for row in store.rows()] == rows
    final = [row for row in rows if "stored" in row["result"]]
    assert len(final) == 2 * (1 + 5)
    for row in final:
        assert {"date", "processor", "versions", "commit", "jobs", "data"} <= set(row["about"])
        sizes = [each["bytes"] for each in row["result"]["stored"]]
        assert sizes == sorted(sizes, reverse=True)
    with Image.open(done["picture"]) as picture:
        assert picture.format == "PNG"
    again = sparsetune(f"{SMOKE} --out o").out
    assert "PEFT LoRA: LoRA 16" in again
    assert f"{done['jobs']} of {done['jobs']} jobs" in again


def test_a_dry_run_says_what_there_is_to_do(sparsetune):
    value = sparsetune("compare --preset full --dry-run --json").json
    assert value["open"] == value["jobs"] == len(Comparison(preset="full").jobs)
    assert value["seconds"] is None
    assert {row["group"] for row in value["groups"]} >= {"random: PEFT LoRA", "trained: low rank"}
    assert not Path("runs").exists()


def pictures_in(folder):
    """A hundred and twenty training and fifty test pictures of ten classes, each of its own grey."""
    for split, count in (("train", 12), ("test", 5)):
        for label, number in product(range(10), range(count)):
            path = folder / split / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(100 * label + number).integers(0, 40, (8, 8, 3))
            Image.fromarray((20 * label + noise).astype(np.uint8)).save(path)
    return folder


def test_results_are_those_of_the_pictures_wherever_they_lie_and_of_no_others(sparsetune, in_process):
    one, other = pictures_in(Path("one/digits")), Path("two/digits")
    shutil.copytree(one, other)
    Image.new("RGB", (9, 8)).save(other / "train" / "3" / "0.png")
    words = "compare --preset smoke --only head --seeds 0 --json --out o"
    with in_process():
        count = sparsetune(f"{words} --data digits={one}").json["finished"]
    assert count == 1 + 2 * (1 + 1 + 1)  # a backbone; of each benchmark a tuning, a training, a pace

    def left(*data):
        told = sparsetune(f"{words} --dry-run", *data)
        return told.json["open"], told.err.splitlines()[:1]

    unused = f"{count} stored results are of other data or another version: kept, and not used."
    assert left("--data", f"digits={other}") == (count, [unused])
    assert left() == (count, [unused])  # scikit-learn's digits
    one.rename("elsewhere")
    assert left("--data", "digits=elsewhere") == (0, [])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--preset smok", "preset 'smok' is unknown; did you mean smoke"),
        ("--only LoRA", "family of methods 'LoRA' is unknown"),
        ("--seeds a", "seeds 'a' are not whole numbers"),
        ("--data cifar10", "data 'cifar10' is not NAME=FOLDER"),
    ],
)
def test_a_mistake_is_one_sentence(refused, words, told):
    assert refused(f"compare {words}").startswith(told)


def test_without_peft_it_is_left_out(sparsetune, in_process, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with in_process():
        told = sparsetune("compare --preset smoke --only norm,lora --seeds 0 --out o")
    assert told.err.splitlines()[0] == "left out: PEFT is not installed; pip install 'sparsetune[peft]'."
    assert "7 of 7 jobs" in told.out
