from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from sparsetune.cli import papers
from sparsetune.studies.paper.experiments import EXPERIMENTS
from sparsetune.studies.paper.report import read_results
from sparsetune.studies.paper.results import Selection
from sparsetune.studies.store import Row, open_store

COMMAND = [sys.executable, "-c", "from sparsetune.cli import main; main()"]
SMOKE = "reproduce paper --preset smoke --only table3,fig6"


@pytest.mark.parametrize("name", [command.name for command in papers.registered_commands])
def test_each_command_has_help_with_an_example(sparsetune, name):
    told = sparsetune("reproduce", name, "--help").out
    assert f"Example: sparsetune reproduce {name} " in told
    assert "--json" in told
    assert max(map(len, told.splitlines())) <= 80


def test_a_dry_run_says_what_there_is_to_do(sparsetune):
    value = sparsetune("reproduce paper --preset full --dry-run --json").json
    assert [row["experiment"] for row in value["experiments"]][:2] == ["table1", "fig1"]
    assert {row["experiment"] for row in value["experiments"]} == set(EXPERIMENTS)
    assert value["open"] == value["jobs"] == len(Selection(preset="full").jobs())
    assert value["seconds"] is None
    assert not Path("runs").exists()
    told = sparsetune("reproduce paper --preset full --only table3 --seeds 0,1 --dry-run")
    assert told.out.splitlines()[1].split() == ["table3", "8", "8", "?"]
    assert told.err == "no estimate: nothing was trained on this machine yet.\n"


def test_results_kept_in_a_file_are_not_computed_again(sparsetune):
    words = "reproduce paper --preset smoke --only table3 --results kept.jsonl --json"
    first = sparsetune(f"{words} --out one").json
    rows, selection = read_results(Path("kept.jsonl"))
    assert len(rows) == first["added"] == first["jobs"] == 4
    assert selection["preset"] == "smoke"
    again = sparsetune(f"{words} --out two").json
    assert (again["finished"], again["added"]) == (4, 0)
    page, other = (Path(folder, "report/index.html").read_text() for folder in ("one", "two"))
    assert page == other
    sparsetune(f"{words} --seeds 1 --out two")
    more, _ = read_results(Path("kept.jsonl"))
    assert [row.settings["seed"] for row in more] == [0] * 4 + [1] * 4
    assert more[:4] == rows


def test_it_is_stopped_goes_on_and_ends_in_a_report(sparsetune, in_process):
    with in_process():
        stopped = sparsetune(f"{SMOKE} --time-budget 0.1s --json --out o")
    assert stopped.json["finished"] < stopped.json["jobs"] == 9
    assert stopped.err.splitlines()[-1] == "what is finished is kept; the same command goes on."
    done = sparsetune(f"{SMOKE} --json --out o")
    assert done.json | {"added": 0} == {
        "jobs": 9,
        "finished": 9,
        "added": 0,
        "failed": {},
        "report": "o/report/index.html",
    }
    assert sum("WRN" in line or "wrn28_4" in line for line in done.err.splitlines()) == done.json["added"]
    page = Path("o/report/index.html").read_text()
    again = sparsetune(f"{SMOKE} --out o")
    assert "9 of 9 jobs" in again.out
    assert Path("o/report/index.html").read_text() == page
    assert (
        sparsetune("reproduce report o/report/results.jsonl --out elsewhere").out == "elsewhere/index.html\n"
    )
    assert Path("elsewhere/index.html").read_text() == page
    estimated = sparsetune("reproduce paper --preset full --only table3 --dry-run --json --out o").json
    assert estimated["seconds"] > 600


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--preset smok", "preset 'smok' is unknown; did you mean smoke"),
        ("--only fig7", "experiment 'fig7' is unknown; did you mean"),
        ("--only table2", "table2 is not in preset short; choose --preset full."),
        ("--seeds 0,x", "seeds '0,x' are not whole numbers with commas between, such as 0,1,2."),
        ("--time-budget soon", "duration 'soon' is not a number"),
        ("--data cifar10", "data 'cifar10' is not NAME=FOLDER, such as cifar10=data/cifar10."),
        ("--data mnist=x", "data set 'mnist' is unknown;"),
        ("--preset smoke --train-limit 9999", "train_limit 9999 cannot be met; expected 1 to 1438"),
        ("--epochs 0", "epochs 0 is not a whole number of 1 or more."),
    ],
)
def test_a_mistake_is_one_sentence(refused, words, told):
    assert refused(f"reproduce paper {words}").startswith(told)


def test_data_that_is_nowhere_or_another_is_one_sentence(refused, pictures):
    told = refused("reproduce paper --only fig2 --data", f"cifar10={pictures}")
    assert "has 2 classes, but cifar10 has 10; give the folder of that data set." in told
    assert "holds no results.sqlite" in refused("reproduce report .")
    assert "is not a results.jsonl" in refused("reproduce report nothing")


def test_two_at_once_in_one_folder_are_refused(refused):
    with open_store(Path("o"), write=True) as store:
        store.add(Row("a", {}, {}, {}))
        assert "is being written by another process" in refused(f"{SMOKE} --out o")


def test_ctrl_c_ends_with_130_and_keeps_what_is_finished():
    process = subprocess.Popen(
        [*COMMAND, *SMOKE.split(), "--out", "o"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        start_new_session=True,
    )
    with process:
        for line in process.stderr:
            if "wrn28_4" in line:
                os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
                break
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "interrupted; all that was finished is kept."
    assert "Traceback" not in err
    with open_store(Path("o"), write=False) as store:
        rows = store.rows()
    assert len(rows) >= 1
    assert json.loads(json.dumps([asdict(row) for row in rows]))
    assert "Traceback" not in Path("o/worker.log").read_text()
