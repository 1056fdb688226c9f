"""A real cluster on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sparsetune.errors import ConfigError
from sparsetune.studies.runner import go
from sparsetune.studies.store import open_store

PORT = 6411


@pytest.fixture
def address(tmp_path_factory):
    """A cluster of two workers, started in processes of its own."""
    pytest.importorskip("ray")
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    where = tmp_path_factory.mktemp("r")
    options = [f"--port={PORT}", "--num-cpus=2", "--include-dashboard=false", f"--temp-dir={where}"]
    head = subprocess.Popen(
        [*ray, "start", "--head", "--block", "--disable-usage-stats", *options],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in head.stdout:
        if "--block" in line:
            break
    yield f"127.0.0.1:{PORT}"
    os.killpg(head.pid, signal.SIGTERM)
    head.wait()


def busy_workers() -> list[int]:
    """Processes of the cluster that do a job now."""
    found = []
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if command.read_bytes().startswith(b"ray::do"):
                found.append(int(command.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_a_worker_of_a_cluster_killed_costs_its_last_checkpoint_no_more(
    small, place, inline, address, tmp_path
):
    from sparsetune.studies.runner import Cluster

    jobs = [small(epochs=40), small(epochs=3, seed=1), small(epochs=3, seed=2)]
    metrics = place.run(jobs[0].id) / "metrics.jsonl"
    killed, lost = [], []

    def kill(progress, event):
        if event is not None and event.kind == "lost":
            lost.append(event.job)
        begun = metrics.is_file() and len(metrics.read_text().splitlines()) > 2
        if begun and not killed and len(progress.finished) == 2 and len(workers := busy_workers()) == 1:
            killed.extend(workers)
            os.kill(killed[0], signal.SIGKILL)

    with open_store(tmp_path, write=True) as store:
        progress = go(jobs, store, Cluster(address, 2, place), watch=kill)
        rows = {row.id: {**row.result, "seconds": 0} for row in store.rows()}
    assert killed
    assert lost == [jobs[0].id]
    assert not progress.failed
    inline.place = type(place)(tmp_path / "straight", {})
    with open_store(tmp_path / "straight", write=True) as store:
        go(jobs, store, inline)
        assert rows == {row.id: {**row.result, "seconds": 0} for row in store.rows()}


def test_no_cluster_is_one_sentence(place):
    pytest.importorskip("ray")
    from sparsetune.studies.runner import Cluster

    with pytest.raises(ConfigError, match=r"no Ray cluster answers at '127\.0\.0\.1:1' .*; start one with"):
        Cluster("127.0.0.1:1", 1, place)


def test_without_ray_there_is_a_word_what_to_install(place, monkeypatch):
    from sparsetune.studies.runner import Cluster

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"Ray is not installed; pip install 'sparsetune\[ray\]'\."):
        Cluster("auto", 1, place)
