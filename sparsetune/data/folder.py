"""A local folder as a data set: pictures or Parquet files, and whether their splits fit together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sparsetune.data import layout, parquet
from sparsetune.data.layout import IN, TEST, TRAIN, VALIDATION, Folder, Reason, scan
from sparsetune.data.splits import Split, Splits, shared_pictures, split_by_content
from sparsetune.errors import DataError
from sparsetune.host import listed

HELD_SHARE = 0.2
NO_TEST = "no test split was given; a fifth of the pictures, held out by content, are validation"
UNUSED_TABLES: Reason = ("Parquet files of no split", "")

_LONGEST_LINE, _LONGEST_NAME = 400, 40
_MOST_COMPARED = 1 << 28
_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass
class Finding:
    """What is worth saying beside the counts.

    Args:
        place: The folder inside that was read, if it is not the one that was named.
        left: How many were left out for which reason.
        notes: Sentences' parts of their own.
        names: Kind of split -> where it comes from, if its own name does not tell.
    """

    place: str
    left: Counter[Reason]
    notes: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)

    def line(
        self, train: Split | None, validation: Split | None, test: Split | None, classes: tuple[str, ...]
    ) -> str:
        """Write the line; unprintable characters of names are replaced."""
        splits = {TRAIN: train, VALIDATION: validation, TEST: test}
        there = {kind: len(split) for kind, split in splits.items() if split is not None}
        total = sum(there.values())
        place = f" in {self.place}" if self.place else ""
        sizes = ", ".join(
            f"{kind} {count:,}" + (f" ({self.names[kind]})" if kind in self.names else "")
            for kind, count in there.items()
        )
        parts = [f"{total:,} pictures of {len(classes)} classes ({_listed(classes)}){place}: {sizes}"]
        parts += self.notes
        for kind in (VALIDATION, TEST):
            if train is not None and (split := splits[kind]) is not None:
                held = set(split.labels.unique().tolist())
                lacking = [name for number, name in enumerate(classes) if number not in held]
                parts += [f"no {kind} pictures of {_listed(lacking)}"] * bool(lacking)
        if self.left:
            parts.append("left out: " + ", ".join(self._left()))
        text = "".join(letter if letter.isprintable() else "?" for letter in "; ".join(parts))
        return _cut(text, _LONGEST_LINE)

    def _left(self) -> Iterable[str]:
        whys = dict.fromkeys(why for why, _ in self.left)
        for why in whys:
            counts = {what: count for (kind, what), count in self.left.items() if kind == why}
            if why == IN:
                yield from (f"{count:,} in {what}" for what, count in sorted(counts.items()))
            else:
                named = sorted(what for what in counts if what)
                yield f"{sum(counts.values()):,} {why}" + (f" ({_listed(named)})" if named else "")


def _listed(names: Iterable[str]) -> str:
    return listed([_cut(name, _LONGEST_NAME) for name in names], before_more=", ")


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


@dataclass(frozen=True)
class _Part:
    """A split as stored; ``split`` is None where it has no labels, ``classes`` where nothing names them."""

    name: str
    count: int
    split: Split | None
    classes: tuple[str, ...] | None


def read(path: Path, split_seed: int, *, published: bool = False) -> Splits:
    """Read an ImageFolder tree, or a folder of Parquet files.

    A split is what its name says. Where there is neither a validation nor a test split, about a fifth of the
    training pictures, chosen by their content and the seed, is the validation split.

    Args:
        path: The folder.
        split_seed: Fixes that choice.
        published: Whether the validation split, where no test split has labels, is known as the test.

    Raises:
        DataError: When the folder is missing, holds no such data, can be read in two ways, or its splits do
            not fit together.
    """
    if not path.is_dir():
        raise DataError(
            f"{str(path)!r} is not a folder; expected an ImageFolder tree or Parquet files in a folder."
        )
    root = scan(path)
    parts, finding = _read_tables(root) if _is_of_tables(root) else _read_pictures(root)
    splits, classes = _fit_together(path, _labelled(path, parts, finding))
    train, validation, test = (splits.get(kind) for kind in (TRAIN, VALIDATION, TEST))
    if test is None and validation is not None and published:
        test, validation = validation, None
        finding.names[TEST] = parts[VALIDATION].name
    if test is None and validation is None:
        assert train is not None
        train, validation = split_by_content(train, HELD_SHARE, split_seed)
        finding.notes.append(NO_TEST)
        if len(validation) == 0:
            raise DataError(f"{str(path)!r} has one image a class, so none is left for validation; add more.")
    elif train is not None:
        finding.notes += ["no labelled test split was given"] * (test is None)
        for kind, held in ((VALIDATION, validation), (TEST, test)):
            if held is not None and (shared := shared_pictures(train, held, _MOST_COMPARED)):
                finding.notes.append(f"{shared:,} {kind} pictures are also among those of train")
    return Splits(train, test, classes, validation, finding.line(train, validation, test, classes))


def _labelled(path: Path, parts: dict[str, _Part], finding: Finding) -> dict[str, _Part]:
    """Keep the splits that have labels, and say which ones have none."""
    for kind, part in parts.items():
        if part.split is None:
            finding.left[f"in {part.name} without labels", ""] += part.count
        elif not len(part.split):
            raise DataError(f"a split of {str(path)!r} holds no images; expected at least one.")
        elif kind != part.name.lower():
            finding.names[kind] = part.name
    labelled = {kind: part for kind, part in parts.items() if part.split is not None}
    if not labelled:
        raise DataError(
            f"{' and '.join(parts)} of {str(path)!r} have no labels; expected a class for each picture."
        )
    train = labelled.get(TRAIN)
    if train and train.split and len(train.split.labels.unique()) < 2:
        raise DataError(
            f"the training pictures of {str(path)!r} are of a single class, so that any answer is right; "
            "expected two classes or more."
        )
    return labelled


def _is_of_tables(root: Folder) -> bool:
    """Decide between Parquet files and pictures, where a folder has both."""
    if not (root.all_tables and root.count):
        return bool(root.all_tables)
    as_tables, as_pictures = _reads(parquet.find, root), _reads(layout.find, root)
    if as_tables and as_pictures:
        raise DataError(
            f"{str(root.path)!r} can be read as Parquet files or as pictures in class folders; "
            "move away what is not meant, or name a deeper folder."
        )
    return as_tables or (bool(root.tables) and not as_pictures)


def _reads(find: Callable[[Folder], object], root: Folder) -> bool:
    try:
        find(root)
    except DataError:
        return False
    return True


def _read_tables(root: Folder) -> tuple[dict[str, _Part], Finding]:
    parts = {}
    found = parquet.find(root)
    for kind, files in found.items():
        split, classes = parquet.read(files, required=kind == TRAIN or len(found) == 1)
        parts[kind] = _Part(kind, parquet.count(files), split, classes)
    left = Counter[Reason]()
    left[UNUSED_TABLES] = len(root.all_tables) - sum(map(len, found.values()))
    left["pictures beside the Parquet files", ""] = root.count
    return parts, Finding("", +left)


def _read_pictures(root: Folder) -> tuple[dict[str, _Part], Finding]:
    found = layout.find(root)
    parts = {}
    for kind, place in found.splits.items():
        split, classes = layout.read(place)
        parts[kind] = _Part(found.names.get(kind, kind), len(split), split, classes)
    for each in found.bare:
        parts[each.name] = _Part(each.name, each.count, None, None)
    left = root.left_below()
    for each in found.others:
        left[f"in {each.name}, which is no split", ""] += each.count
    known = sum(part.count for part in parts.values()) + sum(each.count for each in found.others)
    left["beside the class folders", ""] += root.count - known
    left[UNUSED_TABLES] += len(root.all_tables)
    inside = found.node.path.relative_to(root.path).as_posix()
    return parts, Finding("" if inside == "." else inside, +left, [found.note] if found.note else [])


def _fit_together(path: Path, parts: dict[str, _Part]) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Make the labels of all splits index the same class names.

    Held-out splits may lack classes of the training split.
    """
    splits = {kind: part.split for kind, part in parts.items() if part.split is not None}
    first, *rest = (kind for kind in (TRAIN, VALIDATION, TEST) if kind in parts)
    classes = parts[first].classes
    for kind in rest:
        other = parts[kind].classes
        if other == classes:
            continue
        if classes is None or other is None or not set(other) < set(classes):
            raise DataError(
                f"{parts[first].name} and {parts[kind].name} of {str(path)!r} have different class names"
                f"{_difference(classes, other)}; expected the same ones."
            )
        splits[kind] = splits[kind].relabel(np.array([classes.index(name) for name in other]))
    if classes is None:
        classes = tuple(map(str, range(1 + max(int(split.labels.max()) for split in splits.values()))))
    for name in classes:
        if _UNWRITABLE.search(name):
            raise DataError(
                f"class name {name!r} of {str(path)!r} does not print on one line, so that no delta can hold "
                "it; rename that class."
            )
    return splits, classes


def _difference(one: tuple[str, ...] | None, other: tuple[str, ...] | None) -> str:
    odd = sorted(set(one or ()) ^ set(other or ()))
    return f" (only one has {odd[0]!r})" if odd else ""
