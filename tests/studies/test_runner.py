from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from inline import Inline

from sparsetune.studies.jobs import in_order
from sparsetune.studies.runner import Processes, deciding_first, go, take_over
from sparsetune.studies.store import Place, open_store


def plain(rows):
    """Results without what depends on time and machine."""
    return {row.id: {k: v for k, v in row.result.items() if k != "seconds"} for row in rows}


def test_jobs_are_done_once_each_after_its_needs(small, inline, tmp_path):
    jobs = [*in_order([small(kind="ensemble", members=2), small(kind="weights"), small()])]
    with open_store(tmp_path, write=True) as store:
        progress = go(jobs, store, inline)
        assert inline.given == [job.id for job in jobs]
        assert {row.id for row in store.rows()} == progress.finished == set(inline.given)
        go(jobs, store, inline)
        assert len(inline.given) == len(jobs)


def test_results_of_elsewhere_count_but_where_files_are_wanted_that_are_not_here(small, inline, tmp_path):
    """Members of an ensemble that is still open are trained again, with what they start from."""
    open_one, done_one = small(kind="ensemble", members=2), small(kind="ensemble", members=2, seed=5)
    jobs = [*in_order([open_one, done_one, small()])]
    with open_store(tmp_path / "there", write=True) as store:
        go(jobs, store, Inline(Place(tmp_path / "there", {})))
        known = [row for row in store.rows() if row.id != open_one.id]
    with open_store(tmp_path, write=True) as store:
        take_over(jobs, known, store)
        again = {each.id for each in in_order([open_one])}
        assert {row.id for row in store.rows()} == {row.id for row in known} - again
        go(jobs, store, inline)
        assert {*inline.given} == again
        assert plain(row for row in store.rows() if row.id != open_one.id) == plain(known)
        take_over(jobs, known, store)


def test_what_answers_a_question_with_the_least_work_comes_first(small):
    """Twenty epochs, two, and one beside the two; an ensemble comes behind what it needs."""
    long, short, one = small(epochs=20), small(epochs=2, seed=1), small(epochs=1, seed=2)
    both = small(kind="ensemble", members=2, seed=3)
    jobs = [*in_order([long, both, short, one])]
    order = deciding_first(jobs, [{long.id}, {both.id}, {short.id}, {short.id, one.id}, set()])
    assert order == [short, one, *in_order([both]), long]
    assert deciding_first(jobs, []) == jobs


def test_a_job_that_fails_takes_those_that_need_it_along_but_no_other(small, inline, tmp_path):
    wrong, right = small(kind="weights", model="no_such_model"), small()
    with open_store(tmp_path, write=True) as store:
        progress = go([*in_order([wrong, right])], store, inline)
    assert progress.failed.keys() == {wrong.needs[0].id}
    assert "model 'no_such_model' is unknown" in progress.failed[wrong.needs[0].id]
    assert progress.finished == {right.id}


def test_a_loss_that_is_no_number_is_a_result(small, inline, tmp_path):
    job = small(lr=1e30, model="vgg19_cifar", model_kwargs=None, kind="weights")
    with open_store(tmp_path, write=True) as store:
        go([*in_order([job])], store, inline)
        rows = {row.id: row.result for row in store.rows()}
    assert rows[job.needs[0].id]["diverged"].startswith("the loss became")
    assert rows[job.id] == {"diverged": "the training did not converge."}


def test_a_budget_stops_and_the_next_call_goes_on_to_the_same(small, inline, place, tmp_path):
    jobs = [small(epochs=20, seed=seed) for seed in range(2)]
    calls = 0
    with open_store(tmp_path, write=True) as store:
        while len(store.rows()) < 2:
            started = time.monotonic()
            go(jobs, store, inline, time_budget=0.6)
            assert time.monotonic() - started < 15
            calls += 1
        assert calls > 1
        found = plain(store.rows())
    straight = type(inline)(type(place)(tmp_path / "straight", {}))
    with open_store(tmp_path / "straight", write=True) as store:
        go(jobs, store, straight)
        assert plain(store.rows()) == found


def test_a_worker_killed_in_mid_run_costs_its_last_checkpoint_no_more(small, place, inline, tmp_path):
    jobs = [small(epochs=30), small(epochs=2, seed=1)]
    crew, killed, lost = Processes(1, place), [], []

    def kill(progress, event):
        if event is not None and event.kind == "lost":
            lost.append(event.job)
        if event is not None and event.kind == "step" and event.value["done"] > 0.2 and not killed:
            killed.append(crew.workers[0].process.pid)
            os.kill(killed[0], signal.SIGKILL)

    with open_store(tmp_path, write=True) as store:
        progress = go(jobs, store, crew, watch=kill)
        found = plain(store.rows())
    assert lost == [jobs[0].id]
    assert not progress.failed
    lines = (place.run(jobs[0].id) / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 30
    inline.place = type(place)(tmp_path / "straight", {})
    with open_store(tmp_path / "straight", write=True) as store:
        go(jobs, store, inline)
        assert plain(store.rows()) == found


KILLED = """
import json, os, sys
from pathlib import Path
from sparsetune.studies.runner import Processes
from sparsetune.studies.jobs import Job
from sparsetune.studies.runner import go
from sparsetune.studies.store import open_store
from sparsetune.studies.store import Place
folder = Path(sys.argv[1])
jobs = [Job(settings) for settings in json.loads(sys.argv[2])]
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
for line in sys.stdin:
    if (child := os.fork()) == 0:
        crew = Processes(1, Place(folder, {}))
        with open_store(folder, write=True) as store:
            go(jobs, store, crew, watch=lambda *_: say("workers", *(w.process.pid for w in crew.workers)))
        os._exit(0)
    say("child", child)
    say("dead", os.waitpid(child, 0)[1])
"""


def test_workers_end_with_the_process_that_gives_the_jobs(small, tmp_path):
    """Even when that is killed while they work: nobody is left to take what they finish."""
    job = small(epochs=100_000)
    code = (
        "import json, sys; from pathlib import Path; from types import SimpleNamespace;"
        "from sparsetune.studies.runner import Processes; from sparsetune.studies.store import Place;"
        "crew = Processes(1, Place(Path(sys.argv[1]), {}));"
        "crew.give(SimpleNamespace(id=sys.argv[2], settings=json.loads(sys.argv[3])), None)\n"
        "while not any(event.kind == 'step' for event in crew.events(1)): pass\n"
        "print(crew.workers[0].process.pid, flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", code, str(tmp_path), job.id, json.dumps(job.settings)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        worker = int(process.stdout.readline())
        os.kill(worker, 0)
        process.kill()
    until = time.monotonic() + 30
    while running(worker) and time.monotonic() < until:
        time.sleep(0.1)
    assert not running(worker)


def running(pid):
    """Whether a process runs; one that has ended may still wait for its parent to notice."""
    status = Path(f"/proc/{pid}/status")
    return status.is_file() and "State:\tZ" not in status.read_text()


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_the_results_are_those_of_an_undisturbed_run(small, inline, tmp_path, kills):
    jobs = [small(epochs=4 + 3 * kills, seed=seed) for seed in range(2)]
    folder, straight = tmp_path / "killed", tmp_path / "straight"
    settings = json.dumps([job.settings for job in jobs])
    command = [sys.executable, "-c", KILLED, str(folder), settings]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as mother:
        for number in range(kills):
            assert launch(mother, lambda number=number: moment(folder, number)) == signal.SIGKILL
            with sqlite3.connect(folder / "results.sqlite") as connection:
                assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert launch(mother, lambda: False) == 0
        mother.stdin.close()
    inline.place = type(inline.place)(straight, {})
    with open_store(straight, write=True) as one, open_store(folder, write=False) as other:
        go(jobs, one, inline)
        assert plain(other.rows()) == plain(one.rows())
        assert len(other.rows()) == len(jobs)


def launch(mother: subprocess.Popen, now: Callable[[], bool]) -> int:
    """Start all jobs in a child of ``mother``; kill it when it is time. Return what it ended with."""
    print("go", file=mother.stdin, flush=True)
    workers: set[int] = set()
    child = None
    for line in mother.stdout:
        word, *numbers = line.split()
        if word == "child":
            child = int(numbers[0])
        elif word == "workers":
            workers |= set(map(int, numbers))
            if child and now():
                os.kill(child, signal.SIGKILL)
                child = None
        else:
            wait_for_the_end_of(workers)
            return int(numbers[0])
    raise AssertionError("the mother died")


def moment(folder: Path, number: int) -> bool:
    """Whether the training has come as far as this kill wants: an epoch more each time, whoever's it is."""
    lines = [len(path.read_text().splitlines()) for path in folder.glob("runs/*/metrics.jsonl")]
    return sum(lines) > 3 * number


def wait_for_the_end_of(workers: set[int]) -> None:
    """Workers whose master is gone end by themselves, within a step."""
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "a worker went on without its master"
        time.sleep(0.05)
