"""The report: one page with every table and figure, ours beside the paper's, and the claims decided."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsetune.errors import DataError
from sparsetune.host import duration, write_text
from sparsetune.studies.paper import tables
from sparsetune.studies.paper.experiments import EXPERIMENTS, NAMES, SCHEDULES, Experiment
from sparsetune.studies.paper.figures import FIVE, curve, draw, fit_line
from sparsetune.studies.paper.results import Results, Selection
from sparsetune.studies.paper.rules import CLAIMS
from sparsetune.studies.paper.tables import Cell, rows_of
from sparsetune.studies.sources import KNOWN
from sparsetune.studies.store import Row

PAGE, DATA = "index.html", "results.jsonl"
TEXTS = {"table1": 2, "table4": 1, "fig6": 1}
"""How many columns of a table are words, where it is not three."""
SHORTENED = "These trainings are not the paper's own, so a verdict is about them, not about the paper's."
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
    lines = [{"selection": selection}, *(row.to_json() for row in rows)]
    write_text(folder / DATA, "".join(json.dumps(line) + "\n" for line in lines))
    absent = selection["absent"]
    chosen = Selection.from_json({name: value for name, value in selection.items() if name != "absent"})
    write_text(folder / PAGE, page(Results(rows, chosen), absent))
    return folder / PAGE


def read_results(path: Path) -> tuple[list[Row], dict[str, Any]]:
    """Read a ``results.jsonl`` of an earlier report.

    Raises:
        DataError: When it is none.
    """
    try:
        first, *lines = map(json.loads, path.read_text().splitlines())
        return [Row(**line) for line in lines], dict(first["selection"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a results.jsonl of a report ({error}); name one.") from error


def page(results: Results, absent: Sequence[str]) -> str:
    """Return the report as HTML."""
    verdicts = [claim.decided(results) for claim in CLAIMS]
    body = [
        f"<h1>{TITLE}</h1>",
        tables.paragraph(
            "Intriguing Properties of Randomly Weighted Networks: Generalizing While Learning Next to "
            "Nothing (Rosenfeld and Tsotsos, 2018), run with sparsetune; ours beside theirs."
        ),
        tables.links(
            [("claims", "Claims"), *((e.id, _number(e)) for e in EXPERIMENTS.values()), ("how", "How")]
        ),
        *[tables.paragraph(text, "warn") for text in _caveats(results, absent)],
        tables.heading("The paper's claims", "claims"),
        tables.paragraph(_tally([verdict and verdict[0] for verdict in verdicts])),
        *([] if results.as_in_paper else [tables.paragraph(SHORTENED, "note")]),
        _claims(verdicts),
    ]
    for experiment in EXPERIMENTS.values():
        body += _section(experiment, results)
    return tables.page(TITLE, [*body, tables.heading("How this was run", "how"), *_how(results)])


def _number(experiment: Experiment) -> str:
    kind = "Table" if experiment.id.startswith("table") else "Figure"
    return f"{kind} {experiment.id[-1]}"


def _caveats(results: Results, absent: Sequence[str]) -> list[str]:
    """What a reader must know before he compares."""
    chosen, told = results.selection, []
    if chosen.preset == "smoke":
        told.append(
            "This is the smoke preset: all ran on a few small digits, to show that it works. Accuracies and "
            "verdicts here say nothing about the paper."
        )
    limits = [f"{chosen.train_limit:,} training pictures"] if chosen.train_limit else []
    limits += [f"{chosen.test_limit:,} test pictures"] if chosen.test_limit else []
    limits += [f"{chosen.epochs} epoch{'s' * (chosen.epochs > 1)}"] if chosen.epochs else []
    if limits:
        told.append(
            f"Ours had at most {', '.join(limits)}; the paper's numbers are from whole data sets and whole "
            "trainings, so compare orders, not heights."
        )
    lossy = {row.about["data"]["name"] for row in results.by_id.values() if row.about["data"]["lossy"]}
    told += [
        f"{KNOWN[name].title} was read from a lossy JPEG copy: expect a little less accuracy than on the "
        "published bitmaps."
        for name in sorted(lossy)
    ]
    return told + [f"{KNOWN[name].title} was not here, so nothing was run on it." for name in absent]


def _tally(verdicts: Sequence[bool | None]) -> str:
    held, broken = verdicts.count(True), verdicts.count(False)
    return (
        f"{held} hold{'s' * (held == 1)}, {broken} do{'es' * (broken == 1)} not, "
        f"{verdicts.count(None)} cannot be decided by what was run."
    )


def _claims(verdicts: Sequence[tuple[bool, str] | None]) -> str:
    words = {True: ("holds", "mark yes"), False: ("does not", "mark no"), None: ("not run", "mark open")}
    rows: list[list[str | Cell]] = []
    for claim, verdict in zip(CLAIMS, verdicts, strict=True):
        mark = words[verdict[0] if verdict else None]
        rows.append([Cell(*mark), claim.where, claim.text, claim.rule, verdict[1] if verdict else ""])
    return tables.table(["", "where", "claim", "taken to hold when", "ours"], rows, 5, "claims")


def _section(experiment: Experiment, results: Results) -> list[str]:
    done, of = results.finished(experiment.id)
    body = [
        tables.heading(f"{_number(experiment)}: {experiment.title}", experiment.id),
        tables.paragraph(experiment.what),
    ]
    if not done:
        return [*body, tables.paragraph("Not run.", "note"), _table(experiment, results)]
    if done < of:
        body.append(tables.paragraph(f"{done} of its {of} rows were run.", "note"))
    svgs = draw(experiment.id, results)
    body += [tables.pictures(svgs, _number(experiment))] if svgs else []
    if experiment.id == "fig3":
        return [*body, _fits(results)]
    return [*body, _table(experiment, results)]


def _table(experiment: Experiment, results: Results) -> str:
    header, rows = rows_of(experiment, results)
    made = tables.table(header, rows, TEXTS.get(experiment.id, 3))
    if experiment.id.startswith("table"):
        return made
    return f"<details><summary>The numbers</summary>{made}</details>"


def _fits(results: Results) -> str:
    rows = []
    for model in FIVE:
        fractions, accuracies = curve(results, model)
        if len(fractions) > 2:
            slope, level, r2 = fit_line(fractions, accuracies)
            rows.append([NAMES[model], f"{slope:.2f}", f"{level:.1f}", f"{r2:.3f}", str(len(fractions))])
    return tables.table(["model", "slope (points per e-fold)", "at fraction 1", "R²", "fractions"], rows)


def _how(results: Results) -> list[str]:
    rows = results.by_id.values()
    seconds = sum(row.result.get("seconds", 0.0) for row in rows)
    machines: dict[str, int] = {}
    for row in rows:
        about = row.about
        versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
        where = about["accelerator"] or f"{about['processor']}, {about['threads']} thread(s)"
        text = f"{where}; {versions}; commit {about['commit']}; {about['date']}"
        machines[text] = machines.get(text, 0) + 1
    chosen = results.selection
    return [
        tables.paragraph(
            f"Preset {chosen.preset}; seeds {', '.join(map(str, results.seeds))}, each of which gives the "
            "random weights and the order of pictures. ± is the standard deviation over seeds. "
            f"All trainings took {duration(seconds)} of wall time, one beside another counted twice."
        ),
        tables.paragraph(SCHEDULES),
        tables.paragraph(
            "Learned parameters are counted by `sparsetune plan` for the paper's model and classes. A "
            "training whose loss did not stay finite counts as chance."
        ),
        tables.table(
            ["machine, versions, commit, date", "results"], [[t, str(n)] for t, n in machines.items()]
        ),
    ]
