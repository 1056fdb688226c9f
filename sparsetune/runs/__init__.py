"""A run: one training, from names and settings to a folder.

Imports ``train``.

- ``settings``: ``Run``, all that decides a run; ``folder``: its folder; ``run``: the way through.
- ``report``: what a classifier makes of a split, in numbers and pictures; ``members``: an ensemble's runs.
- ``choosing``: what a budget of bytes is best spent on; ``spend``: a way to spend it on layers.
"""

from sparsetune.runs.choosing import Choice, Trial, choose, kept_in, try_out
from sparsetune.runs.folder import CHECKPOINT, CURVES, recorded
from sparsetune.runs.members import BUNDLE, Together, bundle_members, measure, predicted, run_members
from sparsetune.runs.report import CONFUSION, MISTAKES, REPORT, Report, evaluate, report_on, weakest
from sparsetune.runs.run import BLUE, Outcome, run
from sparsetune.runs.settings import Run
from sparsetune.runs.spend import LATER, UNIFORM, VECTOR, WAYS, spend, ways

__all__ = [
    "BLUE",
    "BUNDLE",
    "CHECKPOINT",
    "CONFUSION",
    "CURVES",
    "Choice",
    "LATER",
    "MISTAKES",
    "Outcome",
    "REPORT",
    "Report",
    "Run",
    "Together",
    "Trial",
    "UNIFORM",
    "VECTOR",
    "WAYS",
    "bundle_members",
    "choose",
    "evaluate",
    "kept_in",
    "measure",
    "predicted",
    "recorded",
    "report_on",
    "run",
    "run_members",
    "spend",
    "try_out",
    "ways",
    "weakest",
]
