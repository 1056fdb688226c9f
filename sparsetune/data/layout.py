"""Which folders of pictures are splits, and which are classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsetune.data.folder import check_classes
from sparsetune.data.listing import Folder
from sparsetune.data.naming import TEST, TRAIN, VALIDATION, SplitName, says_nothing, split_groups
from sparsetune.errors import DataError


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
        raise DataError(
            f"folder {str(node.path / groups[0][TRAIN][0])!r} holds no images that can be used; "
            "expected one sub-folder a class, or Parquet files."
        )
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
    if len(named) == 1 and not labelled and not any(each.filled for each in others):
        found = _classes_alone(node)
        note = f"{named[0].name} is a class like the others, as its pictures lie directly in it"
        return Layout(node, found.splits, found.names, note=note)
    raise DataError(
        f"{_list(named)} of {str(node.path)!r} can be read as {_plural(named, 'split')} beside which "
        f"{_list(others)} would be left out, or as {_plural(named, 'class')} like these; "
        "rename or move what is not meant, or name a deeper folder."
    )


def _classes_alone(node: Folder) -> Layout:
    if not node.filled and not node.folders:
        raise DataError(
            f"folder {str(node.path)!r} holds no images that can be used; "
            "expected one sub-folder a class, or Parquet files."
        )
    _check(node)
    return Layout(node, {TRAIN: node}, {})


def _check(node: Folder) -> None:
    """Refuse class folders that are none, or may be something else."""
    check_classes(node)
    if not node.filled:
        raise DataError(
            f"folder {str(node.path)!r} holds no images that can be used; "
            "expected one sub-folder a class, or Parquet files."
        )
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
                "has splits, or as classes; name one of them, or put folders of splits above those of classes."
            )
        rest = set(inside) - {each.name}
        if len(rest) > 1 and rest <= inside[each.name]:
            raise DataError(
                f"{each.name!r} of {str(node.path)!r} can be read as a class, or as another copy of the "
                f"classes {_list(node.filled, each)} that it holds; move it away, or name it alone."
            )
    names = next(iter(inside.values()))
    if (
        len(names) > 1
        and all(some == names for some in inside.values())
        and not all(map(says_nothing, names))
    ):
        raise DataError(
            f"{_list(node.filled)} of {str(node.path)!r} can be read as classes, or as parts that each hold "
            f"the classes {', '.join(sorted(names)[:4])}; name one of them, or leave one level of folders only."
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
