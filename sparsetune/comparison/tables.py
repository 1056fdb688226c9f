"""The comparison as tables of words: every method, and ours beside others at equal bytes."""

from __future__ import annotations

from collections.abc import Sequence

from sparsetune.comparison.methods import FAMILIES
from sparsetune.comparison.points import DTYPES, Point, Verdict

Table = tuple[list[str], list[list[str]]]
"""Header and rows."""


def methods(points: Sequence[Point]) -> Table:
    """Return a row for each method: bytes and accuracy in each precision, seconds, learning rate."""
    header = ["method", *(f"{dtype}: bytes, top-1 (%)" for dtype in DTYPES), "training", "lr"]
    rows = []
    for point in points:
        if point.dtype == DTYPES[0]:
            same = {p.dtype: p for p in points if (p.family, p.name) == (point.family, point.name)}
            found = [f"{same[dtype].bytes:,}, {same[dtype].top1}" for dtype in DTYPES]
            rows.append([f"{FAMILIES[point.family].title}: {point.name}", *found, *_how(point)])
    return header, rows


def budgets(found: Sequence[Verdict]) -> Table:
    """Return a row for each budget at which ours or PEFT's has something."""
    header = ["at most", "ours", "top-1 (%)", "PEFT LoRA", "top-1 (%)", "ours / LoRA, time", "ours wins"]
    rows = []
    for verdict, row in zip(_told(found), _judged(found), strict=True):
        ratio = verdict.fastest_ratio
        fastest = verdict.fastest and f"{verdict.fastest.name}, {verdict.fastest.dtype}: {ratio:.2f}"
        rows.append([*row, fastest or ""])
    return [*header, "our fastest as good, time"], rows


def chosen(found: Sequence[Verdict]) -> Table:
    """Return a row for each budget that was left to ``--budget``."""
    header = ["at most", "chosen", "top-1 (%)", "best fixed", "top-1 (%)", "chosen / fixed, time", "as good"]
    return header, _judged(found)


def _judged(found: Sequence[Verdict]) -> list[list[str]]:
    words = {True: "yes", False: "no", None: ""}
    rows = []
    for verdict in _told(found):
        ratio = verdict.time_ratio
        sides = [cell for side in (verdict.ours, verdict.theirs) for cell in _side(side)]
        shown = "" if ratio is None else f"{ratio:.2f}"
        rows.append([f"{verdict.budget / 1000:,.0f} KB", *sides, shown, words[verdict.holds]])
    return rows


def _told(found: Sequence[Verdict]) -> list[Verdict]:
    return [verdict for verdict in found if verdict.ours or verdict.theirs]


def _side(point: Point | None) -> list[str]:
    if point is None:
        return ["none so small", ""]
    return [f"{point.name}, {point.dtype}", str(point.top1)]


def _how(point: Point) -> list[str]:
    seconds = "" if point.seconds is None else f"{point.seconds:.1f} s"
    return [seconds, f"{point.rate:g}{' (edge)' * point.at_edge}"]
