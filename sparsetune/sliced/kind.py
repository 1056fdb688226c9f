"""What a kind of partly learned parameter has to say, and what a module holds of each such parameter.

Beside the learned tensors, which are its parameters, a module has one buffer with what is frozen. A new kind
is a file with a subclass of :class:`Kind`, and its place in ``KINDS`` of :mod:`sparsetune.sliced.adapt`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
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


Form = Callable[..., Tensor]
"""Makes a whole value of learned tensors and, last, the frozen one."""


def formed(module: nn.Module, leaf: str, form: Form, *learned: Tensor) -> Tensor:
    """Form a whole value, or give the one that is kept for as long as no gradient is wanted.

    Args:
        module: Whose.
        leaf: Of which parameter.
        form: Makes it of ``learned`` and what is frozen.
        *learned: Tensors that are small beside the whole.
    """
    frozen, kept = frozen_rest(module, leaf), module.__dict__[KEPT]
    if not keepable(*learned, frozen):
        return form(*learned, frozen)
    if torch.is_grad_enabled() and any(each.requires_grad for each in (*learned, frozen)):
        kept.pop(leaf, None)
        return form(*learned, frozen)
    found: Formed | None = kept.get(leaf)
    if found is None or not found.holds(learned, frozen):
        found = kept[leaf] = Formed.of(form, learned, frozen)
    return found.whole


def without_autocast(frozen: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which a whole value is formed in its own dtype, whatever the caller's autocast."""
    device = frozen.device.type
    if frozen.is_meta or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def laid_out_as(frozen: Tensor, whole: Tensor) -> Tensor:
    """Return a whole value in the memory layout of what is frozen of it."""
    if frozen.dim() == 4 and not frozen.is_contiguous():
        return whole.contiguous(memory_format=torch.channels_last)
    return whole


@dataclass(frozen=True, eq=False)
class Formed:
    """A whole value, and copies of what is learned of it, small as that is."""

    whole: Tensor
    learned: tuple[Tensor, ...]
    frozen: Tensor
    version: tuple[int, int]

    @classmethod
    def of(cls, form: Form, learned: tuple[Tensor, ...], frozen: Tensor) -> Formed:
        """Form it, so that it may be part of a graph later, also where it is asked for in inference."""
        with torch.inference_mode(False), torch.no_grad():
            copies = tuple(each.clone() for each in learned)
            return cls(form(*learned, frozen), copies, frozen, _version(frozen))

    def holds(self, learned: tuple[Tensor, ...], frozen: Tensor) -> bool:
        """Whether it is made of these values, however they were written."""
        kind = self.whole.dtype, self.whole.device
        same = frozen is self.frozen and _version(frozen) == self.version
        alike = all((each.dtype, each.device) == kind for each in (*learned, frozen))
        return same and alike and all(map(torch.equal, learned, self.learned))


def _version(frozen: Tensor) -> tuple[int, int]:
    """Count of the changes that torch saw, and the memory that holds the values."""
    return frozen._version, frozen.data_ptr()


def keepable(*values: Tensor) -> bool:
    """Whether to keep a whole value: on a CPU, where comparing small tensors takes less than forming it."""
    *learned, frozen = values
    ordinary = all(type(each) is nn.Parameter for each in learned) and not torch.compiler.is_compiling()
    return ordinary and all(each.is_cpu for each in values) and not frozen.is_inference()
