"""ROOM spec."""

from sparsetune.spec.config import FREE, YELLOWFIN, FitConfig
from sparsetune.spec.learn import Learn, matches

__all__ = [
    "FREE",
    "FitConfig",
    "Learn",
    "YELLOWFIN",
    "matches",
]
