"""Which parameters of a model are learned, before anything is touched.

Imports ``spec``. A model is only looked at here; its values are never read.

- ``layers``: what is a layer, a normalisation, a classifier; names as a plain model has them.
- ``part``: ``Part``, one parameter: how much of it is learned, how much is frozen, under which names.
- ``planning``: a model and a ``Learn`` become a ``Plan``: its parts and buffers, its bytes, its work.
- ``precision``: values in fewer bits.
"""

from sparsetune.parts.layers import (
    ADAPTED,
    COMPILED,
    HEAD,
    STORED,
    head_names,
    is_norm,
    is_sliceable,
    keeps_statistics,
    plain_class,
    plain_name,
    under,
    unwrapped,
)
from sparsetune.parts.part import FROZEN, Part, factor_names, full_rank, vector_name
from sparsetune.parts.planning import Plan, arithmetic_share, plan
from sparsetune.parts.precision import CODES, VARIANCE, decode, encode, role_of

__all__ = [
    "ADAPTED",
    "COMPILED",
    "FROZEN",
    "HEAD",
    "Part",
    "Plan",
    "STORED",
    "CODES",
    "VARIANCE",
    "arithmetic_share",
    "decode",
    "encode",
    "factor_names",
    "full_rank",
    "head_names",
    "is_norm",
    "is_sliceable",
    "keeps_statistics",
    "plain_class",
    "plain_name",
    "plan",
    "role_of",
    "under",
    "unwrapped",
    "vector_name",
]
