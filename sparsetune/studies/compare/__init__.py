"""Our methods beside PEFT's: accuracy against bytes and seconds.

- ``methods``: what is compared, on which benchmarks; ``training``: one method's training and timing.
- ``results``: what was found for each method and precision; ``shown``: pictures and tables.
- ``verdicts``: who wins, judged on other seeds than it was chosen on.
"""

from sparsetune.studies.compare.methods import CHOSEN, FAMILIES, HELD_OUT, PRESETS, SPREAD, THEIRS, Comparison
from sparsetune.studies.compare.results import Point, find, lines, read_lines
from sparsetune.studies.compare.shown import Table, budgets, chosen, draw, methods
from sparsetune.studies.compare.training import DTYPES, KEPT, config_of, data_of, plain_of
from sparsetune.studies.compare.verdicts import FEW, SAME, Verdict, choices, verdicts

__all__ = [
    "CHOSEN",
    "Comparison",
    "DTYPES",
    "KEPT",
    "FAMILIES",
    "FEW",
    "HELD_OUT",
    "PRESETS",
    "Point",
    "SAME",
    "SPREAD",
    "THEIRS",
    "Table",
    "Verdict",
    "budgets",
    "choices",
    "chosen",
    "config_of",
    "data_of",
    "draw",
    "find",
    "lines",
    "methods",
    "plain_of",
    "read_lines",
    "verdicts",
]
