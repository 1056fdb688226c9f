"""ROOM parts."""

from sparsetune.parts.layers import (
    ADAPTED,
    COMPILED,
    HEAD,
    STORED,
    head_names,
    is_norm,
    is_sliceable,
    plain_class,
    plain_name,
    under,
    unwrapped,
)
from sparsetune.parts.part import FROZEN, Part, factor_names, full_rank
from sparsetune.parts.plan import Plan, arithmetic_share, plan
from sparsetune.parts.precision import (
    CODES,
    PRECISIONS,
    VARIANCE,
    Precision,
    check_precision,
    decode,
    encode,
    scales,
)

__all__ = [
    "ADAPTED",
    "CODES",
    "COMPILED",
    "FROZEN",
    "HEAD",
    "PRECISIONS",
    "Part",
    "Plan",
    "Precision",
    "STORED",
    "VARIANCE",
    "arithmetic_share",
    "check_precision",
    "decode",
    "encode",
    "factor_names",
    "full_rank",
    "head_names",
    "is_norm",
    "is_sliceable",
    "plain_class",
    "plain_name",
    "plan",
    "scales",
    "under",
    "unwrapped",
]
