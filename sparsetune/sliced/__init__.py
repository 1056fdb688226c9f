"""ROOM sliced."""

from sparsetune.sliced.adapt import (
    ROW,
    UNSENT,
    Adapted,
    adapt_,
    adapted,
    check_frozen,
    check_layers,
    freeze_,
    frozen_values,
    learned_values,
    merge_,
    prepared,
    put_stored,
    stored_values,
    to_freeze,
)
from sparsetune.sliced.taught import Taught, taught, teach

__all__ = [
    "Adapted",
    "ROW",
    "Taught",
    "UNSENT",
    "adapt_",
    "adapted",
    "check_frozen",
    "check_layers",
    "freeze_",
    "frozen_values",
    "learned_values",
    "merge_",
    "prepared",
    "put_stored",
    "stored_values",
    "taught",
    "teach",
    "to_freeze",
]
