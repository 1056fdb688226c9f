"""The rows of a table or figure, ours beside the paper's, and the HTML that shows them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from html import escape
from statistics import fmean

from sparsetune.studies.jobs import Settings
from sparsetune.studies.paper.experiments import ENSEMBLES, LAYERS, NAMES, Experiment, Number, published
from sparsetune.studies.paper.figures import magnitudes
from sparsetune.studies.paper.results import Results
from sparsetune.studies.sources import KNOWN, learned_parameters

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; max-width: 1080px;
  margin: 0 auto; padding: 0 16px 48px; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 1.2em 0 .4em; }
h2 { font-size: 1.25rem; margin: 2em 0 .3em; border-bottom: 1px solid #ddd; padding-bottom: .2em; }
p { margin: .5em 0; } a { color: #1f5fa8; }
.note { color: #555; font-size: .9rem; }
.warn { background: #fff6e0; border-left: 4px solid #d98200; padding: .4em .8em; margin: .8em 0; }
nav { display: flex; flex-wrap: wrap; gap: .3em .8em; margin: .8em 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; margin: .8em 0; }
th, td { padding: .3em .7em; text-align: right; border-bottom: 1px solid #e6e6e6; vertical-align: top; }
th { background: #f5f5f5; font-weight: 600; }
.text { text-align: left; }
td.near { background: #e3f4e6; } td.off { background: #fdf1d8; } td.far { background: #fbe0dc; }
td.none { color: #888; }
.panels { display: flex; flex-wrap: wrap; gap: 8px; }
.panels img { max-width: 430px; min-width: 0; height: auto; flex: 1 1 300px; }
.mark { white-space: nowrap; font-weight: 600; }
.yes { color: #1c7a34; } .no { color: #b3261e; } .open { color: #777; font-weight: 400; }
@media (max-width: 640px) {
  body { font-size: 15px; padding: 0 10px 32px; } th, td { padding: .25em .45em; }
  .claims thead { display: none; }
  .claims tr { display: block; border-bottom: 1px solid #ccc; padding: .4em 0; }
  .claims td { display: block; border: 0; padding: .1em 0; }
}
@media print {
  body { max-width: none; font-size: 10pt; } nav { display: none; } h2 { break-after: avoid; }
  tr, .panels img { break-inside: avoid; } .panels img { max-width: 48%; } .wide { overflow: visible; }
  td.near, td.off, td.far, th { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""


class Cell:
    """A table's cell with a class of ``STYLE``."""

    def __init__(self, text: str, kind: str = "") -> None:
        self.text, self.kind = text, kind


def page(title: str, body: Sequence[str]) -> str:
    """Return a whole document; ``body`` holds pieces of HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def heading(text: str, identity: str) -> str:
    """Return a section's heading, with an anchor."""
    return f'<h2 id="{escape(identity)}">{escape(text)}</h2>'


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of plain text."""
    return f"<p{_class(kind)}>{escape(text)}</p>"


def table(header: Sequence[str], rows: Sequence[Sequence[str | Cell]], texts: int = 1, kind: str = "") -> str:
    """Return a table, of which the first columns are words; it scrolls by itself where it is too wide."""
    head = _row(header, "th", texts)
    body = "\n".join(_row(row, "td", texts) for row in rows)
    made = f"<table{_class(kind)}><thead>{head}</thead>\n<tbody>{body}</tbody></table>"
    return f'<div class="wide">{made}</div>'


def pictures(svgs: Sequence[str], title: str) -> str:
    """Return SVG pictures side by side, as far as there is room."""
    shown = [
        f'<img alt="{escape(title)}, panel {number}" src="data:image/svg+xml;base64,'
        f'{base64.b64encode(svg.encode()).decode()}">'
        for number, svg in enumerate(svgs, 1)
    ]
    return f'<div class="panels">{"".join(shown)}</div>'


def links(targets: Sequence[tuple[str, str]]) -> str:
    """Return links to sections: (anchor, text)."""
    return "<nav>" + " ".join(f'<a href="#{escape(a)}">{escape(text)}</a>' for a, text in targets) + "</nav>"


def _row(cells: Sequence[str | Cell], tag: str, texts: int) -> str:
    return f"<tr>{''.join(_cell(cell, tag, number < texts) for number, cell in enumerate(cells))}</tr>"


def _cell(cell: str | Cell, tag: str, is_text: bool) -> str:
    text, kind = (cell, "") if isinstance(cell, str) else (cell.text, cell.kind)
    words = " ".join(filter(None, [kind, "text" * is_text]))
    return f"<{tag}{_class(words)}>{escape(text)}</{tag}>"


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


NEAR, OFF = 2.0, 10.0
"""Percent points up to which a difference is coloured as near, and as off."""

Rows = tuple[list[str], list[list[str | Cell]]]


def rows_of(experiment: Experiment, results: Results) -> Rows:
    """Return header and rows of an experiment's table."""
    if experiment.id in OWN:
        return OWN[experiment.id](results)
    rows: list[list[str | Cell]] = []
    for point in experiment.points:
        number = published(experiment.id, point)
        rows.append(
            [
                NAMES[point["model"]],
                KNOWN[point["data"]].title,
                what(point),
                f"{learned_parameters(point):,}",
                (number and number.learned) or "",
                *_compared(results, point, number),
            ]
        )
    return ["model", "data", "learned", "parameters", "paper's", "ours", "paper", "difference"], rows


def what(settings: Settings) -> str:
    """Say which slices a row learns."""
    for name, layer in LAYERS.items():
        same = all(settings[key] == value for key, value in {"head": True, "layers": None, **layer}.items())
        if same and (settings["layers"] or settings["filters"] == 0):
            return name
    fraction, filters = settings["fraction"], settings["filters"]
    size = f"{fraction:.0%}" if fraction is not None else f"{filters} a layer"
    words = [size] if settings["dim"] == "out" else [size, f"along {settings['dim']}"]
    words += ["rest zero"] if settings["frozen"] == "zero" else []
    words += ["BN not learned"] if not settings["norm"] else []
    return ", ".join(words)


def _compared(results: Results, point: Settings, number: Number | None) -> list[str | Cell]:
    """Ours, the paper's, and the difference, where both are of one data set."""
    spread = results.spread(point)
    told = "" if number is None else f"{'about ' * number.about}{number.top1:g}"
    if spread is None:
        return [Cell("not run", "none"), told, ""]
    ours = f"{spread} (did not converge)" if spread.diverged else str(spread)
    return [ours, told, "" if number is None else _difference(results, point, spread.mean - number.top1)]


def _layers(results: Results) -> Rows:
    """Table 1, with both data sets in one row as the paper has it."""
    header = [
        "model",
        "learned",
        "parameters",
        "paper's",
        "C10",
        "paper",
        "difference",
        "C100",
        "paper",
        "difference",
    ]
    rows: list[list[str | Cell]] = []
    points = results.points("table1")
    for ten, hundred in zip(points[::2], points[1::2], strict=True):
        counts = dict.fromkeys(f"{learned_parameters(point):,}" for point in (ten, hundred))
        numbers = [published("table1", point) for point in (ten, hundred)]
        told = dict.fromkeys(number.learned for number in numbers if number and number.learned)
        cells = [
            cell
            for point, number in zip((ten, hundred), numbers, strict=True)
            for cell in _compared(results, point, number)
        ]
        rows.append([NAMES[ten["model"]], what(ten), " / ".join(counts), " / ".join(told), *cells])
    return header, rows


def _difference(results: Results, point: Settings, points: float) -> str | Cell:
    if results.selection.adjusted(point)["data"] != point["data"]:
        return ""
    kind = "near" if abs(points) <= NEAR else "off" if abs(points) <= OFF else "far"
    return Cell(f"{points:+.2f}", kind)


def _ensembles(results: Results) -> Rows:
    header = [
        "model type",
        "parameters",
        "paper's",
        "optimiser",
        "mean",
        "paper",
        "ensemble",
        "paper",
        "difference",
    ]
    rows: list[list[str | Cell]] = []
    for name, size in ENSEMBLES.items():
        points = results.points("table4", **{"fraction": None, "filters": None, **size})
        number = published("table4", points[0])
        best = results.best(points)
        counts = [name, f"{learned_parameters(points[0]):,}", (number and number.learned) or ""]
        told = [f"{number.mean:g}", f"{number.top1:g}"] if number and number.mean else ["", ""]
        if best is None or number is None:
            rows.append([*counts, "", Cell("not run", "none"), told[0], Cell("not run", "none"), told[1], ""])
            continue
        point, spread = best
        mean = results.spread(point, "mean_top1")
        gap = _difference(results, point, spread.mean - number.top1)
        opt = "SGD" if point["opt"] == "momentum" else "Adam"
        rows.append([*counts, opt, str(mean), told[0], str(spread), told[1], gap])
    return header, rows


def _magnitudes(results: Results) -> Rows:
    header = ["learned", "convolutions", "mean |w|", "variance", "mean |w| of the slice"]
    rows: list[list[str | Cell]] = []
    for fraction in (0.1, 0.4, 0.7, 1.0, None):
        name = "as drawn" if fraction is None else f"{fraction:.0%}"
        layers = magnitudes(results, fraction)
        if not layers:
            rows.append([name, Cell("not run", "none"), "", "", ""])
            continue
        slices = [layer["learned"]["mean"] for layer in layers if layer["learned"]]
        means = [fmean(layer[key] for layer in layers) for key in ("mean", "variance")]
        shown = f"{fmean(slices):.4f}" if slices else ""
        rows.append([name, str(len(layers)), f"{means[0]:.4f}", f"{means[1]:.5f}", shown])
    return header, rows


OWN: dict[str, Callable[[Results], Rows]] = {"table1": _layers, "table4": _ensembles, "fig6": _magnitudes}
"""Tables of another form."""
