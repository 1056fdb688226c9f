"""Draws ``docs/transfer.svg``, which the README shows, from ``docs/results/transfer.jsonl``.

    python docs/picture.py

A panel a task: mean accuracy on its test pictures against the bytes of the file that is kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

HERE = Path(__file__).parent
TASKS = {
    "photos": ("photos of 6 kinds", 6),
    "cifar10": ("CIFAR-10 (JPEG)", 10),
    "tiny20": ("20 of Tiny-ImageNet", 20),
    "digits": ("digits", 10),
    "kinds": ("5 coarse groups", 5),
}
"""Task -> its title and its classes."""
METHODS = {
    "logistic regression": ("classifier alone\n(logistic regression)", "s", "#777777"),
    "60 KB": ("fit --budget 60KB", "o", "#0072b2"),
    "no flag": ("fit, no flag", "D", "#d55e00"),
    "full": ("everything learned", "^", "#222222"),
}
"""Method -> its label, its mark and its colour."""
FEATURES, BODY = 1280, 3_413_073
"""Of EfficientNet-Lite0: features, and values (statistics too) without the classifier."""


def best_rate(rows: list[dict[str, Any]], task: str) -> float | None:
    """Return the rate of full training that validation pictures prefer, of those that were tried."""
    tuned = [row for row in rows if (row["task"], row["method"], row["seed"]) == (task, "full", 0)]
    return min(tuned, key=lambda row: row["validation_loss"], default={"lr": None})["lr"]


def points(rows: list[dict[str, Any]]) -> Iterator[tuple[str, str, float, float, int]]:
    """Yield task, method, bytes of the file, mean accuracy in percent, and seeds."""
    for task, (_, classes) in TASKS.items():
        head = 4 * (FEATURES + 1) * classes
        for method in METHODS:
            rates = (None, best_rate(rows, task))
            found = [
                row
                for row in rows
                if row["task"] == task and row["method"] == method and row.get("lr") in rates
            ]
            if found:
                usual = head if method == "logistic regression" else 4 * BODY + head
                size = fmean(row.get("delta_bytes", usual) for row in found)
                yield task, method, size, 100 * fmean(row["top1"] for row in found), len(found)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the picture."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.4), layout="constrained")
    *places, last = figure.subplots(2, 3).flat
    panels = dict(zip(TASKS, places, strict=True))
    for task, panel in panels.items():
        panel.set_title(TASKS[task][0], fontsize=12)
        panel.set_xscale("log")
        panel.set_xlim(1e4, 1e8)
        panel.set_xticks([1e4, 1e5, 1e6, 1e7], ["10 KB", "100 KB", "1 MB", "10 MB"])
        panel.minorticks_off()
        panel.margins(y=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=9)
    drawn: dict[str, Any] = {}
    found = [*points(rows)]
    for task, method, size, top1, _ in found:
        label, mark, colour = METHODS[method]
        (drawn[method],) = panels[task].plot(size, top1, mark, color=colour, label=label, markersize=7)
        near = [
            y
            for of, other, x, y, _ in found
            if (of, other) != (task, method) and of == task and 0.1 < x / size < 10
        ]
        beside = [y for y in near if abs(y - top1) < 1]
        below = any(y > top1 for y in beside)
        panels[task].annotate(
            f"{top1:.1f}",
            (size, top1),
            xytext=(7, -5 if below else 5 if beside else 0),
            textcoords="offset points",
            va="center",
            fontsize=10,
            color=colour,
        )
    last.axis("off")
    last.legend(handles=[*drawn.values()], loc="center", frameon=False, fontsize=10)
    for task in ("photos", "digits"):
        panels[task].set_ylabel("test accuracy, %", fontsize=10)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sparsetune"}):
        figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None})


if __name__ == "__main__":
    lines = (HERE / "results" / "transfer.jsonl").read_text().splitlines()
    draw([json.loads(line) for line in lines], HERE / "transfer.svg")
