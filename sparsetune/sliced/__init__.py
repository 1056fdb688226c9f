"""A module of which a part is learned.

Imports ``backbone`` and ``data``. A frozen value is a buffer, a learned one a parameter; ``weight`` is both.

- ``adapt``: ``adapt_`` and ``merge_``, which turn a plain model into such a one and back, and what may be
  asked of it: learned values, frozen values, whether they are still the backbone's; and ``Taught``, what is
  noted on a model of its training.
- ``module``: the class that a layer then has, and that of one whose running statistics stay.
- ``kind``: what a kind of partly learned weight has to say; ``slices``, ``sums`` and ``spread``: those that
  there are, each with what is frozen, how the whole is put together, and gradients of the learned part alone.
- ``convolution``: the kernels under these.
"""

from sparsetune.sliced.adapt import (
    UNSENT,
    Adapted,
    Taught,
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
    taught,
    teach,
    to_freeze,
)
from sparsetune.sliced.sums import ROW

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
