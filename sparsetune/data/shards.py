"""Which Parquet files of a folder make up which split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsetune.data.listing import Folder
from sparsetune.data.naming import SplitName
from sparsetune.errors import DataError

_OF = re.compile(r"-\d+-of-(\d+).*", re.IGNORECASE)


@dataclass(frozen=True)
class _Shard:
    """A file as part of a split: ``home`` and ``prefix`` tell its data set, ``place`` what it follows."""

    file: Path
    home: Path
    prefix: tuple[str, ...]
    name: SplitName | None
    place: Path


def find(root: Folder) -> dict[str, list[Path]]:
    """Group Parquet files by split: kind -> files.

    A split is told by the file's name (``train-00000-of-00002.parquet``, ``cifar-test.parquet``) or else by
    its folder's (``train/0000.parquet``). Files directly in the folder come before those in sub-folders.

    Raises:
        DataError: When the files are no splits, of several data sets, or not all there.
    """
    files = root.tables or tuple(file for each in root.walk() for file in each.tables)
    shards = [_read(file, root.path) for file in files]
    homes = sorted({shard.home for shard in shards})
    if len(homes) > 1:
        names = ", ".join(home.relative_to(root.path).as_posix() for home in homes)
        raise DataError(
            f"{str(root.path)!r} holds Parquet files in {names}; "
            "expected one data set; name one of these folders."
        )
    known = [shard for shard in shards if shard.name]
    if shards and not known:
        raise DataError(
            f"{files[0].name} in {str(homes[0])!r} is of no known split; expected names like "
            "train-00000-of-00001.parquet and test-00000-of-00001.parquet, or folders train and test."
        )
    prefixes = sorted({shard.prefix for shard in known})
    if len(prefixes) > 1:
        names = ", ".join(" ".join(each) or "no name" for each in prefixes)
        raise DataError(
            f"{str(homes[0])!r} holds Parquet files of {names}; expected one data set; move the others away."
        )
    splits: dict[str, list[Path]] = {}
    places: dict[str, tuple[str, Path]] = {}
    for shard in known:
        assert shard.name is not None
        kind, place = shard.name.kind, (shard.name.word, shard.place)
        if places.setdefault(kind, place) != place:
            raise DataError(
                f"{splits[kind][0].relative_to(root.path)} and {shard.file.relative_to(root.path)} of "
                f"{str(root.path)!r} can each be the {kind} split; expected one, so move the other away."
            )
        splits.setdefault(kind, []).append(shard.file)
    for some in splits.values():
        _check_complete(some)
    return splits


def _read(file: Path, root: Path) -> _Shard:
    name = SplitName.read(_OF.sub("", file.stem)) or _by_first(file.stem)
    if name is not None or file.parent == root:
        prefix = name.affix if name and not name.first else ()
        return _Shard(file, file.parent, prefix, name, file.parent)
    name = SplitName.read(file.parent.name)
    if name is None or name.affix not in ((), ("partial",)):
        return _Shard(file, file.parent, (), None, file.parent)
    return _Shard(file, file.parent.parent, (), name, file.parent)


def _by_first(stem: str) -> SplitName | None:
    """Read a name by the word in front of its first hyphen."""
    return SplitName.read(stem.partition("-")[0])


def _check_complete(files: Sequence[Path]) -> None:
    for file in files:
        if match := _OF.search(file.stem):
            pattern = f"{file.stem[: match.start()]}-*-of-{match[1]}*.parquet"
            present = len(list(file.parent.glob(pattern)))
            if present != int(match[1]):
                raise DataError(
                    f"{str(file.parent / pattern)!r} matches {present} files; expected all {int(match[1])}."
                )
