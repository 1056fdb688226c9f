"""One panel of a figure as an SVG picture."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

BLUE, GREEN, RED, ORANGE, PURPLE, GREY = "#1f5fa8", "#2e8b57", "#c0392b", "#d98200", "#7d3c98", "#8a8a8a"
SHADE = "#eeeeee"
"""Behind integer numbers of filters, as in the paper."""


class Panel:
    """A drawing with two axes; :func:`panel` makes one.

    Attributes:
        axes: Matplotlib's.
        empty: Whether nothing was drawn yet.
        top: The largest height drawn.
        svg: The picture, once it is finished.
    """

    def __init__(self, axes: Any) -> None:
        self.axes, self.empty, self.top, self.svg = axes, True, 0.0, ""

    def line(self, x: list[Any], y: list[float | None], colour: str, label: str, **style: Any) -> None:
        """Draw the points that there are, joined; ``None`` is left out."""
        known = [(a, b) for a, b in zip(x, y, strict=True) if b is not None]
        if known:
            self._drawn(*(height for _, height in known))
            style = {"marker": "o", "markersize": 4, "linewidth": 1.4, **style}
            self.axes.plot(*zip(*known, strict=True), color=colour, label=label, **style)

    def paper(self, x: list[Any], y: list[float], label: str = "paper") -> None:
        """Draw the paper's points on top."""
        if x:
            self.top = max(self.top, *y)
            self.axes.plot(
                x, y, "D", markersize=7, markerfacecolor="none", markeredgecolor=RED, label=label, zorder=5
            )

    def level(self, y: float | None, colour: str, label: str) -> None:
        """Draw a dashed line at a height."""
        if y is not None:
            self._drawn(y)
            self.axes.axhline(y, color=colour, linestyle="--", linewidth=1.2, label=label)

    def _drawn(self, *heights: float) -> None:
        self.empty, self.top = False, max(self.top, *heights)

    def categories(self, labels: list[str], shaded_from: int | None = None) -> None:
        """Name the places 0, 1, 2 … of the horizontal axis; shade those from a number on."""
        self.axes.set_xticks(range(len(labels)), labels)
        self.axes.set_xlim(-0.5, len(labels) - 0.5)
        if shaded_from is not None and shaded_from < len(labels):
            self.axes.axvspan(shaded_from - 0.5, len(labels) - 0.5, color=SHADE, zorder=0)


@contextmanager
def panel(title: str, x: str, y: str = "top-1 accuracy (%)", *, percent: bool = True) -> Iterator[Panel]:
    """Give a panel to draw on; its picture is there when the block ends.

    Args:
        title: Stands above it.
        x: Name of the horizontal axis.
        y: Of the vertical one.
        percent: Whether that starts at zero.
    """
    import matplotlib
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "font.size": 10,
        "font.family": "sans-serif",
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(4.6, 3.7), layout="constrained")
        axes = figure.subplots()
        made = Panel(axes)
        axes.set_title(title, fontsize=11)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        yield made
        if made.empty:
            return
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if percent and axes.get_yscale() == "linear":
            axes.set_ylim(0, 1.08 * made.top)
        handles, labels = axes.get_legend_handles_labels()
        named = dict(zip(labels, handles, strict=True))
        columns = {"ncols": min(3, len(named)), "fontsize": 8, "frameon": False}
        figure.legend(named.values(), named.keys(), loc="outside lower center", **columns)
        held = io.StringIO()
        figure.savefig(held, format="svg", metadata={"Date": None, "Creator": None})
        made.svg = held.getvalue()
