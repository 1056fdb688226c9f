from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from sparsetune.errors import StorageError
from sparsetune.studies.store import NAME, Row, open_store

ROW = Row("a", {"seed": 0}, {"top1": 0.5}, {"date": "today"})


def test_rows_and_notes_come_back(tmp_path):
    with open_store(tmp_path / "new", write=True) as store:
        store.add(ROW)
        store.note("selection", {"preset": "full"})
        store.note("selection", {"preset": "short"})
    with open_store(tmp_path / "new", write=False) as store:
        assert store.rows() == [ROW]
        assert store.noted("selection") == {"preset": "short"}
        assert store.noted("nothing") is None


def test_a_row_is_never_replaced(tmp_path):
    with open_store(tmp_path, write=True) as store:
        store.add(ROW)
        with pytest.raises(StorageError, match="cannot be used"):
            store.add(Row("a", {}, {}, {}))
    with open_store(tmp_path, write=False) as store:
        assert store.rows() == [ROW]


def test_one_writes_while_others_read(tmp_path):
    with open_store(tmp_path, write=True) as store:
        store.add(ROW)
        with open_store(tmp_path, write=False) as reader:
            assert reader.rows() == [ROW]
            store.add(Row("b", {}, {}, {}))
            assert len(reader.rows()) == 2
        with (
            pytest.raises(StorageError, match="being written by another process; wait for it"),
            open_store(tmp_path, write=True),
        ):
            pass


def test_what_is_no_store_is_one_sentence(tmp_path):
    with pytest.raises(StorageError, match=r"holds no results\.sqlite; run `sparsetune reproduce paper"):
        open_store(tmp_path, write=False).__enter__()
    (tmp_path / NAME).write_bytes(b"something else, longer than a header of a hundred bytes" * 9)
    with pytest.raises(StorageError, match=r"results\.sqlite cannot be used"):
        open_store(tmp_path, write=True).__enter__()


WRITER = """
import os, sys
from pathlib import Path
from sparsetune.studies.store import Row, open_store
for line in sys.stdin:
    if (child := os.fork()) == 0:
        with open_store(Path(sys.argv[1]), write=True) as store:
            number = len(store.rows())
            while True:
                store.add(Row(str(number), {"seed": number}, {"top1": [0.5] * 500}, {}))
                os.write(1, f"{number}\\n".encode())
                number += 1
    os.write(1, f"child {child}\\n".encode())
    os.waitpid(child, 0)
    os.write(1, b"dead\\n")
"""


def test_a_writer_killed_at_any_point_leaves_every_row_that_it_told_of(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    moments = random.Random(0)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        for number in range(20):
            print("go", file=writer.stdin, flush=True)
            told, child = [], None
            for line in writer.stdout:
                if line == "dead\n":
                    break
                if line.startswith("child"):
                    child = int(line.split()[1])
                else:
                    told.append(int(line))
                if child and (told or number % 2):  # every other one is let write a row before
                    time.sleep(moments.random() * 0.05)
                    os.kill(child, signal.SIGKILL)
                    child = None
            with open_store(tmp_path, write=False) as store:
                rows = store.rows()
            assert [row.settings["seed"] for row in rows] == list(range(len(rows)))
            assert all(row.result == {"top1": [0.5] * 500} for row in rows)
            assert len(rows) > max(told, default=-1)
        writer.stdin.close()
    assert len(rows) >= 10
    with sqlite3.connect(tmp_path / NAME) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
