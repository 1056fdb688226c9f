"""The paper's figures, drawn from our results with the paper's points on top."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from sparsetune.studies.definitions import TRANSFORMER
from sparsetune.studies.paper.experiments import (
    COUNTS,
    DENSENET,
    FRACTIONS,
    NAMES,
    SIZELESS,
    SIZES,
    WIDE,
    WRN,
    published,
)
from sparsetune.studies.paper.results import Results, Spread
from sparsetune.studies.sources import learned_parameters, total_parameters
from sparsetune.studies.store import Settings

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
            self.empty, self.top = False, max(self.top, *(height for _, height in known))
            style = {"marker": "o", "markersize": 4, "linewidth": 1.4, **style}
            self.axes.plot(*zip(*known, strict=True), color=colour, label=label, **style)

    def spreads(self, x: list[Any], found: list[Spread | None], colour: str) -> None:
        """Draw a standard deviation over seeds to both sides of each point that has one."""
        known = [(a, each.mean, each.deviation) for a, each in zip(x, found, strict=True) if each]
        bars = [bar for bar in known if bar[2] is not None]
        if bars:
            style: Any = {"fmt": "none", "elinewidth": 1.2, "capsize": 2.5}
            places, means, deviations = zip(*bars, strict=True)
            self.axes.errorbar(places, means, deviations, ecolor=colour, **style)

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
            self.empty, self.top = False, max(self.top, y)
            self.axes.axhline(y, color=colour, linestyle="--", linewidth=1.2, label=label)

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

    svg: Any = {"svg.fonttype": "none", "svg.hashsalt": title}
    with matplotlib.rc_context({**svg, "font.size": 10, "font.family": "sans-serif"}):
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


SIZED: list[Settings] = [{**SIZELESS, **size} for size in SIZES]
TICKS = [f"{p:g}".lstrip("0") for p in FRACTIONS] + [str(k) for k in COUNTS]
FIVE = [name for name in NAMES if name not in (WIDE["model"], TRANSFORMER)]
PALETTE = dict(zip(FIVE, (BLUE, ORANGE, GREEN, PURPLE, GREY), strict=True))
DIMS = {"out": BLUE, "in": GREEN, "height": ORANGE, "width": PURPLE}


def fit_line(fractions: Sequence[float], accuracies: Sequence[float]) -> tuple[float, float, float]:
    """Fit ``accuracy = slope * ln(fraction) + level`` by least squares; return slope, level and R²."""
    x, y = np.log(np.asarray(fractions, float)), np.asarray(accuracies, float)
    slope, level = np.polyfit(x, y, 1)
    spread = float(((y - y.mean()) ** 2).sum())
    rest = float(((y - slope * x - level) ** 2).sum())
    return float(slope), float(level), 1 - rest / spread if spread else 0.0


def curve(results: Results, model: str, frozen: str | None = None) -> tuple[list[float], list[float]]:
    """Return the fractions of figure 1 that were run for a model, and their accuracies."""
    found = [(p, results.top1("fig1", model=model, frozen=frozen, fraction=p)) for p in FRACTIONS]
    known = [(p, top1) for p, top1 in found if top1 is not None]
    return [p for p, _ in known], [top1 for _, top1 in known]


def _by_size(made: Panel, colour: str, label: str, results: Results, experiment: str, **where: Any) -> None:
    """Draw a line over the fractions and one over the numbers of filters."""
    row = [results.one(experiment, **size, **where) for size in SIZED]
    places = [*range(len(SIZES))]
    made.spreads(places, row, colour)
    for part in (slice(0, len(FRACTIONS)), slice(len(FRACTIONS), None)):
        made.line(places[part], [each.mean if each else None for each in row[part]], colour, label)


def _over_parameters(results: Results, experiment: str, **where: Any) -> tuple[list[Settings], list[Any]]:
    """Return rows of an experiment in the order of their learned parameters, and their accuracies."""
    points = sorted(
        results.points(experiment, **where), key=lambda point: learned_parameters(results.counted(point))
    )
    return points, [spread and spread.mean for spread in map(results.spread, points)]


def _paper(
    made: Panel, experiment: str, points: Sequence[Settings], place: Callable[[Settings], float]
) -> None:
    told = [(place(point), number.top1) for point in points if (number := published(experiment, point))]
    made.paper([x for x, _ in told], [y for _, y in told])


def _fig1(results: Results) -> Iterator[Panel]:
    for model in FIVE:
        with panel(results.title(model), "fraction of filters | filters a layer") as made:
            made.categories(TICKS, len(FRACTIONS))
            for frozen, colour, label in ((None, BLUE, "rest random"), ("zero", GREEN, "rest zero")):
                _by_size(made, colour, label, results, "fig1", model=model, frozen=frozen)
            points = results.points("fig1", model=model)
            _paper(made, "fig1", points, lambda point: SIZED.index({key: point[key] for key in SIZELESS}))
        yield made


def _fig2(results: Results) -> Iterator[Panel]:
    with panel("(a) by dimension", "share of all parameters learned") as whole:
        for dim, colour in DIMS.items():
            points, accuracies = _over_parameters(results, "fig2", dim=dim)
            counted = [*map(results.counted, points)]
            shares = [learned_parameters(each) / total_parameters(each) for each in counted]
            whole.line(shares, accuracies, colour, f"along {dim}", linewidth=0.8)
    yield whole
    with panel("(b) by size of the slice", "fraction | indices of the slice") as sizes:
        sizes.categories(TICKS, len(FRACTIONS))
        for dim in ("out", "in"):
            _by_size(sizes, DIMS[dim], f"along {dim}", results, "fig2", dim=dim)
    yield sizes


def _fig3(results: Results) -> Iterator[Panel]:
    with panel("(a) hollow: rest zero", "learned parameters (log)") as counts:
        counts.axes.set_xscale("log")
        for model in FIVE:
            for frozen in (None, "zero"):
                points, found = _over_parameters(results, "fig3", model=model, frozen=frozen)
                style = {"linestyle": "none", "markerfacecolor": "none" if frozen else PALETTE[model]}
                label = "_" if frozen else results.title(model)
                sizes = [learned_parameters(results.counted(point)) for point in points]
                counts.line(sizes, found, PALETTE[model], label, **style)
    yield counts
    with panel("(b) lines fitted", "fraction of filters (log)") as lines:
        lines.axes.set_xscale("log")
        for model in FIVE:
            fractions, accuracies = curve(results, model)
            lines.line(fractions, [*accuracies], PALETTE[model], results.title(model), linestyle="none")
            if len(fractions) > 2:
                slope, level, _ = fit_line(fractions, accuracies)
                ends = [fractions[0], fractions[-1]]
                fitted = [slope * math.log(p) + level for p in ends]
                lines.axes.plot(ends, fitted, color=PALETTE[model], linewidth=1)
        shown = (FRACTIONS[0], *FRACTIONS[3:])
        lines.axes.set_xticks(shown, [f"{p:g}" for p in shown])
        lines.axes.minorticks_off()
    yield lines


def _fig4(results: Results) -> Iterator[Panel]:
    for model in (WRN["model"], DENSENET["model"]):
        with panel(results.title(model), "fraction of filters | filters a layer") as made:
            made.categories(TICKS, len(FRACTIONS))
            for norm, colour, label in ((True, BLUE, "BN learned"), (False, GREEN, "BN not learned")):
                _by_size(made, colour, label, results, "fig4", model=model, norm=norm)
            made.level(results.top1("fig4", model=model, fraction=1.0), "black", "everything learned")
        yield made


def _fig5(results: Results) -> Iterator[Panel]:
    sizes: list[Settings] = [{"filters": 1}, {"fraction": 0.1}, {"fraction": 0.4}]
    for data in ("cifar10", "cifar100"):
        with panel(results.title(data), "learned of each layer") as made:
            made.categories(["1 filter", "10 %", "40 %"])
            for model, colour in ((WIDE["model"], GREEN), (DENSENET["model"], BLUE)):
                row = [results.one("fig5", model=model, data=data, **size) for size in sizes]
                made.spreads([0, 1, 2], row, colour)
                made.line(
                    [0, 1, 2], [each.mean if each else None for each in row], colour, results.title(model)
                )
                whole = results.top1("fig5", model=model, data=data, fraction=1.0)
                made.level(whole, colour, f"{results.title(model)}, everything")
            points = [point for point in results.points("fig5", data=data) if point["fraction"] != 1.0]
            _paper(
                made, "fig5", points, lambda point: 0 if point["filters"] else 1 + (point["fraction"] > 0.1)
            )
        yield made


def _fig6(results: Results) -> Iterator[Panel]:
    for key, part, title, y in (
        ("mean", None, "Mean |w| of each convolution", "mean |w|"),
        ("variance", None, "Variance of each convolution", "variance (log)"),
        ("mean", "learned", "Mean |w| of its learned slice", "mean |w|"),
    ):
        with panel(title, "convolution", y) as made:
            if key == "variance":
                made.axes.set_yscale("log")
            for fraction, colour in ((0.1, BLUE), (0.4, GREEN), (0.7, ORANGE), (1.0, RED), (None, GREY)):
                layers = magnitudes(results, fraction)
                values = [layer[part] if part else layer for layer in layers]
                label = "as drawn" if fraction is None else f"{fraction:.0%} learned"
                heights = [value[key] if value else None for value in values]
                made.line([*range(1, len(layers) + 1)], heights, colour, label, markersize=2.5, linewidth=1)
        yield made


def _text(results: Results) -> Iterator[Panel]:
    points = results.points("text", norm=True)
    sizes = [point for point in points if point["fraction"] != 1.0]
    with panel(results.title(points[0]["model"]), "learned of each layer") as made:
        made.categories(["none", "1 filter", "10 %", "40 %", "70 %"])
        for norm, colour, label in ((True, BLUE, "norm learned"), (False, GREEN, "norm not learned")):
            row = [results.spread({**point, "norm": norm}) for point in sizes]
            made.spreads([*range(len(sizes))], row, colour)
            made.line([*range(len(sizes))], [each.mean if each else None for each in row], colour, label)
        made.level(results.top1("text", fraction=1.0), "black", "everything learned")
    yield made


def magnitudes(results: Results, fraction: float | None) -> list[dict[str, Any]]:
    """Return each convolution's magnitudes after table 3's training of the first seed; ``None``: as drawn."""
    rows = results.rows(results.points("fig6", fraction=fraction)[0])
    return rows[0].result.get("layers", []) if rows else []


DRAWN: dict[str, Callable[[Results], Iterator[Panel]]] = {
    "fig1": _fig1,
    "fig2": _fig2,
    "fig3": _fig3,
    "fig4": _fig4,
    "fig5": _fig5,
    "fig6": _fig6,
    "text": _text,
}


def draw(experiment: str, results: Results) -> list[str]:
    """Return the panels of a figure as SVG pictures; those without results are left out."""
    return [made.svg for made in DRAWN[experiment](results) if made.svg] if experiment in DRAWN else []
