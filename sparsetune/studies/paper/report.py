"""The report: one page with every table and figure, ours beside the paper's, and the claims decided."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, FileSystemLoader

from sparsetune.errors import DataError, SparsetuneError
from sparsetune.host import duration, reason, write_text
from sparsetune.studies.intervals import Mark
from sparsetune.studies.jobs import KINDS
from sparsetune.studies.paper.experiments import (
    DENSENET,
    ENSEMBLES,
    EVERY,
    EXPERIMENTS,
    LAYERS,
    SIZELESS,
    WRN,
    Experiment,
    Number,
    published,
)
from sparsetune.studies.paper.figures import FIVE, curve, draw, fit_line, magnitudes
from sparsetune.studies.paper.results import Results, Selection
from sparsetune.studies.paper.rules import CLAIMS
from sparsetune.studies.sources import KNOWN, learned_parameters
from sparsetune.studies.store import Row, Settings, from_lines, to_lines


@dataclass(frozen=True)
class Cell:
    """A table's cell with a class of the report's style."""

    text: str
    kind: str


NOT_RUN = Cell("not run", "none")
BESIDE = ("paper", "difference")
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
                results.title(point["model"]),
                results.title(point["data"]),
                what(point),
                f"{learned_parameters(results.counted(point)):,}",
                (number and number.learned) or "",
                *_compared(results, point, number),
            ]
        )
    return ["model", "data", "learned", "parameters", "paper's", "ours", *BESIDE], rows


def what(settings: Settings) -> str:
    """Say which slices a row learns."""
    for name, layer in LAYERS.items():
        same = all(settings[key] == value for key, value in {"head": True, "layers": None, **layer}.items())
        if same and settings["norm"] and (settings["layers"] or settings["filters"] == 0):
            return name
    fraction, filters = settings["fraction"], settings["filters"]
    size = f"{fraction:.0%}" if fraction is not None else f"{filters} a layer"
    words = [size] if settings["dim"] == "out" else [size, f"along {settings['dim']}"]
    words += ["rest zero"] if settings["frozen"] == "zero" else []
    words += ["norm not learned"] if not settings["norm"] else []
    return ", ".join(words)


def _compared(results: Results, point: Settings, number: Number | None) -> list[str | Cell]:
    """Ours, the paper's, and the difference, where both are of one data set."""
    spread = results.spread(point)
    told = "" if number is None else f"{'about ' * number.about}{number.top1:g}"
    if spread is None:
        return [NOT_RUN, told, ""]
    ours = f"{spread} (did not converge)" if spread.diverged else str(spread)
    return [ours, told, "" if number is None else _difference(results, point, spread.mean - number.top1)]


def _layers(results: Results) -> Rows:
    """Table 1, with both data sets in one row as the paper has it."""
    header = ["model", "learned", "parameters", "paper's", "C10", *BESIDE, "C100", *BESIDE]
    rows: list[list[str | Cell]] = []
    points = results.points("table1")
    for ten, hundred in zip(points[::2], points[1::2], strict=True):
        counts = dict.fromkeys(f"{learned_parameters(results.counted(point)):,}" for point in (ten, hundred))
        numbers = [published("table1", point) for point in (ten, hundred)]
        told = dict.fromkeys(number.learned for number in numbers if number and number.learned)
        cells = [
            cell
            for point, number in zip((ten, hundred), numbers, strict=True)
            for cell in _compared(results, point, number)
        ]
        rows.append([results.title(ten["model"]), what(ten), " / ".join(counts), " / ".join(told), *cells])
    return header, rows


def _difference(results: Results, point: Settings, points: float) -> str | Cell:
    if results.preset.instead or results.selection.adjusted(point)["data"] != point["data"]:
        return ""
    kind = "near" if abs(points) <= NEAR else "off" if abs(points) <= OFF else "far"
    return Cell(f"{points:+.2f}", kind)


def _ensembles(results: Results) -> Rows:
    header = ["model type", "parameters", "paper's", "optimiser", "mean", "paper", "ensemble", *BESIDE]
    rows: list[list[str | Cell]] = []
    for name, size in ENSEMBLES.items():
        points = results.points("table4", **{"fraction": None, "filters": None, **size})
        number = published("table4", points[0])
        best = results.best(points)
        counts = [
            name,
            f"{learned_parameters(results.counted(points[0])):,}",
            (number and number.learned) or "",
        ]
        told = [f"{number.mean:g}", f"{number.top1:g}"] if number and number.mean else ["", ""]
        if best is None or number is None:
            rows.append([*counts, "", NOT_RUN, told[0], NOT_RUN, told[1], ""])
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
            rows.append([name, NOT_RUN, "", "", ""])
            continue
        slices = [layer["learned"]["mean"] for layer in layers if layer["learned"]]
        means = [fmean(layer[key] for layer in layers) for key in ("mean", "variance")]
        shown = f"{fmean(slices):.4f}" if slices else ""
        rows.append([name, str(len(layers)), f"{means[0]:.4f}", f"{means[1]:.5f}", shown])
    return header, rows


OWN: dict[str, Callable[[Results], Rows]] = {"table1": _layers, "table4": _ensembles, "fig6": _magnitudes}
"""Tables of another form."""


PAGE, DATA = "index.html", "results.jsonl"
TEXTS = {"table1": 2, "table4": 1, "fig6": 1}
"""How many columns of a table are words, where it is not three."""
MARKS: dict[Mark, Cell] = {
    "holds": Cell("holds", "mark yes"),
    "does not": Cell("does not", "mark no"),
    "too close to tell": Cell("too close to tell", "mark open"),
    "not run": Cell("not run", "mark open"),
}
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    keep_trailing_newline=True,
)
TITLE = "Randomly weighted networks: the paper's experiments, again"


def write_report(rows: Sequence[Row], selection: dict[str, Any], folder: Path) -> Path:
    """Write the page, and beside it all results as ``results.jsonl``; return the page's path.

    Args:
        rows: All results.
        selection: What was asked for, as plain JSON values, with the data that was not there.
        folder: Where.

    Raises:
        DataError: When these are not results of this study.
        StorageError: When it cannot be written.
    """
    try:
        text = page(results_of(rows, selection), selection["absent"])
    except SparsetuneError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise DataError(
            f"results cannot be shown: one is not as this study writes them ({reason(error)}); take it out, "
            "or make them anew with `sparsetune reproduce paper`."
        ) from error
    write_results(rows, selection, folder / DATA)
    write_text(folder / PAGE, text)
    return folder / PAGE


def results_of(rows: Sequence[Row], selection: dict[str, Any]) -> Results:
    """Return the results of what was asked for; arguments as for :func:`write_report`."""
    chosen = Selection.from_json({name: value for name, value in selection.items() if name != "absent"})
    return Results(rows, chosen)


def write_results(rows: Iterable[Row], selection: dict[str, Any], path: Path) -> None:
    """Write results as JSON lines, behind what was asked for."""
    write_text(path, to_lines({"selection": selection}, rows))


def read_results(path: Path) -> tuple[list[Row], dict[str, Any]]:
    """Read a ``results.jsonl`` of an earlier report.

    Raises:
        DataError: When it is none.
    """
    return from_lines(path, "a report", lambda first: dict(first["selection"]))


def page(results: Results, absent: Sequence[str]) -> str:
    """Return the report as HTML."""
    shown = {*EXPERIMENTS, *results.preset.experiments}
    claims = [claim for claim in CLAIMS if results.preset.decides and claim.experiment in shown]
    verdicts = [claim.verdict(results) for claim in claims]
    papers = [v.mark for claim, v in zip(claims, verdicts, strict=True) if claim.experiment in EXPERIMENTS]
    data = [row.about["data"] for row in results.by_id.values()]
    return TEMPLATES.get_template("report.html").render(
        title=TITLE,
        results=results,
        limits=_limits(results.selection),
        lossy=sorted({KNOWN[each["name"]].title for each in data if each["lossy"]}),
        absent=[KNOWN[name].title for name in absent],
        summary=summary(results, papers),
        claims=[
            [
                MARKS[verdict.mark],
                claim.where,
                claim.text,
                claim.rule,
                claim.paper,
                verdict.said,
                verdict.margin,
                scale(results, claim.experiment, verdict.seeds) if verdict.seeds else "",
            ]
            for claim, verdict in zip(claims, verdicts, strict=True)
        ],
        sections=[_section(experiment, results) for experiment in EVERY.values() if experiment.id in shown],
        duration=duration(sum(row.result.get("seconds", 0.0) for row in results.by_id.values())),
        machines=Counter(_machine(row.about) for row in results.by_id.values()).items(),
    )


def summary(results: Results, marks: Sequence[Mark]) -> list[str]:
    """Return what was run and what it came to, in a few sentences; of what was not run there is none.

    Args:
        results: All results.
        marks: Of the paper's claims; empty where none is decided.
    """
    trained = sum(KINDS[row.settings["kind"]].trains for row in results.by_id.values())
    if not trained:
        return []
    seeds = f"{len(results.seeds)} seed{'s' * (len(results.seeds) > 1)}"
    told = [f"{trained:,} trainings with {seeds}."]
    told += [f"Of the paper's {len(marks)} claims, {_tally(marks)}"] if marks else []
    keeps, zeroed = [], []
    for model in (DENSENET["model"], WRN["model"]):
        few, zero = (results.top1("fig1", model=model, fraction=0.1, frozen=rest) for rest in (None, "zero"))
        whole = results.top1("fig4", model=model, fraction=1.0)
        if few and whole:
            keeps.append(f"{few:.1f} % where all of it has {whole:.1f} % ({results.title(model)})")
        if few and zero:
            zeroed.append(f"{few - zero:+.1f} points ({results.title(model)})")
    told += [f"A tenth of each layer's filters, the rest random, comes to {_and(keeps)}."] if keeps else []
    told += [f"Leaving the rest random in place of zero is worth {_and(zeroed)}."] if zeroed else []
    member = results.one("table4", **SIZELESS | ENSEMBLES["Share-Conv-0.9"])
    alone = results.one("table4", **SIZELESS | ENSEMBLES["FC"])
    if member and alone:
        told.append(
            f"Ensembles that share nine tenths come to {member.mean:.1f} %, with the classifier alone "
            f"retrained {alone.mean:.1f} %."
        )
    return told


def _and(words: Sequence[str]) -> str:
    return " and ".join(words)


def _limits(chosen: Selection) -> list[str]:
    """What trainings were cut down to."""
    told = [f"{chosen.train_limit:,} training pictures"] if chosen.train_limit else []
    told += [f"{chosen.test_limit:,} test pictures"] if chosen.test_limit else []
    return told + ([f"{chosen.epochs} epoch{'s' * (chosen.epochs > 1)}"] if chosen.epochs else [])


def scale(results: Results, experiment: str, seeds: int) -> str:
    """Say how large an experiment's trainings were that decide a claim, with so many seeds."""
    points = [results.selection.adjusted(point) for point in results.points(experiment)]
    epochs = sorted({point["epochs"] for point in points})
    pictures = sorted({point["train_limit"] or KNOWN[point["data"]].train for point in points})
    told = f"{_span(epochs)} epoch{'s' * (epochs[-1] > 1)} of {_span(pictures)} pictures"
    return f"{told}, {seeds} seed{'s' * (seeds > 1)}"


def _span(numbers: Sequence[int]) -> str:
    return " to ".join(f"{number:,}" for number in dict.fromkeys((numbers[0], numbers[-1])))


def _tally(marks: Sequence[Mark]) -> str:
    words: dict[Mark, tuple[str, str]] = {
        "holds": ("holds", "hold"),
        "does not": ("does not", "do not"),
        "too close to tell": ("is too close to tell", "are too close to tell"),
        "not run": ("was not run", "were not run"),
    }
    counts = {mark: marks.count(mark) for mark in words}
    return ", ".join(f"{n} {words[mark][n > 1]}" for mark, n in counts.items() if n) + "."


def _section(experiment: Experiment, results: Results) -> dict[str, Any]:
    done, count = results.finished(experiment.id)
    panels = draw(experiment.id, results) if done else []
    fitted = done and experiment.id == "fig3"
    return {
        "experiment": experiment,
        "done": done,
        "count": count,
        "panels": [b64encode(svg.encode()).decode() for svg in panels],
        "table": _fits(results) if fitted else (*rows_of(experiment, results), TEXTS.get(experiment.id, 3)),
        "folded": experiment.id.startswith("fig") and not fitted,
    }


def _fits(results: Results) -> tuple[Any, ...]:
    rows = []
    for model in FIVE:
        fractions, accuracies = curve(results, model)
        if len(fractions) > 2:
            slope, level, r2 = fit_line(fractions, accuracies)
            rows.append(
                [results.title(model), f"{slope:.2f}", f"{level:.1f}", f"{r2:.3f}", str(len(fractions))]
            )
    return (["model", "slope (points per e-fold)", "at fraction 1", "R²", "fractions"], rows, 1)


def _machine(about: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    where = about["accelerator"] or f"{about['processor']}, {about['threads']} thread(s)"
    return f"{where}; {versions}; commit {about['commit']}; {about['date']}"
