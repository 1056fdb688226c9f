"""A run: one training, from names and settings to a folder.

Imports ``train``.

- ``settings``: ``Run``, all that decides a run; ``folder``: its folder; ``run``: the way through.
- ``members``: an ensemble's runs.
- ``choosing``: what a budget of bytes is best spent on; ``spend``: a way to spend it on layers.
"""

from sparsetune.runs.choosing import KEPT, Choice, Trial, choose, try_out
from sparsetune.runs.folder import CHECKPOINT, CURVES, recorded
from sparsetune.runs.members import BUNDLE, Together, bundle_members, measure, run_members
from sparsetune.runs.run import BLUE, Outcome, run
from sparsetune.runs.settings import Run
from sparsetune.runs.spend import LATER, UNIFORM, WAYS, candidates, spend

__all__ = [
    "BLUE",
    "BUNDLE",
    "CHECKPOINT",
    "CURVES",
    "Choice",
    "KEPT",
    "LATER",
    "Outcome",
    "Run",
    "Together",
    "Trial",
    "UNIFORM",
    "WAYS",
    "bundle_members",
    "candidates",
    "choose",
    "measure",
    "recorded",
    "run",
    "run_members",
    "spend",
    "try_out",
]
