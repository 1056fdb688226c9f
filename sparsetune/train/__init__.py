"""ROOM train."""

from sparsetune.train.checkpoint import read_history
from sparsetune.train.fit import Epoch, Step, Watch, fit, train
from sparsetune.train.inputs import pictures_for
from sparsetune.train.metrics import (
    Detection,
    Diversity,
    Scores,
    calibrated,
    detection,
    diversity,
    predict_logits,
    scores,
)
from sparsetune.train.processes import Processes, is_main, processes
from sparsetune.train.step import Stepper

__all__ = [
    "Detection",
    "Diversity",
    "Epoch",
    "Processes",
    "Scores",
    "Step",
    "Stepper",
    "Watch",
    "calibrated",
    "detection",
    "diversity",
    "fit",
    "is_main",
    "pictures_for",
    "predict_logits",
    "processes",
    "read_history",
    "scores",
    "train",
]
