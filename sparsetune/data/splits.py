"""A split: pictures with labels; and the choice of rows that keeps classes in balance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from sparsetune.data.images import Images
from sparsetune.errors import ConfigError

_MARKED = 16
_MARKED_WHOLE = 1 << 26


def draws(count: int, *name: str | int) -> NDArray[np.uint64]:
    """Draw ``count`` integers from the Philox stream whose key is a hash of ``name``.

    Element ``i`` does not depend on ``count``. NumPy keeps these raw integers stable across releases.

    Args:
        count: How many integers.
        *name: What the stream is for, for example ``("order", seed, epoch)``.

    Returns:
        Uniform uint64 of shape (count,).
    """
    key = blake2b("/".join(map(str, name)).encode(), digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)


def shuffled(count: int, *name: str | int) -> NDArray[np.int64]:
    """Give the numbers from 0 to ``count - 1`` in the order that ``name`` fixes."""
    return np.argsort(draws(count, *name), kind="stable")


@dataclass(frozen=True, eq=False, repr=False)
class Split(Dataset[tuple[Image.Image, int]]):
    """Labelled pictures: element ``i`` is (RGB picture, label), decoded on access.

    Args:
        images: The stored pictures, shared between splits that are cut from one store.
        labels: int64 of shape (count,): one label for each element of this split.
        rows: int64 of shape (count,): the number in ``images`` of each element.
    """

    images: Images
    labels: Tensor
    rows: NDArray[np.int64]

    @classmethod
    def whole(cls, images: Images, labels: NDArray[np.integer]) -> Split:
        """Make the split that holds every stored picture in its stored order."""
        return cls(images, torch.from_numpy(labels.astype(np.int64)), np.arange(len(labels)))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} images)"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.images[int(self.rows[index])], int(self.labels[index])

    def keys(self) -> NDArray[np.uint64]:
        """Return what each element's content fixes, uint64 of shape (count,); reads every picture once.

        Raises:
            DataError: When one cannot be read.
        """
        return np.frombuffer(b"".join(self.images.key(int(row)) for row in self.rows), "<u8")

    def sizes(self) -> NDArray[np.int64]:
        """Return the bytes that each element takes where it is stored."""
        return np.array([self.images.size(int(row)) for row in self.rows], np.int64)

    @cached_property
    def mark(self) -> bytes:
        """What names, sizes, labels, order and content of the elements fix; read once, and cheap.

        The content is that of a few elements where all have more than 64 MiB, and of all elsewhere.

        Raises:
            DataError: When one cannot be read.
        """
        found = blake2b(digest_size=8)
        for row, label in zip(self.rows.tolist(), self.labels.tolist(), strict=True):
            found.update(f"{self.images.mark(row)}\0{label}\0".encode(errors="surrogateescape"))
        few = self.sizes().sum() > _MARKED_WHOLE
        keys = (self.sample(_MARKED) if few else self).keys()
        return found.hexdigest().encode() + keys.tobytes()

    def sample(self, count: int) -> Split:
        """Cut out so many elements, or all if there are fewer, at even distances."""
        return self.take(np.linspace(0, len(self) - 1, min(len(self), count)).astype(np.int64))

    def take(self, chosen: NDArray[np.int64]) -> Split:
        """Cut out the elements with the numbers in ``chosen``, in that order."""
        return Split(self.images, self.labels[torch.from_numpy(chosen)], self.rows[chosen])

    def relabel(self, new: NDArray[np.int64]) -> Split:
        """Turn label ``i`` into ``new[i]``; elements for which that is negative are left out."""
        labels = new[self.labels.numpy()]
        kept = np.flatnonzero(labels >= 0)
        return Split(self.images, torch.from_numpy(labels[kept]), self.rows[kept])


@dataclass(frozen=True)
class Splits:
    """What a reader finds.

    Args:
        train: ``None`` when the source has none.
        test: What is held out to the end; ``None`` when the source has none.
        classes: Class names; labels index them.
        validation: What is looked at during training: the source's own, or, without a test split, a part of
            its training pictures; ``None`` when there is none.
        found: One line for the user: pictures, classes, splits, and what was left out and why.
    """

    train: Split | None
    test: Split | None
    classes: tuple[str, ...]
    validation: Split | None = None
    found: str = ""


def balanced(split: Split, count: int, seed: int, name: str) -> Split:
    """Cut out ``count`` elements, as many of each class as of any other until a class runs out.

    A smaller cut with the same seed is part of a larger one.

    Args:
        split: What to choose from.
        count: How many elements to keep.
        seed: Fixes the choice.
        name: What the user calls this limit, for the error.

    Raises:
        ConfigError: When ``count`` is not between 1 and the split's length.
    """
    if not 1 <= count <= len(split):
        raise ConfigError(f"{name} {count} cannot be met; expected 1 to {len(split)}, the images available.")
    labels = split.labels.numpy()
    return split.take(np.sort(np.lexsort((labels, _ranks(labels, seed)))[:count]))


def split_in_two(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """Divide a split so that ``share`` of each class goes to the second one, and at least one of two or more.

    Args:
        split: What to divide.
        share: The second one's share, between 0 and 1.
        seed: Fixes the choice.

    Returns:
        The two splits, each in the old order.
    """
    labels = split.labels.numpy()
    counts = np.bincount(labels)
    second = _ranks(labels, seed) < np.maximum(np.round(share * counts), counts > 1)[labels]
    return split.take(np.flatnonzero(~second)), split.take(np.flatnonzero(second))


def split_by_content(split: Split, share: float, seed: int) -> tuple[Split, Split]:
    """Divide a split so that the content of a picture, and nothing else, decides its side.

    Pictures that are added later move no other one, and identical pictures stand on one side. Two exceptions
    for small classes: one of which nothing would be held out holds out one picture if it has two that differ,
    until more pictures make that needless; and each class keeps one to train on.

    Args:
        split: What to divide.
        share: About how much of it goes to the second part, between 0 and 1.
        seed: Fixes the choice.

    Returns:
        The two splits, each in the old order.

    Raises:
        DataError: When a picture cannot be read.
    """
    keys = split.keys()
    salt = draws(2, "held out", seed)
    places = (keys ^ salt[0]) * (salt[1] | np.uint64(1))
    labels = split.labels.numpy()
    distinct = {label: np.unique(places[labels == label]) for label in np.unique(labels).tolist()}
    limit = np.uint64(share * 2.0**64)
    held = set(places[places < limit].tolist())
    held |= {int(some[0]) for some in distinct.values() if len(some) > 1}
    held -= {int(some[-1]) for some in distinct.values() if held.issuperset(some.tolist())}
    second = np.isin(places, np.array(sorted(held), np.uint64))
    return split.take(np.flatnonzero(~second)), split.take(np.flatnonzero(second))


def shared_pictures(first: Split, second: Split, most: int) -> int | None:
    """Count the pictures of ``second`` that are, byte for byte, also in ``first``.

    Only pictures of equal size are read; None where these have more than ``most`` bytes.
    """
    sizes = [split.sizes() for split in (first, second)]
    alike = [np.flatnonzero(np.isin(own, other)) for own, other in (sizes, sizes[::-1])]
    if sum(int(own[rows].sum()) for own, rows in zip(sizes, alike, strict=True)) > most:
        return None
    keys = [split.take(rows).keys() for split, rows in zip((first, second), alike, strict=True)]
    return int(np.isin(keys[1], keys[0]).sum())


def _ranks(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Number each class's elements from 0 up, in an order that ``seed`` fixes."""
    order = np.lexsort((draws(len(labels), "ranks", seed), labels))
    counts = np.bincount(labels)
    ranks = np.empty(len(labels), dtype=np.int64)
    ranks[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return ranks
