"""The comparison as one picture and as tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsetune.host import replacing
from sparsetune.studies.compare.methods import FAMILIES, SPREAD
from sparsetune.studies.compare.results import Point
from sparsetune.studies.compare.training import DTYPES
from sparsetune.studies.compare.verdicts import Side, Verdict

MARKERS = dict(zip(DTYPES, ("o", "s", "^"), strict=True))


def draw(points: Sequence[Point], titles: dict[str, str], path: Path) -> None:
    """Draw accuracy against delta bytes and against training seconds, and write a PNG.

    Each method has a mark at its mean over seeds, in float32 with a line of one standard deviation to both
    sides; those of a family that differ in size are joined. Against bytes there is a mark for each precision.
    There are no panels of seconds where no times were taken.

    Args:
        points: At least one.
        titles: Of the benchmarks, by name; each has a row of panels.
        path: The file; it appears whole or not at all.

    Raises:
        StorageError: When it cannot be written.
    """
    from matplotlib.figure import Figure  # takes half a second
    from matplotlib.lines import Line2D

    benchmarks = list(dict.fromkeys(point.benchmark for point in points))
    columns = 1 + any(point.seconds for point in points)
    figure = Figure(figsize=(6 * columns, 0.9 + 4.6 * len(benchmarks)), layout="constrained")
    rows = figure.subplots(len(benchmarks), columns, squeeze=False, sharey="row")
    for (left, *others), benchmark in zip(rows, benchmarks, strict=True):
        here = [point for point in points if point.benchmark == benchmark]
        for family in dict.fromkeys(point.family for point in here):
            own = [point for point in here if point.family == family]
            for dtype in DTYPES:
                _line(left, [p for p in own if p.dtype == dtype], "bytes")
            for right in others:
                _line(right, [p for p in own if p.dtype == DTYPES[0] and p.seconds], "seconds")
        left.set_title(titles[benchmark], fontsize=10, loc="left")
        left.set_xscale("log")
        left.set_xlabel("bytes of the delta (log)")
        left.set_ylabel("test top-1 accuracy (%)")
        for right in others:
            right.set_xlabel("seconds of training steps")
            right.set_xlim(left=0)
        for panel in (left, *others):
            panel.grid(alpha=0.25)
            panel.spines[["top", "right"]].set_visible(False)
    present = [name for name in FAMILIES if any(point.family == name for point in points)]
    handles = [Line2D([], [], color=FAMILIES[n].colour, marker="o", label=FAMILIES[n].title) for n in present]
    handles += [
        Line2D(
            [], [], color="#555555", marker=mark, linestyle="none", label=dtype, markerfacecolor=_fill(dtype)
        )
        for dtype, mark in MARKERS.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3 * columns, frameon=False, fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def _line(panel: Any, points: list[Point], axis: str) -> None:
    if not points:
        return
    points = sorted(points, key=lambda point: float(getattr(point, axis)))
    dtype = points[0].dtype
    plain = dtype == DTYPES[0]
    panel.errorbar(
        [getattr(point, axis) for point in points],
        [point.top1.mean for point in points],
        yerr=[point.top1.deviation or 0.0 for point in points] if plain else None,
        color=FAMILIES[points[0].family].colour,
        marker=MARKERS[dtype],
        markerfacecolor=_fill(dtype),
        markersize=5 if plain else 4,
        linewidth=1.2 if plain else 0.6,
        linestyle="none" if points[0].family == SPREAD else "-" if plain else ":",
        elinewidth=1,
    )


def _fill(dtype: str) -> str | None:
    return None if dtype == DTYPES[0] else "white"


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
