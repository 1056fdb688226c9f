"""The whole value of a partly learned parameter, from what is learned of it and what is frozen.

A slice of filters is joined to its rest (:mod:`sparsetune.sliced.whole`). Where something puts one of the two
elsewhere (a parameter swapped by hand or by ``torch.func``), they are put together on each use. A low-rank
sum (:mod:`sparsetune.sliced.functions`) is kept while no gradient is wanted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsetune.errors import ConfigError
from sparsetune.parts import factor_names
from sparsetune.sliced.functions import Sum, keepable, summed


@dataclass(frozen=True, eq=False)
class Joined:
    """The whole weight whose memory holds a learned slice and, behind it, ``rest``."""

    whole: Tensor
    rest: Tensor

    def holds(self, learned: Tensor, rest: Tensor) -> bool:
        """Whether ``learned`` and ``rest`` still lie there."""
        return (
            type(learned) is nn.Parameter
            and rest is self.rest
            and learned.data_ptr() == self.whole.data_ptr()
            and learned.stride() == self.whole.stride()
            and rest.data_ptr() == self.whole.data_ptr() + _bytes_to_rest(learned)
        )


def joinable(learned: Tensor, rest: Tensor) -> bool:
    """Whether the two can lie in one memory; what other processes share stays where it is."""
    together = (learned.device, learned.dtype) == (rest.device, rest.dtype)
    return together and not rest.is_meta and not (rest.is_cpu and learned.is_shared())


def join_(learned: nn.Parameter, rest: Tensor) -> Joined:
    """Let ``learned`` and ``rest`` lie side by side, in fresh memory unless they do already.

    What they leave may be held by others (say, values set aside while a parameter holds an average), so it
    is never written to.
    """
    k = learned.shape[0]
    if not _side_by_side(learned, rest):
        rest = torch.cat([learned.detach(), rest])[k:]
    shape = (k + rest.shape[0], *rest.shape[1:])
    joined = rest.as_strided(shape, rest.stride(), rest.storage_offset() - k * rest.stride(0))
    whole = learned.detach()  # shares the count of changes by which autograd refuses stale values
    whole.data = joined
    learned.data = _in_storage_of_its_own(joined[:k])
    return Joined(whole, rest)


def _side_by_side(learned: Tensor, rest: Tensor) -> bool:
    """Whether ``learned`` lies in the storage of ``rest``, in one piece right before it."""
    return (
        learned.data_ptr() + learned.nbytes == rest.data_ptr()
        and learned.nbytes == _bytes_to_rest(learned)
        and rest.untyped_storage().data_ptr() <= learned.data_ptr()
        and learned.stride() == rest.stride()
    )


def _in_storage_of_its_own(part: Tensor) -> Tensor:
    """The same values in the same memory, in a storage that holds nothing else."""
    start = part.storage_offset() * part.element_size()
    storage = part.untyped_storage()[start : start + part.nbytes]
    return part.new_empty(0).set_(storage, 0, part.shape, part.stride())


def _bytes_to_rest(learned: Tensor) -> int:
    return learned.shape[0] * learned.stride(0) * learned.element_size()


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
