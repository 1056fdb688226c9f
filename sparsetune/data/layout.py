"""What lies in a folder, which of its folders are splits and which are classes, and the pictures of one."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from sparsetune.data.images import Images, decode, suffixes
from sparsetune.data.splits import Split
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


TRAIN, VALIDATION, TEST = "train", "validation", "test"

_WORDS = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "validate", "eval", "evaluation", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing", "tst"), TEST),
}
_FILLERS = (
    "sets? data datasets? images? imgs? pictures? pics? photos? splits? folders? samples? parts? files?"
)
_FILLER = re.compile("|".join(_FILLERS.split()))
_FUSED = re.compile(
    rf"({_FILLER.pattern})?({'|'.join(sorted(_WORDS, key=len, reverse=True))})({_FILLER.pattern})?"
)


@dataclass(frozen=True)
class SplitName:
    """A name as that of a split.

    Args:
        kind: ``TRAIN``, ``VALIDATION`` or ``TEST``.
        word: The word that says so.
        affix: The name's other words, such as ``("seg",)`` in ``seg_train``.
        first: Whether the name starts with that word.
    """

    kind: str
    word: str
    affix: tuple[str, ...]
    first: bool

    @classmethod
    def read(cls, name: str) -> SplitName | None:
        """Read a name without regard to case, numbers and words like "images"; None if it names no split."""
        plain = re.findall(r"[^\W\d_]+", name.lower())
        camel = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
        for words in (plain, [word.lower() for word in camel]):
            if words == ["train", "val"]:
                words = ["trainval"]
            found = [match[2] if (match := _FUSED.fullmatch(word)) else None for word in words]
            if len(known := [word for word in found if word]) == 1:
                affix = (
                    word
                    for word, split in zip(words, found, strict=True)
                    if not split and not _FILLER.fullmatch(word)
                )
                return cls(_WORDS[known[0]], known[0], tuple(affix), found[0] is not None)
        return None


def says_nothing(name: str) -> bool:
    """Tell whether a name has only numbers and words like "images"."""
    return all(_FILLER.fullmatch(word) for word in re.findall(r"[^\W\d_]+", name.lower()))


def split_groups(names: Iterable[str]) -> list[dict[str, list[str]]]:
    """Find the names that are splits of one data set: kind -> names.

    A name with other words in it counts only beside one of another kind with the same words: ``seg_train``
    and ``seg_test`` are splits, a ``train station`` is none. There is one group for each data set that the
    names tell apart.
    """
    groups: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for name in names:
        if read := SplitName.read(name):
            groups.setdefault(read.affix, {}).setdefault(read.kind, []).append(name)
    return [group for affix, group in groups.items() if not affix or len(group) > 1]


@dataclass(frozen=True, eq=False, repr=False)
class FileImages(Images):
    """Picture files, decoded on access; ``root`` is the folder that their names are relative to."""

    paths: tuple[str, ...]
    root: str = ""

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        return decode(self.paths[index], f"image {self.paths[index]!r}")

    def stored(self, index: int) -> bytes:
        """Return one file's bytes."""
        try:
            return Path(self.paths[index]).read_bytes()
        except OSError as error:
            raise self._unreadable(index, error) from error

    def size(self, index: int) -> int:
        """Return one file's size in bytes."""
        try:
            return os.stat(self.paths[index]).st_size  # noqa: PTH116 (a third of the time of Path's)
        except OSError as error:
            raise self._unreadable(index, error) from error

    def mark(self, index: int) -> str:
        """Return the path inside ``root``, and the size."""
        path = Path(self.paths[index])
        name = Path(os.path.relpath(path, self.root or path.parent)).as_posix()
        return f"{name} {self.size(index)}"

    def _unreadable(self, index: int, error: OSError) -> DataError:
        return DataError(f"image {self.paths[index]!r} cannot be read ({error.strerror}).")


def read(folder: Folder) -> tuple[Split, tuple[str, ...]]:
    """Read pictures, at any depth, of a folder with one sub-folder a class; and the classes' sorted names."""
    paths = [each.below() for each in folder.filled]
    labels = np.repeat(np.arange(len(paths)), [len(some) for some in paths])
    images = FileImages(tuple(path for some in paths for path in some), str(folder.path))
    return Split.whole(images, labels), tuple(each.name for each in folder.filled)


@dataclass(frozen=True)
class Layout:
    """How a folder of pictures is read.

    Args:
        node: The folder that holds the splits, or else the classes.
        splits: Kind -> the folder whose sub-folders are that split's classes. Without any held-out split a
            part of the training pictures is to be held out.
        names: Kind -> the name of the split's folder, where it has one.
        bare: Splits without class folders, so without labels.
        others: Folders beside the splits that are none.
        note: What else is worth saying.
    """

    node: Folder
    splits: dict[str, Folder]
    names: dict[str, str]
    bare: tuple[Folder, ...] = ()
    others: tuple[Folder, ...] = ()
    note: str = ""


def find(root: Folder) -> Layout:
    """Recognise splits and classes, in the folder or in the one that it wraps.

    Raises:
        DataError: When there is no such thing, or when the folders can be read in two ways.
    """
    node = root
    while True:
        groups = split_groups(each.name for each in node.folders)
        groups = [group for group in groups if any(_pick(node, names) for names in group.values())]
        wrapped = node.filled[0] if len(node.filled) == 1 else None
        if groups and not (wrapped and _has_splits(wrapped)):
            return _with_splits(node, groups)
        if not (wrapped and wrapped.filled):
            return _classes_alone(node)
        node = wrapped


def _with_splits(node: Folder, groups: Sequence[dict[str, list[str]]]) -> Layout:
    if len(groups) > 1:
        sets = "; ".join(", ".join(name for names in group.values() for name in names) for group in groups)
        raise DataError(
            f"{str(node.path)!r} can be read as several data sets ({sets}); "
            "name one of them, or rename the rest."
        )
    found = {kind: _pick(node, names) for kind, names in groups[0].items()}
    named = [each for some in found.values() for each in some]
    others = tuple(each for each in node.filled if each not in named)
    labelled = [kind for kind, some in found.items() if any(each.filled for each in some)]
    if others and not (TRAIN in labelled and sum(map(bool, found.values())) > 1):
        return _perhaps_classes(node, named, others, bool(labelled))
    for kind, some in found.items():
        if len(some) > 1:
            raise DataError(
                f"{_list(some)} of {str(node.path)!r} can each be the {kind} split; "
                "expected one, so merge them, or rename the rest."
            )
    if TRAIN in found and not found[TRAIN]:
        raise _no_images(node.path / groups[0][TRAIN][0])
    if not labelled or (TRAIN in found and TRAIN not in labelled):
        bare = [each for each in named if not each.filled]
        raise DataError(
            f"{_list(bare)} of {str(node.path)!r} can be read as {_plural(bare, 'split')} without labels, "
            f"or as {_plural(bare, 'class')}; "
            "put one sub-folder a class into each split, or rename what is no split."
        )
    splits = {kind: some[0] for kind, some in found.items() if kind in labelled}
    without = [some[0] for kind, some in found.items() if some and kind not in labelled]
    if TRAIN in splits:
        splits[TRAIN] = _inner(splits[TRAIN], frozenset())
        _check(splits[TRAIN])
        known = frozenset(each.name for each in splits[TRAIN].filled)
        for kind in [VALIDATION, TEST]:
            if kind in splits:
                splits[kind] = _inner(splits[kind], known)
                if len(lone := splits[kind].filled) == 1 and lone[0].name not in known:
                    without.append(found[kind][0])
                    del splits[kind]
    else:
        splits = {kind: _inner(each, None) for kind, each in splits.items()}
    return Layout(node, splits, {kind: found[kind][0].name for kind in splits}, tuple(without), others)


def _perhaps_classes(
    node: Folder, named: Sequence[Folder], others: Sequence[Folder], labelled: bool
) -> Layout:
    """Read split-like names beside others as classes, if that is the only way."""
    plain = not any(each.filled or says_nothing(each.name) for each in others)
    if len(named) == 1 and not labelled and plain:
        note = f"{named[0].name} is a class like the others, as its pictures lie directly in it"
        return replace(_classes_alone(node), note=note)
    raise DataError(
        f"{_list(named)} of {str(node.path)!r} can be read as {_plural(named, 'split')} beside which "
        f"{_list(others)} would be left out, or as {_plural(named, 'class')} like these; "
        "rename or move what is not meant, or name a deeper folder."
    )


def _classes_alone(node: Folder) -> Layout:
    _check(node)
    return Layout(node, {TRAIN: node}, {})


def _no_images(path: Path) -> DataError:
    return DataError(
        f"folder {str(path)!r} holds no images that can be used; "
        "expected one sub-folder a class, or Parquet files."
    )


def _check(node: Folder) -> None:
    """Refuse class folders that are none, or may be something else."""
    _check_filled(node)
    if not node.filled:
        raise _no_images(node.path)
    if len(node.filled) == 1:
        raise DataError(
            f"{str(node.path)!r} holds a single class, {node.filled[0].name!r}, so that any answer is right; "
            "expected one sub-folder for each of two classes or more."
        )
    inside = {each.name: {sub.name for sub in each.filled} for each in node.filled}
    for each in node.filled:
        if _has_splits(each):
            raise DataError(
                f"{_list(node.filled)} of {str(node.path)!r} can be read as data sets, because {each.name} "
                "has splits, or as classes; name one of them, or put splits above classes."
            )
        own = inside[each.name]
        if 2 < len(inside) <= len(own) + 1 and own >= set(inside) - {each.name}:
            raise DataError(
                f"{each.name!r} of {str(node.path)!r} can be read as a class, or as another copy of the "
                f"classes {_list(node.filled, each)} that it holds; move it away, or name it alone."
            )
    deep = [each for each in node.filled if len(each.filled) > 1 and not each.pictures]
    alone = len(deep) == sum(bool(each.filled) for each in node.filled) == 1
    if (
        alone
        and 2 * deep[0].count > node.count
        and not all(says_nothing(each.name) for each in deep[0].filled)
    ):
        raise DataError(
            f"{deep[0].name!r} of {str(node.path)!r} can be read as a class like "
            f"{_list(node.filled, deep[0])}, or as the folder of the classes {_list(deep[0].filled)}; "
            "name it alone, or leave one level of folders."
        )
    names = next(iter(inside.values()))
    if (
        len(names) > 1
        and all(some == names for some in inside.values())
        and not all(map(says_nothing, names))
    ):
        raise DataError(
            f"{_list(node.filled)} of {str(node.path)!r} can be read as classes, or as parts that each hold "
            f"the classes {', '.join(sorted(names)[:4])}; name one of them, or leave one level of folders."
        )


def _check_filled(folder: Folder) -> None:
    """Refuse a class folder without pictures; a folder that only has other files is no class."""
    for each in folder.folders:
        if each.count:
            continue
        left = each.left_below()
        unreadable = sorted(suffix for kind, suffix in left if kind == FORMAT)
        but = f" that can be read, only {', '.join(unreadable)}" if unreadable else ""
        if unreadable or not left:
            raise DataError(
                f"class folder {str(each.path)!r} holds no images{but}; "
                "put .bmp, .gif, .jpg, .png, .tif, .webp or other picture files into it, or remove it."
            )


def _inner(folder: Folder, known: frozenset[str] | None) -> Folder:
    """Descend to where a split's classes are, through folders that hold nothing but one folder of folders.

    One that is called as one of the classes ``known`` is no such wrapper; where none are known, only one that
    is called like a split, or "images", is.
    """
    while len(folder.filled) == 1 and (lone := folder.filled[0]).filled:
        if (
            lone.name in known
            if known is not None
            else not (says_nothing(lone.name) or SplitName.read(lone.name))
        ):
            break
        folder = lone
    return folder


def _has_splits(folder: Folder) -> bool:
    groups = split_groups(each.name for each in folder.filled)
    return any(len(group) > 1 for group in groups) or any(
        each.filled for group in groups for names in group.values() for each in _pick(folder, names)
    )


def _pick(node: Folder, names: Sequence[str]) -> list[Folder]:
    """Give those of the folders that hold pictures."""
    return [each for each in node.filled if each.name in names]


def _list(folders: Sequence[Folder], but: Folder | None = None) -> str:
    names = [repr(each.name) for each in folders if each is not but]
    shown = names[:4] + [f"{len(names) - 4} more"] * (len(names) > 4)
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _plural(folders: Sequence[Folder], word: str) -> str:
    return f"a {word}" if len(folders) == 1 else f"{word}{'es' if word.endswith('s') else 's'}"
