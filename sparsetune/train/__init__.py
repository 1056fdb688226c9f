"""The one training loop.

Imports ``data``, ``sliced``, ``narrow`` and ``delta``. Whatever trains goes through ``fit`` or ``train``.

- ``loop``: epochs, steps and the clock; ``step``: one step; ``optim``: an optimiser that timm does not have.
- ``recipe``: how a training goes where it is not told, and trials, which compare candidates.
- ``inputs``: which pictures and classes a model sees; ``metrics``: what its outputs are worth.
- ``checkpoint``: everything that a stopped training needs to go on from the very step.
- ``processes``: one process or several; the only file that knows of accelerate.
"""

from sparsetune.train.checkpoint import read_history
from sparsetune.train.inputs import pictures_for
from sparsetune.train.loop import Epoch, Step, Watch, fit, is_finished, train
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
    tried,
    usual_rate,
)
from sparsetune.train.step import Stepper

__all__ = [
    "Detection",
    "Diversity",
    "Epoch",
    "Processes",
    "Rate",
    "RateTrial",
    "Scores",
    "Step",
    "Stepper",
    "Views",
    "Watch",
    "augmented",
    "calibrated",
    "decide",
    "detection",
    "diversity",
    "find_rate",
    "fit",
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
    "score",
    "scores",
    "set_aside",
    "train",
    "tried",
    "usual_rate",
]
