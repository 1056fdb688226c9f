"""What is compared: the methods, each by what differs from the defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsetune.reproduce.jobs import Settings
from sparsetune.ways import WAYS


@dataclass(frozen=True)
class Family:
    """Methods of one kind, drawn in one colour.

    Attributes:
        title: For people.
        colour: In the drawing.
        rows: Name of a method -> its settings.
    """

    title: str
    colour: str
    rows: dict[str, Settings]


RANKS = (1, 2, 4, 8, 16)
LATE, MIDDLE = ["block2", "block3"], ["block2"]
BLOCKS = (
    [("block1", p) for p in (0.1, 0.25, 1.0)] + [("block2", p) for p in (0.1, 0.25, 0.5)] + [("block3", 0.1)]
)

FAMILIES = {
    "head": Family("head alone", "#8a8a8a", {"head": {"kind": "ours", "filters": 0, "norm": False}}),
    "norm": Family("norm and head", "#1b1b1b", {"norm and head": {"kind": "ours", "filters": 0}}),
    "filters": Family(
        "filters of each layer",
        "#5aa0e0",
        {f"{k} filter{'s' * (k > 1)}": {"kind": "ours", "filters": k} for k in (1, 2, 4)},
    ),
    "fraction": Family(
        "a fraction of each layer",
        "#1f5fa8",
        {f"{p:.0%}": {"kind": "ours", "fraction": p} for p in (0.02, 0.05, 0.1, 0.25)},
    ),
    "block": Family(
        "a fraction of one block",
        "#2e8b57",
        {f"{p:.0%} of {block}": {"kind": "ours", "fraction": p, "layers": [block]} for block, p in BLOCKS},
    ),
    "rank": Family("low rank", "#7d3c98", {f"rank {r}": {"kind": "ours", "rank": r} for r in RANKS}),
    "late": Family(
        "low rank in the later blocks",
        "#b57edc",
        {f"late rank {r}": {"kind": "ours", "rank": r, "layers": LATE} for r in RANKS},
    ),
    "middle": Family(
        "low rank in the middle block",
        "#5b2c6f",
        {f"middle rank {r}": {"kind": "ours", "rank": r, "layers": MIDDLE} for r in RANKS},
    ),
    "spread": Family("one budget, spread otherwise", "#17a2a2", {}),
    "budget": Family("what --budget chooses", "#e377c2", {}),
    "everything": Family("everything", "#d98200", {"everything": {"kind": "ours", "fraction": 1.0}}),
    "lora": Family("PEFT LoRA", "#c0392b", {f"LoRA {r}": {"kind": "lora", "rank": r} for r in RANKS}),
    "late-lora": Family(
        "PEFT LoRA in the later blocks",
        "#ef8a80",
        {f"late LoRA {r}": {"kind": "lora", "rank": r, "layers": LATE} for r in RANKS},
    ),
    "middle-lora": Family(
        "PEFT LoRA in the middle block",
        "#7b241c",
        {f"middle LoRA {r}": {"kind": "lora", "rank": r, "layers": MIDDLE} for r in RANKS},
    ),
}
"""By the name that ``--only`` takes. Sizes are such that ours and PEFT's meet between 40 KB and 2.5 MB with
WRN-28-4, whose three blocks these are; normalisation and head are learned by all but ``head``."""

THEIRS = ("lora", "late-lora", "middle-lora")
WHOLE, CHOSEN, SPREAD = "everything", "budget", "spread"
"""The families that are PEFT's, the one that is no delta of a part but the yardstick of both sides, and the
two that spend the budgets of a ground: as ``--budget`` chooses, and the first in each of ``WAYS``."""


def rows_of(family: str, budgets: Sequence[int]) -> dict[str, Settings]:
    """Return the methods of a family by name.

    Args:
        family: A name out of ``FAMILIES``.
        budgets: The bytes that may be spent on this ground.
    """
    if family == CHOSEN:
        return {f"budget {n / 1000:,.0f} KB": {"kind": "ours", "budget": n} for n in sorted(budgets)}
    if family == SPREAD:
        return {name: {"kind": "ours", "budget": budgets[0], "spread": name} for name in WAYS}
    return FAMILIES[family].rows
