"""Where jobs are done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparsetune.adapt import merge_
from sparsetune.folders import DELTA
from sparsetune.reproduce.jobs import Settings
from sparsetune.saving import load, write_plain

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
