"""The names that people give to the splits of a data set."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

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
    and ``seg_test`` are splits, a ``train station`` is none.

    Returns:
        One group for each data set that the names tell apart.
    """
    groups: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for name in names:
        if read := SplitName.read(name):
            groups.setdefault(read.affix, {}).setdefault(read.kind, []).append(name)
    return [group for affix, group in groups.items() if not affix or len(group) > 1]
