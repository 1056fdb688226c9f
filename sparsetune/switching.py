"""One backbone in memory, and many deltas over it: each packed in one flat tensor, put in place at will.

A model's learned values stand in three kinds of places. Slices lie inside their whole weights and are copied
there. Values learned whole (normalisation) and running statistics are gathered in one *arena*, which takes a
single copy. The classifier, whose size may differ from delta to delta, is not copied: the model is pointed at
the delta's own memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn

from sparsetune.adapt import adapted
from sparsetune.layers import head_names, under


class State(nn.Module):
    """One delta's values, packed; a module so that they move along with the model.

    Args:
        floats: ``(n,)``: the arena's values, then the slices', then the classifier's.
        counts: ``(m,)`` int64: how many batches each running statistic has seen.
        head: Shape of each of the classifier's parameters, by name.
    """

    floats: Tensor
    counts: Tensor

    def __init__(self, floats: Tensor, counts: Tensor, head: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.register_buffer("floats", floats, persistent=False)
        self.register_buffer("counts", counts, persistent=False)
        self.head = head

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.floats.nbytes + self.counts.nbytes


class Switch:
    """An adapted model as a place where the states of several deltas are put, one at a time.

    Args:
        net: An adapted model. From here on it is the switch's: in evaluation mode, without gradients, its
            values those that were put last.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net.eval().requires_grad_(False)
        self.lock = RLock()
        self.current: State | None = None
        made, heads = adapted(net).plan, head_names(net)
        learned = [part for part in made if part.learned]
        self._head = [part.name for part in learned if under(part.homes[0][0], heads)]
        partial = [part for part in learned if part.partial and part.name not in self._head]
        self._slices = [name for part in partial for name in part.learned]
        arena = [part.name for part in learned if part.whole and part.name not in self._head]
        self._counts = [b.name for b in made.buffers if not b.dtype.is_floating_point]
        self._arena = arena + [b.name for b in made.buffers if b.dtype.is_floating_point]
        self.relink()

    def relink(self) -> None:
        """Gather the model's values anew, after it was moved."""
        self.current = None
        self._floats = self._gather(self._arena)
        self._ints = self._gather(self._counts)
        self._targets = [_learned(self.net, name).view(-1) for name in self._slices]
        self._sizes = [target.numel() for target in self._targets]
        self._split = len(self._floats), len(self._floats) + sum(self._sizes)

    def pack(self, values: Mapping[str, Tensor]) -> State:
        """Pack a delta's tensors, as they come by name from its file."""
        names = [*self._arena, *self._slices, *self._head]
        like = next(iter(self._targets), self._floats)
        floats = [values[name].detach().reshape(-1).to(like) for name in names]
        counts = [values[name].detach().reshape(-1).to(self._ints) for name in self._counts]
        head = {name: tuple(values[name].shape) for name in self._head}
        return State(_joined(floats, like), _joined(counts, self._ints), head)

    def put(self, state: State) -> nn.Module:
        """Give the model a state's values and return it; hold :attr:`lock` while they matter."""
        if state is self.current:
            return self.net
        first, second = self._split
        with torch.no_grad():
            self._floats.copy_(state.floats[:first])
            self._ints.copy_(state.counts)
            if self._targets:
                torch._foreach_copy_(self._targets, state.floats[first:second].split(self._sizes))
        start = second
        for name, shape in state.head.items():
            module, leaf = _place(self.net, name)
            size = prod(shape)
            value = nn.Parameter(state.floats[start : start + size].view(shape), requires_grad=False)
            module._parameters[leaf] = value
            start += size
        self.current = state
        return self.net

    def _gather(self, names: Sequence[str]) -> Tensor:
        """Let the tensors of these names be views of one flat tensor, and return it."""
        found = [_learned(self.net, name) for name in names]
        if not found:
            return torch.empty(0, dtype=torch.int64)
        arena = torch.cat([value.detach().reshape(-1) for value in found])
        for name, value, piece in zip(names, found, arena.split([v.numel() for v in found]), strict=True):
            module, leaf = _place(self.net, name)
            held: dict[str, Any] = module._parameters if leaf in module._parameters else module._buffers
            view = piece.view(value.shape)
            held[leaf] = nn.Parameter(view, requires_grad=False) if held is module._parameters else view
        return arena


def _learned(net: nn.Module, name: str) -> Tensor:
    module, leaf = _place(net, name)
    found = module._parameters.get(leaf, module._buffers.get(leaf))
    if found is None:
        raise KeyError(name)
    return found.detach()


def _place(net: nn.Module, name: str) -> tuple[nn.Module, str]:
    owner, _, leaf = name.rpartition(".")
    return net.get_submodule(owner), leaf


def _joined(values: list[Tensor], like: Tensor) -> Tensor:
    return torch.cat(values) if values else like.new_empty(0)
