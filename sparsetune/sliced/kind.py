"""What a kind of partly learned parameter has to say, and what a module holds of each such parameter.

Beside the learned tensors, which are its parameters, a module has one buffer with what is frozen. A new kind
is a file with a subclass of :class:`Kind`, and its place in ``KINDS`` of :mod:`sparsetune.sliced.adapt`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from sparsetune.errors import ConfigError
from sparsetune.parts import Part
from sparsetune.sliced.convolution import Geometry

KIND = "_sliced_kinds"
"""Attribute that maps a partly learned parameter's name to its kind."""
KEPT = "_sliced_kept"
"""Attribute that maps the name of a parameter whose whole value is in memory to what its kind keeps there."""


class Kind(ABC):
    """How a parameter is learned in part; a value that is copied and pickled with its module."""

    @classmethod
    @abstractmethod
    def of(cls, part: Part) -> Kind | None:
        """Return the kind of a partly learned part; ``None`` for a part of another kind."""

    @abstractmethod
    def names(self, leaf: str) -> tuple[str, ...]:
        """Return what the learned tensors of ``leaf`` are called, as ``Part.learned`` has it."""

    @abstractmethod
    def start(self, part: Part, whole: Tensor) -> tuple[tuple[nn.Parameter, ...], Tensor]:
        """Return the learned tensors at their start, and the frozen buffer.

        Args:
            part: What is learned.
            whole: The plain parameter's values; nothing else will use their memory.
        """

    @abstractmethod
    def whole(self, module: nn.Module, leaf: str) -> Tensor:
        """Return a parameter's whole current value, differentiable in what is learned."""

    @abstractmethod
    def apply(self, module: nn.Module, x: Tensor, geometry: Geometry | None) -> Tensor:
        """Apply a module whose weight is of this kind, so that only the learned part's gradient is computed.

        Stock convolutions and linear maps come here, and only with gradients enabled; every other forward
        uses :meth:`whole`, whose bits the output should have. ``x`` may lack a batch dimension and autocast
        may be on, which ``convolution.applied`` sees to; the output must own its memory, as
        ``convolution.plain`` gives it.

        Args:
            module: A convolution or a linear map.
            x: Its input.
            geometry: ``(stride, padding, dilation, groups)``; ``None`` of a linear map.
        """

    def settle(self, module: nn.Module, leaf: str) -> None:
        """Do what has to be done once a parameter's tensors are in place, or were moved."""
        module.__dict__[KEPT].pop(leaf, None)


def settle(module: nn.Module) -> None:
    """Settle every partly learned parameter of a module."""
    module.__dict__.setdefault(KEPT, {})
    for leaf, kind in module.__dict__[KIND].items():
        kind.settle(module, leaf)


def value(module: nn.Module, leaf: str) -> Any:
    """Return the whole value of a weight or bias, partly learned or not, that nothing guards."""
    kind = module.__dict__[KIND].get(leaf)
    return getattr(module, leaf) if kind is None else kind.whole(module, leaf)


def rest_name(leaf: str) -> str:
    """Return the name of the buffer that holds what is frozen of ``leaf``."""
    return f"{leaf}_frozen"


def frozen_rest(module: nn.Module, leaf: str) -> Tensor:
    """Return the buffer that holds what is frozen of ``leaf``."""
    rest = module._buffers[rest_name(leaf)]
    if rest is None:
        raise KeyError(leaf)
    return rest


def learned_of(module: nn.Module, name: str) -> Tensor:
    """Return a learned tensor.

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
