"""One line that says what was found in a folder: pictures, classes, splits, what was left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from sparsetune.data.listing import IN, Reason
from sparsetune.data.naming import TEST, TRAIN, VALIDATION
from sparsetune.data.splits import Split

BESIDE = "beside the class folders"

LONGEST = 400


@dataclass
class Finding:
    """What is worth saying beside the counts.

    Args:
        place: The folder inside that was read, if it is not the one that was named.
        left: How many were left out for which reason.
        notes: Sentences' parts of their own.
        names: Kind of split -> where it comes from, if its own name does not tell.
        shared: Kind of split -> how many of its pictures are training pictures too.
    """

    place: str
    left: Counter[Reason]
    notes: list[str] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    shared: dict[str, int] = field(default_factory=dict)

    def absent(self, splits: dict[str, Split], classes: tuple[str, ...]) -> None:
        """Note which classes held-out splits lack."""
        for kind in (VALIDATION, TEST):
            if kind in splits and TRAIN in splits:
                there = set(splits[kind].labels.unique().tolist())
                lacking = [name for number, name in enumerate(classes) if number not in there]
                if lacking:
                    self.notes.append(f"no {kind} pictures of {listed(lacking)}")

    def line(
        self, train: Split | None, validation: Split | None, test: Split, classes: tuple[str, ...]
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
        parts = [
            f"{total:,} pictures of {len(classes)} classes ({listed(classes)}){place}: {sizes}",
            *self.notes,
        ]
        parts += [
            f"{n:,} {kind} pictures are also among those of train" for kind, n in self.shared.items() if n
        ]
        if self.left:
            parts.append("left out: " + ", ".join(self._left()))
        text = "".join(letter if letter.isprintable() else "?" for letter in "; ".join(parts))
        return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"

    def _left(self) -> Iterable[str]:
        whys = dict.fromkeys(why for why, _ in self.left)
        for why in whys:
            counts = {what: count for (kind, what), count in self.left.items() if kind == why}
            if why == IN:
                yield from (f"{count:,} in {what}" for what, count in sorted(counts.items()))
            else:
                named = sorted(what for what in counts if what)
                yield f"{sum(counts.values()):,} {why}" + (f" ({listed(named)})" if named else "")


def listed(names: Iterable[str]) -> str:
    """Give the first few names, and how many more there are."""
    every = [name if len(name) <= 40 else name[:39] + "…" for name in names]
    return ", ".join(every[:3] + [f"{len(every) - 3} more"] * (len(every) > 3))
