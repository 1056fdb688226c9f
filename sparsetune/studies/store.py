"""The results: one SQLite file, one row a finished job; and where a study's files lie."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from sparsetune.delta import load, write_plain
from sparsetune.errors import DataError, StorageError
from sparsetune.host import DELTA, json_from, reason
from sparsetune.sliced import merge_
from sparsetune.train import Watch

Settings = dict[str, Any]
"""Of a job, plain JSON values; those that there are, and their defaults, are in ``jobs``."""
T = TypeVar("T")
NAME = "results.sqlite"
_TABLES = """
CREATE TABLE IF NOT EXISTS results (
    id TEXT PRIMARY KEY, settings TEXT NOT NULL, result TEXT NOT NULL, about TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Row:
    """A finished job.

    Attributes:
        id: The job's.
        settings: All of them.
        result: What was measured; ``diverged`` alone where the loss did not stay finite.
        about: Machine, versions, commit, date, data, and how many jobs ran side by side.
    """

    id: str
    settings: Settings
    result: dict[str, Any]
    about: dict[str, Any]

    def __post_init__(self) -> None:
        if not (isinstance(self.id, str) and all(isinstance(value, dict) for value in self.told)):
            raise TypeError("a row is not one of a finished job")

    @property
    def told(self) -> tuple[Settings, dict[str, Any], dict[str, Any]]:
        """All but the id."""
        return self.settings, self.result, self.about


def to_lines(first: dict[str, Any], rows: Iterable[Row]) -> str:
    """Return JSON lines: ``first``, which says what was asked for, then a line for each result."""
    return "".join(json.dumps(value) + "\n" for value in (first, *map(asdict, rows)))


def from_lines(path: Path, maker: str, read: Callable[[Any], T]) -> tuple[list[Row], T]:
    """Read what :func:`to_lines` gave.

    Args:
        path: Of the file.
        maker: What writes such files, for people.
        read: Makes its value of the first line.

    Raises:
        DataError: When the file is none of these.
    """
    try:
        first, *rest = map(json_from, path.read_text().splitlines())
        return [Row(**line) for line in rest], read(first)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is not a results.jsonl of {maker} ({reason(error)}); name one.") from error


class Store:
    """An open file of results; make one with :func:`open_store`.

    A row is there whole or not at all, whenever the process is killed. One process at a time writes; others
    may read.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.connection, self.path = connection, path

    def rows(self) -> list[Row]:
        """Return all rows, in the order in which they were finished."""
        with _explaining(self.path):
            found = self.connection.execute("SELECT id, settings, result, about FROM results ORDER BY rowid")
            return [Row(name, *map(json_from, values)) for name, *values in found]

    def add(self, row: Row) -> None:
        """Keep a row.

        Raises:
            StorageError: When it cannot be written.
        """
        values = (row.id, *(json.dumps(value) for value in row.told))
        self._write("INSERT INTO results VALUES (?, ?, ?, ?)", values)

    def note(self, name: str, value: Any) -> None:
        """Keep a JSON value under a name; it replaces an earlier one."""
        self._write("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, json.dumps(value)))

    def noted(self, name: str) -> Any:
        """Return the value kept under a name, or ``None``."""
        with _explaining(self.path):
            found = self.connection.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
            return json_from(found[0]) if found else None

    def _write(self, statement: str, values: tuple[str, ...]) -> None:
        with _explaining(self.path):
            self.connection.execute(statement, values)
            self.connection.execute("COMMIT")
            self.connection.execute("BEGIN IMMEDIATE")


@contextmanager
def open_store(folder: Path, *, write: bool) -> Iterator[Store]:
    """Open the results of ``folder``.

    Args:
        folder: Where ``results.sqlite`` lies; made if missing, to write.
        write: Keep every other writer out until the block ends.

    Raises:
        StorageError: When there are none to read, another process writes, or the file is damaged.
    """
    path = folder / NAME
    if not write and not path.is_file():
        raise StorageError(
            f"{folder} holds no {NAME}; run `sparsetune reproduce paper --out {folder}` first."
        )
    with _explaining(path):
        if write:
            folder.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=2.0, isolation_level=None)
    try:
        with _explaining(path):
            connection.execute("PRAGMA synchronous = EXTRA")
            if write:
                connection.execute("BEGIN IMMEDIATE")
                for statement in _TABLES.split(";"):
                    connection.execute(statement)
                connection.execute("COMMIT")
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("PRAGMA busy_timeout = 60000")
        yield Store(connection, path)
    finally:
        connection.close()


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    """Turn what SQLite raises into one sentence."""
    try:
        yield
    except (sqlite3.Error, OSError, ValueError, TypeError, RecursionError) as error:
        if "locked" in str(error):
            raise StorageError(
                f"{path} is being written by another process; wait for it, or choose another --out."
            ) from error
        raise StorageError(f"{path} cannot be used ({reason(error)}); choose another --out.") from error


RUNS, WHOLE = "runs", "whole.safetensors"


@dataclass(frozen=True)
class Place:
    """Where jobs are done.

    Attributes:
        folder: Holds the results, and ``runs`` with a folder for each training.
        sources: Data name -> folder to read it from, where that is not its usual place.
    """

    folder: Path
    sources: dict[str, str]

    def run(self, identity: str) -> Path:
        """Return the folder of a training."""
        return self.folder / RUNS / identity

    def rows(self, jobs: Collection[str]) -> dict[str, Row]:
        """Return the results of jobs, by id; those that there are."""
        with open_store(self.folder, write=False) as store:
            return {row.id: row for row in store.rows() if row.id in jobs}

    def data(self, settings: Settings) -> str:
        """Return where a job's data is read from."""
        name = str(settings["data"])
        return self.sources.get(name, name)

    def start(self, settings: Settings) -> Path | None:
        """Return the plain checkpoint that a job starts from, written once; ``None`` where there is none."""
        if settings["init_from"] is None:
            return None
        folder = self.run(settings["init_from"])
        path = folder / WHOLE
        if not path.is_file():
            write_plain(merge_(load(folder / DELTA)), path)
        return path


@dataclass(frozen=True)
class Task:
    """A job at work, whose needs are done.

    Attributes:
        id: The job's.
        settings: All of them.
        place: Where.
        budget: Seconds after which a training is saved and stopped.
        watch: Called after each step and each epoch of a training.
    """

    id: str
    settings: Settings
    place: Place
    budget: float | None = None
    watch: Watch | None = None

    @property
    def folder(self) -> Path:
        """Of its training."""
        return self.place.run(self.id)
