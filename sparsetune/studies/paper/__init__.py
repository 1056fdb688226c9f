"""ROOM studies.paper."""

from sparsetune.studies.paper.experiments import EXPERIMENTS
from sparsetune.studies.paper.report import read_results, write_report
from sparsetune.studies.paper.results import Results, Selection, Spread
from sparsetune.studies.paper.rules import CLAIMS
from sparsetune.studies.paper.tables import rows_of

__all__ = [
    "CLAIMS",
    "EXPERIMENTS",
    "Results",
    "Selection",
    "Spread",
    "read_results",
    "rows_of",
    "write_report",
]
