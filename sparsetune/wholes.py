"""The whole value of a partly learned parameter, from what is learned of it and what is frozen.

A slice of filters is joined to its rest (:mod:`sparsetune.joined`). Where something puts one of the two
elsewhere (a parameter swapped by hand or by ``torch.func``), they are put together on each use. A low-rank
sum (:mod:`sparsetune.factored`) is kept while no gradient is wanted.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsetune.errors import ConfigError
from sparsetune.factored import Sum, keepable, summed
from sparsetune.joined import Joined, join_, joinable
from sparsetune.part import factor_names

DIMS = "_sliced_dims"
"""Attribute that maps a partly learned parameter's name to its sliced dimension; ``None`` for a sum."""
JOINS = "_sliced_joins"
"""Attribute that maps the name of a parameter whose whole value is in memory to the join or sum."""


def frozen_rest(module: nn.Module, leaf: str) -> Tensor:
    """Return the buffer that holds the frozen rest of ``leaf``, or the frozen weight of its sum."""
    rest = module._buffers[rest_name(leaf)]
    if rest is None:
        raise KeyError(leaf)
    return rest


def whole_of(module: nn.Module, leaf: str) -> Tensor:
    """Return the whole current value of a partly learned parameter, differentiable in what is learned."""
    if module.__dict__[DIMS][leaf] is None:
        return _sum(module, leaf)
    learned, rest = pair(module, leaf)
    whole = joined(module, leaf)
    if whole is None or (torch.is_grad_enabled() and learned.requires_grad):
        return torch.cat([learned, rest], module.__dict__[DIMS][leaf])
    return whole


def rest_name(leaf: str) -> str:
    """Return the name of the buffer that holds the frozen rest of ``leaf``."""
    return f"{leaf}_frozen"


def learned_of(module: nn.Module, name: str) -> Tensor:
    """Return a learned slice or factor.

    Raises:
        ConfigError: When it was taken away, or sharded.
    """
    learned = module._parameters.get(name)
    if learned is None:
        raise ConfigError(
            f"the learned slice '{name}' of this {type(module).__name__} was taken away since adapt_, say by "
            "a parametrisation or by pruning; do that before adapt_, or after sparsetune.merge_(net)."
        )
    if hasattr(learned, "device_mesh"):
        raise ConfigError(
            f"the learned slice '{name}' of this {type(module).__name__} was sharded, as fully_shard does, "
            "and its frozen rest was not; use DistributedDataParallel, which sends learned slices alone."
        )
    return learned


def pair(module: nn.Module, leaf: str) -> tuple[Tensor, Tensor]:
    """Return a learned slice and its frozen rest."""
    return learned_of(module, leaf), frozen_rest(module, leaf)


def terms_of(module: nn.Module, leaf: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``A``, ``B`` and the frozen weight of a sum."""
    a, b = (learned_of(module, name) for name in factor_names(leaf))
    return a, b, frozen_rest(module, leaf)


def _sum(module: nn.Module, leaf: str) -> Tensor:
    """A sum, kept for as long as no gradient is wanted."""
    terms, joins = terms_of(module, leaf), module.__dict__[JOINS]
    if not keepable(*terms):
        return summed(*terms)
    if torch.is_grad_enabled() and any(term.requires_grad for term in terms):
        joins.pop(leaf, None)
        return summed(*terms)
    kept = joins.get(leaf)
    if kept is None or not kept.holds(*terms):
        kept = joins[leaf] = Sum.of(*terms)
    whole: Tensor = kept.whole
    return whole


def joined(module: nn.Module, leaf: str) -> Tensor | None:
    """Return a sliced parameter's whole value without a copy, if its two parts lie side by side."""
    if torch.compiler.is_compiling():
        return None
    join: Joined | None = module.__dict__[JOINS].get(leaf)
    return join.whole if join and join.holds(*pair(module, leaf)) else None


def join_slices(module: nn.Module) -> None:
    """Let each slice of filters and its rest lie side by side wherever they can."""
    joins = module.__dict__.setdefault(JOINS, {})
    for leaf, dim in module.__dict__[DIMS].items():
        if dim is None:
            joins.pop(leaf, None)
            continue
        learned, rest = module._parameters[leaf], frozen_rest(module, leaf)
        if joined(module, leaf) is not None:
            continue
        joins.pop(leaf, None)
        if learned is not None and dim == 0 and joinable(learned, rest):
            joins[leaf] = join_(learned, rest)
            module._buffers[rest_name(leaf)] = joins[leaf].rest
