"""A local folder as a data set: which files are which split, and whether the splits fit together."""

from __future__ import annotations

import re
from pathlib import Path

from sparsetune.data import folder, parquet
from sparsetune.data.splits import Split, Splits, split_in_two
from sparsetune.errors import DataError

TRAIN, TESTS = "train", ("test", "val", "valid", "validation")
TEST_SHARE = 0.2

_FILE_NAME = re.compile(rf"({'|'.join((TRAIN, *TESTS))})(?:-(\d+)-of-(\d+).*|-.*)?\.parquet", re.IGNORECASE)


def read(path: Path, split_seed: int) -> Splits:
    """Read an ImageFolder tree, or a folder of Parquet files.

    The test split is the first of test, val, valid and validation. A folder without any gives a fifth of
    each class to the test split.

    Args:
        path: The folder.
        split_seed: Fixes that choice.

    Raises:
        DataError: When the folder is missing, holds no such data, or its splits do not fit together.
    """
    if not path.is_dir():
        raise DataError(
            f"{str(path)!r} is not a folder; expected an ImageFolder tree or Parquet files in a folder."
        )
    found = _parquet_splits(path) or _folder_splits(path)
    train_name = TRAIN if TRAIN in found else None
    test_name = next((name for name in TESTS if name in found), None)
    parts = {name: _read_split(found[name]) for name in (train_name, test_name) if name}
    names = {classes for _, classes in parts.values()}
    if len(names) > 1:
        raise DataError(
            f"{train_name} and {test_name} of {str(path)!r} have different class names"
            f"{_difference(*names)}; expected the same ones."
        )
    splits = [split for split, _ in parts.values() if split]
    if any(len(split) == 0 for split in splits):
        raise DataError(f"a split of {str(path)!r} holds no images; expected at least one.")
    classes = names.pop() or _numbers(splits)
    if train_name and test_name:
        return Splits(splits[0], splits[1], classes)
    if test_name:
        return Splits(None, splits[0], classes)
    train, test = split_in_two(splits[0], TEST_SHARE, split_seed)
    if len(test) == 0:
        raise DataError(f"{str(path)!r} has one image a class, so none is left for a test split; add more.")
    return Splits(train, test, classes)


def _read_split(files: list[Path]) -> tuple[Split, tuple[str, ...] | None]:
    return folder.read(files[0]) if files[0].is_dir() else parquet.read(files)


def _parquet_splits(path: Path) -> dict[str, list[Path]]:
    """Group the Parquet files in the folder, or in its one sub-folder that has some, by split."""
    files = sorted(path.glob("*.parquet")) or sorted(path.glob("*/*.parquet"))
    homes = sorted({file.parent for file in files})
    if len(homes) > 1:
        raise DataError(
            f"{str(path)!r} holds Parquet files in {', '.join(home.name for home in homes)}; "
            "expected one data set; name one of these folders."
        )
    splits: dict[str, list[Path]] = {}
    for file in files:
        if match := _FILE_NAME.fullmatch(file.name):
            splits.setdefault(match[1].lower(), []).append(file)
            _check_complete(file, match[3])
    if files and not splits:
        raise DataError(
            f"{files[0].name} in {str(homes[0])!r} is of no known split; expected names like "
            "train-00000-of-00001.parquet and test-00000-of-00001.parquet."
        )
    return splits


def _check_complete(file: Path, total: str | None) -> None:
    if total is None:
        return
    pattern = re.sub(r"-\d+-of-.*", f"-*-of-{total}*.parquet", file.name)
    present = len(list(file.parent.glob(pattern)))
    if present != int(total):
        raise DataError(f"{str(file.parent / pattern)!r} matches {present} files; expected all {int(total)}.")


def _folder_splits(path: Path) -> dict[str, list[Path]]:
    splits = {name: [path / name] for name in (TRAIN, *TESTS) if (path / name).is_dir()}
    return splits or {TRAIN: [path]}


def _difference(one: tuple[str, ...] | None, other: tuple[str, ...] | None) -> str:
    odd = sorted(set(one or ()) ^ set(other or ()))
    return f" (only one has {odd[0]!r})" if odd else ""


def _numbers(splits: list[Split]) -> tuple[str, ...]:
    return tuple(str(number) for number in range(1 + max(int(split.labels.max()) for split in splits)))
