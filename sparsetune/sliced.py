"""A module with partly learned parameters: the plain module's class, with those parameters put together.

Inside such a module the registered parameter ``weight`` is the learned slice alone, a small tensor that any
optimiser may move. The whole weight, frozen rest included, is a buffer beside it that no ``state_dict``
lists. Reading ``module.weight`` gives the whole weight, differentiable in the slice, so every forward
that uses it stays right; the forwards of plain convolutions and linear maps are replaced by those of
:mod:`sparsetune.ops`, which never form a whole gradient.

A slice of filters is *tied*: it shares the memory of the whole weight's first filters, so an optimiser's
step is at once a step of the whole and nothing is ever put together. Where something breaks the tie
(a parameter swapped by hand or by ``torch.func``), the whole is put together on each use.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsetune.ops import assemble, sliced_conv, sliced_linear

DIMS = "_sliced_dims"
"""Attribute that maps a partly learned parameter's name to its sliced dimension."""


def slice_(module: nn.Module, leaf: str, dim: int, learned: nn.Parameter, whole: Tensor) -> None:
    """Make parameter ``leaf`` of ``module`` partly learned.

    Args:
        module: A plain or already sliced module; its class is replaced by a subclass of it.
        leaf: The parameter's name.
        dim: The sliced dimension.
        learned: The learned slice.
        whole: The whole tensor, the slice's current values in place.
    """
    dims = {**getattr(module, DIMS, {}), leaf: dim}
    base = plain_class(type(module))
    module.__class__ = _sliced_class(base, tuple(dims))
    module.__dict__[DIMS] = dims
    module._parameters[leaf] = learned
    module.register_buffer(_whole_name(leaf), whole, persistent=False)
    _tie(module)


def unslice_(module: nn.Module, leaf: str) -> Tensor:
    """Undo :func:`slice_` for one parameter; return its whole current value, no longer registered."""
    with torch.no_grad():
        value = whole_of(module, leaf).detach()
    dims = {name: dim for name, dim in module.__dict__[DIMS].items() if name != leaf}
    del module._parameters[leaf]
    delattr(module, _whole_name(leaf))
    base = plain_class(type(module))
    if dims:
        module.__class__ = _sliced_class(base, tuple(dims))
        module.__dict__[DIMS] = dims
    else:
        module.__class__ = base
        del module.__dict__[DIMS]
    return value


def frozen_whole(module: nn.Module, leaf: str) -> Tensor:
    """Return the buffer that holds the frozen rest of ``leaf``; its learned slice may be out of date."""
    whole = module._buffers[_whole_name(leaf)]
    if whole is None:
        raise KeyError(leaf)
    return whole


def whole_of(module: nn.Module, leaf: str) -> Tensor:
    """Return the whole current value of a partly learned parameter, differentiable in its slice."""
    learned, whole = _pair(module, leaf)
    if (torch.is_grad_enabled() and learned.requires_grad) or not _tied(learned, whole):
        return assemble(learned, whole, module.__dict__[DIMS][leaf])
    return whole


def plain_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class that a sliced module had before it was sliced."""
    plain: type[nn.Module] = kind.__dict__.get("_plain", kind)
    return plain


def _whole_name(leaf: str) -> str:
    return f"{leaf}_with_frozen"


def _pair(module: nn.Module, leaf: str) -> tuple[Tensor, Tensor]:
    learned = module._parameters[leaf]
    if learned is None:
        raise KeyError(leaf)
    return learned, frozen_whole(module, leaf)


def _tied(learned: Tensor, whole: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(learned):
        return False
    return learned.data_ptr() == whole.data_ptr() and learned.dtype == whole.dtype


def _tie(module: nn.Module) -> None:
    """Let each slice of filters share the memory of its whole weight."""
    for leaf, dim in module.__dict__[DIMS].items():
        learned, whole = _pair(module, leaf)
        if dim == 0 and not _tied(learned, whole) and learned.device == whole.device and not whole.is_meta:
            with torch.no_grad():
                slot = whole.narrow(0, 0, learned.shape[0])
                slot.copy_(learned)
                learned.data = slot


def _operands(module: nn.Module, leaf: str) -> tuple[Tensor | None, Tensor | None]:
    """Learned slice (``None``: frozen) and whole of a parameter; it may be plain, sliced or absent."""
    if leaf not in module.__dict__.get(DIMS, {}):
        value = getattr(module, leaf)
        return (value if isinstance(value, nn.Parameter) else None), value
    learned, whole = _pair(module, leaf)
    if _tied(learned, whole):
        return learned, whole
    return learned, assemble(learned.detach(), whole, module.__dict__[DIMS][leaf])


def _conv_forward(module: Any, x: Tensor) -> Tensor:
    learned, weight = _operands(module, "weight")
    learned_bias, bias = _operands(module, "bias")
    padding: Any = module.padding
    if module.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        if any(module._reversed_padding_repeated_twice):
            x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
        padding = (0,) * len(module.stride)
    geometry = (module.stride, padding, module.dilation, module.groups)
    dim = module.__dict__[DIMS].get("weight", 0)
    return sliced_conv(x, learned, _given(weight), learned_bias, bias, dim, geometry)


def _linear_forward(module: Any, x: Tensor) -> Tensor:
    learned, weight = _operands(module, "weight")
    learned_bias, bias = _operands(module, "bias")
    dim = module.__dict__[DIMS].get("weight", 0)
    return sliced_linear(x, learned, _given(weight), learned_bias, bias, dim)


def _given(weight: Tensor | None) -> Tensor:
    if weight is None:
        raise KeyError("weight")
    return weight


SLICED_FORWARDS: dict[Callable[..., Any], Callable[..., Any]] = {
    nn.Conv1d.forward: _conv_forward,
    nn.Conv2d.forward: _conv_forward,
    nn.Conv3d.forward: _conv_forward,
    nn.Linear.forward: _linear_forward,
}
"""Plain forward -> the forward that computes only the learned slice's gradient. Any other forward is kept."""


@cache
def _sliced_class(base: type[nn.Module], leaves: tuple[str, ...]) -> type[nn.Module]:
    """A subclass of ``base`` in which the parameters ``leaves`` are partly learned."""

    def _apply(self: Any, fn: Any, recurse: bool = True) -> Any:
        base._apply(self, fn, recurse)
        _tie(self)
        return self

    def __setstate__(self: Any, state: dict[str, Any]) -> None:  # noqa: N807
        base.__setstate__(self, state)
        _tie(self)

    def __reduce_ex__(self: Any, protocol: Any) -> Any:  # noqa: N807
        return _restore, (base, leaves), self.__dict__

    def extra_repr(self: Any) -> str:
        learned = [f"{leaf} {tuple(self._parameters[leaf].shape)}" for leaf in self.__dict__[DIMS]]
        return ", ".join([base.extra_repr(self), "learned: " + ", ".join(learned)])

    body: dict[str, Any] = {
        "_plain": base,
        "__doc__": base.__doc__,
        "__module__": base.__module__,
        "_apply": _apply,
        "__setstate__": __setstate__,
        "__reduce_ex__": __reduce_ex__,
        "extra_repr": extra_repr,
        **{leaf: property(lambda self, leaf=leaf: whole_of(self, leaf)) for leaf in leaves},
    }
    convolves = getattr(base, "_conv_forward", None)
    stock = convolves in (None, nn.Conv1d._conv_forward, nn.Conv2d._conv_forward, nn.Conv3d._conv_forward)
    if stock and base.forward in SLICED_FORWARDS:
        body["forward"] = SLICED_FORWARDS[base.forward]
    return type(base.__name__, (base,), body)


def _restore(base: type[nn.Module], leaves: tuple[str, ...]) -> nn.Module:
    kind = _sliced_class(base, leaves)
    return kind.__new__(kind)
