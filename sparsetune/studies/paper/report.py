"""The report: one page with every table and figure, ours beside the paper's, and the claims decided."""

from __future__ import annotations

from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from sparsetune.host import duration, write_text
from sparsetune.studies.paper.experiments import EXPERIMENTS, NAMES, Experiment
from sparsetune.studies.paper.figures import FIVE, curve, draw, fit_line
from sparsetune.studies.paper.results import Results, Selection
from sparsetune.studies.paper.rules import CLAIMS
from sparsetune.studies.paper.tables import Cell, rows_of
from sparsetune.studies.sources import KNOWN
from sparsetune.studies.store import Row, from_lines, to_lines

PAGE, DATA = "index.html", "results.jsonl"
TEXTS = {"table1": 2, "table4": 1, "fig6": 1}
"""How many columns of a table are words, where it is not three."""
MARKS = {
    True: Cell("holds", "mark yes"),
    False: Cell("does not", "mark no"),
    None: Cell("not run", "mark open"),
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
        StorageError: When it cannot be written.
    """
    write_text(folder / DATA, to_lines({"selection": selection}, rows))
    absent = selection["absent"]
    chosen = Selection.from_json({name: value for name, value in selection.items() if name != "absent"})
    write_text(folder / PAGE, page(Results(rows, chosen), absent))
    return folder / PAGE


def read_results(path: Path) -> tuple[list[Row], dict[str, Any]]:
    """Read a ``results.jsonl`` of an earlier report.

    Raises:
        DataError: When it is none.
    """
    return from_lines(path, "a report", lambda first: dict(first["selection"]))


def page(results: Results, absent: Sequence[str]) -> str:
    """Return the report as HTML."""
    verdicts = [claim.decided(results) for claim in CLAIMS]
    data = [row.about["data"] for row in results.by_id.values()]
    return TEMPLATES.get_template("report.html").render(
        title=TITLE,
        results=results,
        limits=_limits(results.selection),
        lossy=sorted({KNOWN[each["name"]].title for each in data if each["lossy"]}),
        absent=[KNOWN[name].title for name in absent],
        tally=_tally([verdict and verdict[0] for verdict in verdicts]),
        claims=[
            [
                MARKS[verdict and verdict[0]],
                claim.where,
                claim.text,
                claim.rule,
                verdict[1] if verdict else "",
            ]
            for claim, verdict in zip(CLAIMS, verdicts, strict=True)
        ],
        sections=[_section(experiment, results) for experiment in EXPERIMENTS.values()],
        duration=duration(sum(row.result.get("seconds", 0.0) for row in results.by_id.values())),
        machines=Counter(_machine(row.about) for row in results.by_id.values()).items(),
    )


def _limits(chosen: Selection) -> list[str]:
    """What trainings were cut down to."""
    told = [f"{chosen.train_limit:,} training pictures"] if chosen.train_limit else []
    told += [f"{chosen.test_limit:,} test pictures"] if chosen.test_limit else []
    return told + ([f"{chosen.epochs} epoch{'s' * (chosen.epochs > 1)}"] if chosen.epochs else [])


def _tally(verdicts: Sequence[bool | None]) -> str:
    held, broken = verdicts.count(True), verdicts.count(False)
    return (
        f"{held} hold{'s' * (held == 1)}, {broken} do{'es' * (broken == 1)} not, "
        f"{verdicts.count(None)} cannot be decided by what was run."
    )


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
            rows.append([NAMES[model], f"{slope:.2f}", f"{level:.1f}", f"{r2:.3f}", str(len(fractions))])
    return (["model", "slope (points per e-fold)", "at fraction 1", "R²", "fractions"], rows, 1)


def _machine(about: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    where = about["accelerator"] or f"{about['processor']}, {about['threads']} thread(s)"
    return f"{where}; {versions}; commit {about['commit']}; {about['date']}"
