"""``notes_on``: the layers whose learned slice is empty, or holds no more than an attention's queries."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sparsetune.learn import Learn
from sparsetune.part import Part
from sparsetune.words import listed

FUSED = ("qkv", "Wqkv", "to_qkv", "query_key_value", "c_attn", "in_proj")
"""Names of linear maps whose rows are queries, then keys, then values."""


def notes_on(learn: Learn, parts: Iterable[Part]) -> Iterator[str]:
    """Say which layers a spec covers and yet leaves frozen, wholly or but for the queries.

    Args:
        learn: The spec.
        parts: What it came to.

    Yields:
        One sentence for empty slices, one for queries.
    """
    empty: list[str] = []
    queries: list[str] = []
    for part in parts:
        own = learn.at(part.homes[0][0]) if part.layer and len(part.shape) > 1 else None
        if own is None or own.rank or not (own.fraction or own.filters):
            continue
        name = f"{part.name.removesuffix('.weight')} ({'x'.join(map(str, part.shape))})"
        if not part.k:
            empty.append(name)
        elif part.dim == 0 and 3 * part.k <= part.size and _is_fused(part):
            queries.append(name)
    if empty:
        yield (
            f"learning nothing of {_count(empty, 'layer')}, for {learn.amount} of so few filters is none: "
            f"{listed(empty)}; a larger fraction or filters=1 learns some of each."
        )
    if queries:
        yield (
            f"learning only the queries of {_count(queries, 'attention layer')}, for their rows come before "
            f"those of keys and values: {listed(queries)}; dim='in' or a rank learns of all three."
        )


def _is_fused(part: Part) -> bool:
    module, leaf = part.homes[0]
    return module.rpartition(".")[2] in FUSED or leaf == "in_proj_weight"


def _count(names: list[str], noun: str) -> str:
    return f"{len(names):,} {noun}{'s' * (len(names) != 1)}"
