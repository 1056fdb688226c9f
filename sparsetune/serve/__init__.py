"""ROOM serve."""

from sparsetune.serve.ensemble import Ensemble
from sparsetune.serve.tasks import Tasks

__all__ = [
    "Ensemble",
    "Tasks",
]
