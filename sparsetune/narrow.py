"""Which channels of a zeroed network stay, and what its tensors become when the others go.

Of the channels that are constant, one stays in each input that lost some. It stands for all of them: it emits
1 where batch norm comes last, and its column in the reader's weight holds the sum of their columns, each
times its constant. So zero padding does to it what it does to them, and a network of the same layers, only
narrower, computes the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from sparsetune.channels import Channels, Norm, Read, Values
from sparsetune.errors import ConfigError


class Narrowing:
    """The channels that stay of a model.

    Args:
        channels: What a run of the model told.
        device: Where its values are.
    """

    def __init__(self, channels: Channels, device: torch.device) -> None:
        self.channels, self.device = channels, device
        self.live = {channels.root(flow) for flow in channels.live}
        self.kept, self.stand_ins = set(self.live), set[int]()
        self._keep_linked()
        fixed = {channels.root(flow) for flow in channels.fixed}
        for read in channels.reads:
            self._keep_for(self._roots(read.flows), fixed)
        while empty := [d for dims in channels.dims.values() for d in dims if not self._any_kept(d)]:
            self.kept.add(channels.root(empty[0][0]))
            self._keep_linked()

    @property
    def smaller(self) -> bool:
        """Whether any channel goes."""
        return any(root not in self.kept for root in map(self.channels.root, self.channels.parent))

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
            values: The model's tensors by name; of a weight whose last filters are zero, all or the others.

        Raises:
            ConfigError: When no channel that stays can stand for those that go.
        """
        shown = {**values, **self._showing(values)}
        constants, shown_constants = self.channels.constants(values), self.channels.constants(shown)
        narrow = {}
        for name, places in self._places.items():
            value = _rows(shown[name], places[0])
            narrow[name] = value.index_select(1, places[1]) if len(places) > 1 else value
        for read, merged, into, rank in self._merges:
            ours, theirs = constants[read.slot][0], shown_constants[read.slot][0]
            shares = _shares(ours.index_select(0, merged), theirs[merged[rank]], read)
            weight = values[read.weight].index_select(1, merged)
            shares = shares.view(-1, *[1] * (weight.dim() - 2))
            column = _rows((weight * shares).sum(1, keepdim=True), self._places[read.weight][0])
            emptied = narrow[read.weight].index_fill(1, into, 0)
            narrow[read.weight] = emptied.index_copy(1, into[:1], column)
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
    def _places(self) -> dict[str, tuple[Tensor, ...]]:
        """Tensor's name -> the indices that stay along each of its channel dimensions."""
        return {
            name: tuple(self._index(i for i, r in enumerate(self._roots(d)) if r in self.kept) for d in dims)
            for name, dims in self.channels.dims.items()
        }

    @cached_property
    def _merges(self) -> list[tuple[Read, Tensor, Tensor, int]]:
        """Each reader with the channels whose columns merge, their new places, and which stands for all.

        The first of the places is that of the channel that stands for them; the last item is its rank among
        those that merge.
        """
        merges = []
        for read in self.channels.reads:
            roots = self._roots(read.flows)
            merged = [i for i, root in enumerate(roots) if root not in self.kept or root in self.stand_ins]
            kept = [i for i, root in enumerate(roots) if root in self.kept]
            into = [place for place, i in enumerate(kept) if roots[i] in self.stand_ins]
            if merged:
                rank = merged.index(kept[into[0]])
                merges.append((read, self._index(merged), self._index(into), rank))
        return merges

    @cached_property
    def _own(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Running mean's name -> the channels whose statistics the narrow model has, there and here."""
        own = {}
        for norm in self.channels.norms:
            if norm.mean is not None:
                roots = self._roots(norm.flows)
                kept = [i for i, root in enumerate(roots) if root in self.kept]
                pairs = [(i, n) for n, i in enumerate(kept) if roots[i] not in self.stand_ins]
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

    def _keep_for(self, roots: list[int], fixed: set[int]) -> None:
        """Let one channel of a reader's input stand for those that go."""
        gone = [root for root in roots if root not in self.kept]
        if not gone or any(root in self.stand_ins for root in roots):
            return
        free = [root for root in roots if root not in self.live | fixed]
        if free:
            standing = next((root for root in free if root in self.kept), free[0])
            self.stand_ins.add(standing)
            self.kept.add(standing)
        else:
            self.kept.update(gone)
        self._keep_linked()

    def _keep_linked(self) -> None:
        """Keep whole groups."""
        links = [set(self._roots(link)) for link in self.channels.links]
        while found := [link for link in links if link & self.kept and not link <= self.kept]:
            self.kept.update(*found)

    def _any_kept(self, flows: list[int]) -> bool:
        return any(root in self.kept for root in self._roots(flows))

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
    for module in plain.modules():
        if isinstance(module, _ConvNd):
            filters, inputs = module.weight.shape[:2]
            module.groups = max(1, module.groups * filters // module.out_channels)
            module.out_channels, module.in_channels = filters, inputs * module.groups
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        elif isinstance(module, _NormBase) and module.affine:
            module.num_features = module.weight.shape[0]
    return plain


def _rows(value: Tensor, places: Tensor) -> Tensor:
    """Select rows; those behind the end are zero."""
    inside = places[places < len(value)]
    extra = value.new_zeros(len(places) - len(inside), *value.shape[1:])
    return torch.cat([value.index_select(0, inside), extra])


def _shares(constants: Tensor, shown: Tensor, read: Read) -> Tensor:
    """By how much each merged channel exceeds the one that stands for them."""
    if shown != 0:
        return constants / shown
    if (constants != 0).any():
        raise ConfigError(
            f"the input of '{read.weight}' has constant channels and none of them can stand for the others; "
            "keep the network as it is."
        )
    return constants
