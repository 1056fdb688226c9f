"""The paper's experiments, run again.

- ``experiments``: what was trained, and the numbers that the paper prints; ``results``: ours.
- ``rules``: the paper's claims, each with the rule that decides it.
- ``figures``, ``report``: the page that shows both.
"""

from sparsetune.studies.paper.experiments import EXPERIMENTS
from sparsetune.studies.paper.report import (
    page,
    read_results,
    results_of,
    rows_of,
    scale,
    write_report,
    write_results,
)
from sparsetune.studies.paper.results import PRESETS, Results, Selection, Spread
from sparsetune.studies.paper.rules import CLAIMS, questions

__all__ = [
    "CLAIMS",
    "EXPERIMENTS",
    "PRESETS",
    "Results",
    "Selection",
    "Spread",
    "page",
    "questions",
    "read_results",
    "results_of",
    "rows_of",
    "scale",
    "write_report",
    "write_results",
]
