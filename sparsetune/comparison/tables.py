"""The comparison as tables of words: every method, and ours beside others at equal bytes."""

from __future__ import annotations

from collections.abc import Sequence

from sparsetune.comparison.methods import FAMILIES
from sparsetune.comparison.points import DTYPES, Point
from sparsetune.comparison.verdicts import Side, Verdict

GAP = "difference (points, 95 %)"
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
    header = ["at most", "ours", "top-1 (%)", "PEFT LoRA", "top-1 (%)", GAP, "ours is", "ours / LoRA, time"]
    rows = []
    for verdict, row in zip(_told(found), _judged(found), strict=True):
        fast = verdict.fastest
        quick = fast and fast.ours and [f"{fast.ours.name}: {_ratio(fast)}", f"{_gap(fast)}, {fast.said}"]
        rows.append([*row, *(quick or ["", ""])])
    return [*header, "our fastest as accurate where chosen, time", "its difference"], rows


def chosen(found: Sequence[Verdict]) -> Table:
    """Return a row for each budget that was left to ``--budget``."""
    sides = ["chosen", "top-1 (%)", "best fixed", "top-1 (%)"]
    return ["at most", *sides, GAP, "chosen is", "chosen / fixed, time"], _judged(found)


def _judged(found: Sequence[Verdict]) -> list[list[str]]:
    rows = []
    for verdict in _told(found):
        sides = [cell for side in (verdict.ours, verdict.theirs) for cell in _side(side)]
        rows.append(
            [f"{verdict.budget / 1000:,.0f} KB", *sides, _gap(verdict), verdict.said, _ratio(verdict)]
        )
    return rows


def _told(found: Sequence[Verdict]) -> list[Verdict]:
    return [verdict for verdict in found if verdict.ours or verdict.theirs]


def _side(side: Side | None) -> list[str]:
    return ["none so small", ""] if side is None else [side.name, f"{side.top1:.2f}"]


def _gap(verdict: Verdict) -> str:
    """The difference with its interval; a star where that is of seeds alone."""
    if verdict.gap is None or verdict.reach is None:
        return ""
    return f"{verdict.gap:+.2f} ± {verdict.reach:.2f}{'' if verdict.whole else '*'}"


def _ratio(verdict: Verdict) -> str:
    return "" if verdict.time_ratio is None else f"{verdict.time_ratio:.2f}"


def _how(point: Point) -> list[str]:
    seconds = "" if point.seconds is None else f"{point.seconds:.1f} s"
    return [seconds, f"{point.rate:g}{' (edge)' * point.at_edge}"]
