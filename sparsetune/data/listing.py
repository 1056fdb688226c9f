"""What lies in a folder: pictures, Parquet files and folders, and what is left out and why."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sparsetune.data.images import suffixes
from sparsetune.errors import DataError

SYSTEM = re.compile(
    r"\..*|__macosx|__pycache__|@eadir|@tmp|@recycle|@recently-snapshot|#recycle|#snapshot|\$recycle\.bin|recycler|"
    r"found\.\d+|lost\+found|system volume information|network trash folder|temporary items|"
    r"thumbs\.db.*|ehthumbs.*\.db|desktop\.ini|icon\r",
    re.IGNORECASE | re.DOTALL,
)
"""Hidden names, and those of what systems and their tools put into people's folders."""

UNREADABLE = re.compile(
    r"\.(ai|arw|avif|avifs|bpg|cr2|cr3|cur|dds|dng|emf|eps|exr|hdr|hei[cf]|hif|icns|ico|jp2|jxl|nef|orf|pcx|ps[bd]|"
    r"qoi|raf|raw|rw2|sgi|svgz?|tga|webp|wmf|xbm|xcf|xpm)"
)
"""Suffixes of pictures; those that are not read here are told apart from other files."""

Reason = tuple[str, str]
"""A kind of what is left out, and its folder or suffix."""

IN = "in"
HIDDEN = "hidden or system"
OTHER = "that are no pictures"
FORMAT = "of formats that cannot be read"
LINK = "links or devices without a file"


@dataclass(frozen=True)
class Folder:
    """A folder and all below it, sorted by name.

    Args:
        path: Where it is.
        pictures: The paths of the pictures directly in it.
        tables: The Parquet files directly in it.
        folders: Those directly in it.
        left: How many files directly in it, or in hidden folders of it, are left out for which reason.
    """

    path: Path
    pictures: tuple[str, ...]
    tables: tuple[Path, ...]
    folders: tuple[Folder, ...]
    left: Counter[Reason]

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.name

    @cached_property
    def count(self) -> int:
        """The number of pictures in it, at any depth."""
        return len(self.pictures) + sum(each.count for each in self.folders)

    @cached_property
    def filled(self) -> tuple[Folder, ...]:
        """The folders directly in it that hold pictures, at any depth."""
        return tuple(each for each in self.folders if each.count)

    @cached_property
    def all_tables(self) -> tuple[Path, ...]:
        """The Parquet files in it, at any depth."""
        return tuple(file for each in self.walk() for file in each.tables)

    def walk(self) -> Iterator[Folder]:
        """Yield it and every folder below."""
        yield self
        for each in self.folders:
            yield from each.walk()

    def below(self) -> list[str]:
        """Return the sorted paths of all pictures in it, at any depth."""
        return sorted(path for each in self.walk() for path in each.pictures)

    def left_below(self) -> Counter[Reason]:
        """Count what is left out of it, at any depth."""
        return sum((each.left for each in self.walk()), Counter())


def scan(path: Path, around: tuple[tuple[int, int], ...] = ()) -> Folder:
    """Look at a folder and all below it, through links too; no file is opened.

    Args:
        path: The folder.
        around: What identifies the folders around it, into which no link is followed.

    Raises:
        DataError: When a folder cannot be read.
    """
    pictures, tables, folders, left = [], [], [], Counter[Reason]()
    own = _identity(path)
    for entry in _entries(path):
        hidden = SYSTEM.fullmatch(entry.name) is not None
        if _holds(entry.is_dir):
            if hidden:
                left[IN, entry.name] += _hidden_pictures(entry.path)
            elif _identity(Path(entry.path)) in (*around, own):
                left[LINK, ""] += 1
            else:
                folders.append(scan(path / entry.name, (*around, own)))
        elif hidden:
            left[HIDDEN, ""] += 1
        elif not _holds(entry.is_file):
            left[LINK, ""] += 1
        elif (suffix := Path(entry.name).suffix.lower()) in suffixes():
            pictures.append(str(path / entry.name))
        elif suffix == ".parquet":
            tables.append(path / entry.name)
        else:
            left[FORMAT if UNREADABLE.fullmatch(suffix) else OTHER, suffix] += 1
    return Folder(path, tuple(pictures), tuple(tables), tuple(folders), +left)


def _entries(path: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"folder {str(path)!r} cannot be read ({error.strerror}).") from error


def _holds(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:  # a link to itself
        return False


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _hidden_pictures(path: str) -> int:
    """Count the pictures in a hidden folder, at any depth."""
    found = (Path(name).suffix.lower() for _, _, names in os.walk(path) for name in names)
    return sum(suffix in suffixes() or UNREADABLE.fullmatch(suffix) is not None for suffix in found)
