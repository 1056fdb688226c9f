"""``Channels``: where each channel of a model comes from and who reads it, as one run of it told.

A channel that a zero filter gives is a constant, whatever the picture: the same number at every position.
Pointwise operations, batch norm, pooling and sums of such channels give constants again. So each tensor
inside a model is a list of *flows*, one a channel: a number that a convolution or linear map gives out and
that all else hands on. Channels that are added have one flow together, because they stay or go together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

Values = Mapping[str, Tensor]
"""Parameters and buffers by name."""
Step = Callable[[list[Tensor], Values], Tensor]
"""From the constants so far and the model's values to the next constants ``(1, channels)``."""


@dataclass(frozen=True)
class Read:
    """A convolution without groups, or a linear map: it sums over all channels of its input.

    Attributes:
        weight: Name of its weight.
        slot: Place of the input's constants.
        flows: Of the input.
    """

    weight: str
    slot: int
    flows: list[int]


@dataclass(frozen=True)
class Norm:
    """A batch norm: names of its tensors, ``None`` for those that it lacks, and its input as in ``Read``."""

    weight: str | None
    bias: str | None
    mean: str | None
    var: str | None
    slot: int
    flows: list[int]


@dataclass
class Channels:
    """What a run of a model tells.

    Attributes:
        dims: Tensor's name -> for each of its leading dimensions that runs over channels, their flows.
        live: Flows that depend on the picture, or must be computed though they do not.
        links: Flows that stay or go together.
        fixed: Flows that a convolution with groups reads as they are.
        reads: Every convolution without groups and every linear map.
        norms: Every batch norm.
        steps: What becomes of constants on their way, as functions of the model's values.
    """

    dims: dict[str, tuple[list[int], ...]] = field(default_factory=dict)
    live: set[int] = field(default_factory=set)
    links: list[list[int]] = field(default_factory=list)
    fixed: set[int] = field(default_factory=set)
    reads: list[Read] = field(default_factory=list)
    norms: list[Norm] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    _parents: list[int] = field(default_factory=list)

    @property
    def flows(self) -> range:
        """All flows."""
        return range(len(self._parents))

    def root(self, flow: int) -> int:
        """Return the flow that stands for all that have become one with ``flow``."""
        while self._parents[flow] != flow:
            self._parents[flow] = flow = self._parents[self._parents[flow]]
        return flow

    def fresh(self, count: int, live: int) -> list[int]:
        """Return new flows, of which the first ``live`` depend on the picture."""
        start = len(self._parents)
        flows = list(range(start, start + count))
        self._parents += flows
        self.live.update(flows[:live])
        return flows

    def join(self, ours: Sequence[int], theirs: Sequence[int]) -> None:
        """Make flows one, pair by pair."""
        for a, b in zip(ours, theirs, strict=True):
            self._parents[self.root(b)] = self.root(a)

    def hold(self, name: str, *dims: list[int]) -> None:
        """Note over which flows the leading dimensions of a tensor run."""
        for known, flows in zip(self.dims.setdefault(name, dims), dims, strict=True):
            self.join(known, flows)

    def constants(self, values: Values) -> list[Tensor]:
        """Return the constants ``(1, channels)`` at every place, differentiable in ``values``.

        Numbers at the places of live channels mean nothing.
        """
        found: list[Tensor] = []
        for step in self.steps:
            found.append(step(found, values))
        return found
