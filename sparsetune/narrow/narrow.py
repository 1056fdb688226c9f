"""Which channels of a zeroed network stay, and what its tensors become when the others go.

Of the channels that are constant, one stays in each input that lost some. It stands for all of them: it emits
1 where batch norm comes last, and its column in the reader's weight holds the sum of their columns, each
times its constant. So zero padding does to it what it does to them, and a network of the same layers, only
narrower, computes the same.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from sparsetune.narrow.follow import Channels, Norm, Read, Values
from sparsetune.parts import head_names

TOLD = ("num_features", "head_hidden_size")
"""Attributes in which a timm model says how long its classifier's input is."""


@dataclass(frozen=True)
class _Places:
    """Indices that stay, ascending."""

    list: list[int]
    tensor: Tensor

    def of(self, value: Tensor) -> Tensor:
        """Select rows, a copy of a vector's; those behind the end are zero."""
        inside = bisect_left(self.list, len(value))
        rows = (
            value if inside == len(value) and value.dim() > 1 else value.index_select(0, self.tensor[:inside])
        )
        zeros = len(self.list) - inside
        return torch.cat([rows, value.new_zeros(zeros, *value.shape[1:])]) if zeros else rows


@dataclass(frozen=True)
class _Merge:
    """Columns of a reader that become one.

    Attributes:
        read: The reader.
        columns: The columns, by their old places.
        into: New places of those that stay; the first holds the sum, the others nothing.
        emits: What the channel that stands for them gives.
    """

    read: Read
    columns: Tensor
    into: Tensor
    emits: float


class Narrowing:
    """The channels that stay of a model.

    Args:
        channels: What a run of the model told.
        values: The model's tensors by name; of a weight whose last filters are zero, all or the others.
    """

    def __init__(self, channels: Channels, values: Values) -> None:
        self.channels = channels
        self.device = next(iter(values.values())).device
        self._standing = _if_all_stood_in(channels, values)
        self.live = {channels.root(flow) for flow in channels.live}
        self.kept, self.stand_ins = set(self.live), set[int]()
        self._keep_linked()
        fixed = {channels.root(flow) for flow in channels.fixed}
        for read in channels.reads:
            self._keep_for(read, fixed)
        while empty := [d for dims in channels.dims.values() for d in dims if not self._kept(d)]:
            self.kept.add(channels.root(empty[0][0]))
            self._keep_linked()

    @property
    def smaller(self) -> bool:
        """Whether any channel goes."""
        return any(self.channels.root(flow) not in self.kept for flow in self.channels.flows)

    @property
    def names(self) -> set[str]:
        """Names of all tensors that :meth:`tensors` gives."""
        return set(self.channels.dims)

    @property
    def means(self) -> list[str]:
        """Names of all running means."""
        return [norm.mean for norm in self.channels.norms if norm.mean is not None]

    def tensors(self, values: Values) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return the narrow tensors of everything that was followed, differentiable, and the constants.

        Args:
            values: As for the class; they may have changed since.
        """
        shown, constants = {**values, **self._showing(values)}, self.channels.constants(values)
        narrow = {}
        for name, (rows, *columns) in self._places.items():
            narrow[name] = rows.of(shown[name])
            for places in columns:
                narrow[name] = narrow[name].index_select(1, places.tensor)
        for merge in self._merges:
            name, slot = merge.read.weight, merge.read.slot
            shares = constants[slot][0].index_select(0, merge.columns) / merge.emits
            merged = values[name].index_select(1, merge.columns)
            column = (merged * shares.view(-1, *[1] * (merged.dim() - 2))).sum(1, keepdim=True)
            emptied = narrow[name].index_fill(1, merge.into, 0)
            narrow[name] = emptied.index_copy(1, merge.into[:1], self._places[name][0].of(column))
        return narrow, constants

    @torch.no_grad()
    def move_statistics(
        self, values: Values, narrow: Values, constants: list[Tensor], momentum: Mapping[str, float]
    ) -> None:
        """Put the running statistics of a training step into the wide model's, as its own step would.

        Args:
            values: The wide model's tensors.
            narrow: The narrow tensors after the step.
            constants: What :meth:`tensors` returned before it.
            momentum: For each name of a running mean.
        """
        for norm in self.channels.norms:
            if norm.mean is None or norm.var is None:
                continue
            own, place = self._own[norm.mean]
            share, constant = momentum[norm.mean], constants[norm.slot][0]
            for name, target in ((norm.mean, constant), (norm.var, torch.zeros_like(constant))):
                moved = values[name].lerp(target.to(values[name].dtype), share)
                values[name].copy_(moved.index_copy(0, own, narrow[name].index_select(0, place)))

    @cached_property
    def _places(self) -> dict[str, tuple[_Places, ...]]:
        """Tensor's name -> the indices that stay along each of its channel dimensions."""
        return {
            name: tuple(_Places(kept := self._kept(flows), self._index(kept)) for flows in dims)
            for name, dims in self.channels.dims.items()
        }

    @cached_property
    def _merges(self) -> list[_Merge]:
        merges = []
        for read in self.channels.reads:
            roots, standing = self._roots(read.flows), self._standing[read.slot]
            columns = [i for i, root in enumerate(roots) if root not in self.kept or root in self.stand_ins]
            if columns:
                ours = [(n, i) for n, i in enumerate(self._kept(read.flows)) if roots[i] in self.stand_ins]
                ours.sort(key=lambda pair: -abs(standing[pair[1]]))
                into = self._index(n for n, _ in ours)
                merges.append(_Merge(read, self._index(columns), into, standing[ours[0][1]] or 1.0))
        return merges

    @cached_property
    def _own(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Running mean's name -> the channels whose statistics the narrow model has, there and here."""
        own = {}
        for norm in self.channels.norms:
            if norm.mean is not None:
                roots = self._roots(norm.flows)
                kept = enumerate(self._kept(norm.flows))
                pairs = [(i, n) for n, i in kept if roots[i] not in self.stand_ins]
                own[norm.mean] = self._index(i for i, _ in pairs), self._index(n for _, n in pairs)
        return own

    @cached_property
    def _shown(self) -> list[tuple[Norm, Tensor]]:
        """Batch norms and those of their channels that stand for others."""
        found = [
            (norm, [i for i, root in enumerate(self._roots(norm.flows)) if root in self.stand_ins])
            for norm in self.channels.norms
        ]
        return [(norm, self._index(places)) for norm, places in found if places]

    def _showing(self, values: Values) -> dict[str, Tensor]:
        """The batch norms' values with which a channel that stands for others is 1."""
        shown = {}
        for norm, places in self._shown:
            for name, value in ((norm.weight, 0.0), (norm.bias, 1.0)):
                if name is not None:
                    shown[name] = values[name].index_fill(0, places, value)
        return shown

    def _keep_for(self, read: Read, fixed: set[int]) -> None:
        """Let one channel of a reader's input stand for those that go: one that can be other than zero."""
        roots = self._roots(read.flows)
        emits = dict.fromkeys(roots, 0.0)
        for root, value in zip(roots, self._standing[read.slot], strict=True):
            emits[root] = max(emits[root], abs(value))
        gone = [root for root in roots if root not in self.kept]
        if not gone or any(emits[root] for root in self.stand_ins & emits.keys()):
            return
        free = [root for root in roots if root not in self.live | fixed]
        chosen = max(free, key=emits.__getitem__, default=None)
        if chosen is not None and (emits[chosen] or not any(emits[root] for root in gone)):
            self.stand_ins.add(chosen)
            self.kept.add(chosen)
        else:
            self.kept.update(gone)
        self._keep_linked()

    def _keep_linked(self) -> None:
        """Keep whole groups."""
        links = [set(self._roots(link)) for link in self.channels.links]
        while found := [link for link in links if link & self.kept and not link <= self.kept]:
            self.kept.update(*found)

    def _kept(self, flows: list[int]) -> list[int]:
        return [i for i, root in enumerate(self._roots(flows)) if root in self.kept]

    def _roots(self, flows: Iterable[int]) -> list[int]:
        return [self.channels.root(flow) for flow in flows]

    def _index(self, places: Iterable[int]) -> Tensor:
        return torch.tensor(list(places), dtype=torch.int64, device=self.device)


def narrow_(plain: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Put narrow tensors into a plain model and make its layers' sizes those of the tensors, in place."""
    for name, value in tensors.items():
        owner, _, leaf = name.rpartition(".")
        module = plain.get_submodule(owner)
        if leaf in module._parameters:
            module._parameters[leaf] = nn.Parameter(value)
        else:
            module._buffers[leaf] = value
    for name, module in plain.named_modules():
        if isinstance(module, _ConvNd):
            filters, inputs = module.weight.shape[:2]
            module.groups = max(1, module.groups * filters // module.out_channels)
            module.out_channels, module.in_channels = filters, inputs * module.groups
        elif isinstance(module, nn.Linear):
            for told in TOLD if name in head_names(plain) else ():
                if getattr(plain, told, None) == module.in_features:
                    setattr(plain, told, module.weight.shape[1])
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, _NormBase) and module.affine:
            module.num_features = module.weight.shape[0]
    return plain


@torch.no_grad()
def _if_all_stood_in(channels: Channels, values: Values) -> list[list[float]]:
    """What each channel would give at every place if it stood for others; mostly 0 without a batch norm."""
    shown = dict(values)
    for norm in channels.norms:
        for name, value in ((norm.weight, 0.0), (norm.bias, 1.0)):
            if name is not None:
                shown[name] = torch.full_like(values[name], value)
    return [constants[0].tolist() for constants in channels.constants(shown)]
