"""The one training loop.

Imports ``data``, ``sliced``, ``narrow`` and ``delta``. Whatever trains goes through ``fit`` or ``train``.

- ``loop``: epochs, steps and the clock; ``step``: one step; ``optim``: an optimiser that timm does not have.
- ``history``: what a training tells, before, meanwhile and after.
- ``recipe``: how a training goes where it is not told, and trials, which compare candidates.
- ``inputs``: which pictures and classes a model sees; ``metrics``: what its outputs are worth.
- ``checkpoint``: everything that a stopped training needs to go on from the very step.
- ``processes``: one process or several; the only file that knows of accelerate.
"""

from sparsetune.train.checkpoint import read_history
from sparsetune.train.history import Epoch, History, Start, Step, Watch, final, is_finished, records_from
from sparsetune.train.inputs import pictures_for
from sparsetune.train.loop import fit, fit_quietly, train
from sparsetune.train.metrics import (
    Detection,
    Diversity,
    Scores,
    Views,
    calibrated,
    detection,
    diversity,
    predict,
    predict_logits,
    probabilities_of,
    score,
    scores,
)
from sparsetune.train.processes import Processes, processes
from sparsetune.train.recipe import (
    Rate,
    RateTrial,
    augmented,
    decide,
    find_rate,
    is_trained,
    parted,
    recipe_for,
    set_aside,
    settled,
    tried,
    usual_rate,
)
from sparsetune.train.step import Stepper

__all__ = [
    "Detection",
    "Diversity",
    "Epoch",
    "History",
    "Processes",
    "Rate",
    "RateTrial",
    "Scores",
    "Start",
    "Step",
    "Stepper",
    "Views",
    "Watch",
    "augmented",
    "calibrated",
    "decide",
    "detection",
    "diversity",
    "final",
    "find_rate",
    "fit",
    "fit_quietly",
    "is_finished",
    "is_trained",
    "parted",
    "pictures_for",
    "predict",
    "predict_logits",
    "probabilities_of",
    "processes",
    "read_history",
    "recipe_for",
    "records_from",
    "score",
    "scores",
    "set_aside",
    "settled",
    "train",
    "tried",
    "usual_rate",
]
