"""``Seen``: which pictures a model was trained on and which were held out, in few bytes.

A picture is known by 40 bits of a hash of its content. The smallest of the training pictures' hashes are
kept. Of any picture whose hash is not above the largest of them they say for certain whether it was trained
on, and the others are as those are. That any of 100,000 pictures is wrongly taken for one that was trained on
has a probability of 6e-6 where 64 hashes are kept, and of 9e-5 where 1,024 are, the most.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST, MOST = 64, 1024
"""How many hashes are kept, if there are so many."""
BYTES = 5
"""Of a hash."""
SHARE = 0.005
"""Most of the learned values' bytes that hashes beyond the least may take in a file."""

_SHIFT = np.uint64(64 - 8 * BYTES)
_TEXT = 1000
_KEY = "pictures"


@dataclass(frozen=True)
class Overlap:
    """How many of some pictures were trained on.

    Attributes:
        pictures: So many, or about so many.
        exact: Whether this is counted, not estimated.
        held_out: Whether they are the very pictures that were held out.
    """

    pictures: int
    exact: bool
    held_out: bool


@dataclass(frozen=True)
class Seen:
    """What is known of the pictures of a training.

    Attributes:
        hashes: The smallest hashes of its training pictures, in rising order.
        whole: Whether these are all.
        held_out: 16 hexadecimal digits that the content of the held-out pictures fixes, in whatever order.
        shared: How many of these are training pictures too, or were in an earlier training.
    """

    hashes: tuple[int, ...]
    whole: bool
    held_out: str
    shared: int = 0

    @classmethod
    def of(cls, train: NDArray[np.uint64], test: NDArray[np.uint64], earlier: Seen | None = None) -> Seen:
        """Make it from the content keys of both splits, and what is known of the values it started from."""
        hashes = np.unique(train >> _SHIFT)
        shared = max(int(np.isin(test, train).sum()), earlier.overlap(test).pictures if earlier else 0)
        own = cls(tuple(hashes[:MOST].tolist()), len(hashes) <= MOST, _digest(test), shared)
        return own.joined(earlier) if earlier else own

    def overlap(self, keys: NDArray[np.uint64]) -> Overlap:
        """Tell how many of the pictures with these content keys were trained on."""
        hashes = keys >> _SHIFT
        known = np.array(self.hashes, dtype=np.uint64)
        told = hashes if self.whole else hashes[hashes <= known[-1]]
        hits = int(np.isin(told, known).sum())
        about = hits if self.whole or not hits else round(len(keys) * hits / len(told))
        return Overlap(about, self.whole or len(told) == len(keys), self.held_out == _digest(keys))

    def joined(self, other: Seen) -> Seen:
        """Return what is known where the pictures of both were trained on; the held-out ones are the own."""
        ends = [each.hashes[-1] for each in (self, other) if not each.whole]
        both = sorted({*self.hashes, *other.hashes})
        known = [each for each in both if each <= min(ends, default=each)]
        return replace(self, hashes=tuple(known), whole=not ends).cut(MOST)

    def cut(self, most: int) -> Seen:
        """Keep at most so many hashes."""
        return self if len(self.hashes) <= most else replace(self, hashes=self.hashes[:most], whole=False)

    def to_json(self, learned_bytes: int = 0) -> dict[str, Any]:
        """Return a training's summary that says this, for a file with so many bytes of learned values."""
        kept = self.cut(max(LEAST, int(SHARE * learned_bytes / BYTES * 3 / 4)))
        raw = b"".join(each.to_bytes(BYTES, "little") for each in kept.hashes)
        text = base64.b64encode(raw).decode()
        pieces = [text[start : start + _TEXT] for start in range(0, len(text), _TEXT)]
        value = {"trained_on": pieces, "whole": kept.whole, "held_out": kept.held_out, "shared": kept.shared}
        return {_KEY: value}

    @classmethod
    def from_json(cls, training: dict[str, Any]) -> Seen | None:
        """Read it from a summary, trusting nothing; ``None`` where that does not say it."""
        value: Any = training.get(_KEY)
        try:
            raw = base64.b64decode("".join(value["trained_on"]), validate=True)
            whole, held_out, shared = value["whole"], value["held_out"], value["shared"]
        except (KeyError, TypeError, ValueError):
            return None
        if (type(whole), type(held_out), type(shared)) != (bool, str, int) or not raw or len(raw) % BYTES:
            return None
        pieces = (raw[start : start + BYTES] for start in range(0, len(raw), BYTES))
        hashes = sorted({int.from_bytes(piece, "little") for piece in pieces})
        return cls(tuple(hashes), whole, held_out, shared)


def seen_by_all(trainings: Iterable[dict[str, Any]]) -> Seen | None:
    """Return what is known of what is made of several deltas; ``None`` where one of them does not say."""
    found = [Seen.from_json(training) for training in trainings]
    known = [each for each in found if each is not None]
    return reduce(Seen.joined, known) if len(known) == len(found) else None


def _digest(keys: NDArray[np.uint64]) -> str:
    return blake2b(np.unique(keys).astype("<u8").tobytes(), digest_size=8).hexdigest()
