"""A learned slice of filters and its frozen rest, side by side in the memory of one whole weight.

An optimiser's step of the slice is then at once a step of the whole, and nothing is ever copied. The slice's
storage ends where the rest begins, so whatever writes storages, as ``torch.save`` does, writes what is
learned alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


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
