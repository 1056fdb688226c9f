"""What a user asks for, as frozen values; nothing here imports torch.

- ``learn``: ``Learn``, which part of each layer is learned.
- ``config``: ``FitConfig``, how a training goes, and in how many bits its outcome is kept.
- ``recipe``: ``Recipe``, what it is where settings are left out, for random and for trained backbones.
- ``option``: what the fields of both say of themselves, for command lines, checks and model cards.

A value comes from Python, a command's options or a file's JSON, is checked once as it is made, and is never
changed: ``Learn`` goes to ``parts.plan``, and both go into the file.
"""

from sparsetune.spec.config import (
    AUTO,
    BITS,
    FREE,
    PRECISIONS,
    SHORT,
    YELLOWFIN,
    FitConfig,
    Precision,
    check_precision,
    coded_bytes,
    rows_of,
    scales,
    stored_bytes,
)
from sparsetune.spec.learn import KINDS, SLICES, USUAL, Learn, matches
from sparsetune.spec.option import Option, options_of, words
from sparsetune.spec.recipe import PAPER, SUBSPACE, TRANSFER, Recipe, transfer

__all__ = [
    "AUTO",
    "FREE",
    "FitConfig",
    "KINDS",
    "Learn",
    "Option",
    "PAPER",
    "PRECISIONS",
    "Precision",
    "Recipe",
    "SHORT",
    "SLICES",
    "SUBSPACE",
    "TRANSFER",
    "USUAL",
    "BITS",
    "YELLOWFIN",
    "check_precision",
    "coded_bytes",
    "matches",
    "options_of",
    "rows_of",
    "scales",
    "stored_bytes",
    "transfer",
    "words",
]
