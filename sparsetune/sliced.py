"""A module with partly learned parameters: the plain module's class, with those parameters put together.

Inside such a module the registered parameter ``weight`` is the learned slice alone, a small tensor that any
optimiser may move. The frozen rest is a buffer beside it that no ``state_dict`` lists. Reading
``module.weight`` gives both together, differentiable in the slice, so every forward that uses it stays
right; the forwards of plain convolutions and linear maps are replaced by those of :mod:`sparsetune.ops`,
which never form a whole gradient.

Or the parameter is a low-rank sum (:mod:`sparsetune.factored`): two thin parameters ``weight_A`` and
``weight_B`` are registered in its place, the buffer is the frozen weight that they add to, and the sum is
kept while no gradient is wanted.

A slice of filters is joined to its rest (:mod:`sparsetune.joined`). Where something puts one of the two
elsewhere (a parameter swapped by hand or by ``torch.func``), they are put together on each use.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsetune.errors import ConfigError
from sparsetune.factored import Sum, factored_conv, factored_linear, keepable, summed
from sparsetune.joined import Joined, join_, joinable
from sparsetune.ops import sliced_conv, sliced_linear
from sparsetune.part import factor_names

DIMS = "_sliced_dims"
"""Attribute that maps a partly learned parameter's name to its sliced dimension; ``None`` for a sum."""
JOINS = "_sliced_joins"
"""Attribute that maps the name of a parameter whose whole value is in memory to the join or sum."""


def slice_(module: nn.Module, leaf: str, dim: int, learned: nn.Parameter, rest: Tensor) -> None:
    """Make parameter ``leaf`` of ``module`` partly learned.

    Args:
        module: A plain or already sliced module; its class is replaced by a subclass of it.
        leaf: The parameter's name.
        dim: The sliced dimension.
        learned: The learned slice.
        rest: The frozen values that follow it along ``dim``.
    """
    _become(module, {**getattr(module, DIMS, {}), leaf: dim})
    module._parameters[leaf] = learned
    module.register_buffer(rest_name(leaf), rest, persistent=False)
    _join(module)


def factor_(module: nn.Module, leaf: str, a: nn.Parameter, b: nn.Parameter, frozen: Tensor) -> None:
    """Make parameter ``leaf`` of ``module`` the sum ``frozen + b @ a``.

    Args:
        module: A plain or already sliced module; its class is replaced by a subclass of it.
        leaf: The parameter's name.
        a: The learned rows, ``(r, *rest)``.
        b: The learned columns, ``(O, r)``.
        frozen: The frozen weight, ``(O, *rest)``.
    """
    _become(module, {**getattr(module, DIMS, {}), leaf: None})
    del module._parameters[leaf]
    for name, value in zip(factor_names(leaf), (a, b), strict=True):
        module.register_parameter(name, value)
    module.register_buffer(rest_name(leaf), frozen, persistent=False)
    _join(module)


def unslice_(module: nn.Module, leaf: str) -> None:
    """Undo :func:`slice_` or :func:`factor_`: register a parameter's whole current value in its place."""
    with torch.no_grad():
        value = whole_of(module, leaf).detach()
    dims = dict(module.__dict__[DIMS])
    for name in _learned_names(leaf, dims.pop(leaf)):
        del module._parameters[name]
    delattr(module, rest_name(leaf))
    module.__dict__[JOINS].pop(leaf, None)
    _become(module, dims)
    module._parameters[leaf] = nn.Parameter(value)


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
    learned, rest = _pair(module, leaf)
    whole = _joined(module, leaf)
    if whole is None or (torch.is_grad_enabled() and learned.requires_grad):
        return torch.cat([learned, rest], module.__dict__[DIMS][leaf])
    return whole


def plain_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class that a sliced module had before it was sliced."""
    plain: type[nn.Module] = kind.__dict__.get("_plain", kind)
    return plain


def rest_name(leaf: str) -> str:
    """Return the name of the buffer that holds the frozen rest of ``leaf``."""
    return f"{leaf}_frozen"


def _learned_names(leaf: str, dim: int | None) -> tuple[str, ...]:
    return factor_names(leaf) if dim is None else (leaf,)


def _become(module: nn.Module, dims: dict[str, int | None]) -> None:
    """Give ``module`` the class in which the parameters of ``dims`` are partly learned."""
    base: Any = plain_class(type(module))
    if dims:
        module.__class__ = _sliced_class(base, tuple(dims))
        module.__dict__[DIMS] = dims
    else:
        module.__class__ = base
        del module.__dict__[DIMS], module.__dict__[JOINS]


def _learned(module: nn.Module, name: str) -> Tensor:
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


def _pair(module: nn.Module, leaf: str) -> tuple[Tensor, Tensor]:
    return _learned(module, leaf), frozen_rest(module, leaf)


def _terms(module: nn.Module, leaf: str) -> tuple[Tensor, Tensor, Tensor]:
    """``A``, ``B`` and the frozen weight of a sum."""
    a, b = (_learned(module, name) for name in factor_names(leaf))
    return a, b, frozen_rest(module, leaf)


def _sum(module: nn.Module, leaf: str) -> Tensor:
    """A sum, kept for as long as no gradient is wanted."""
    terms, joins = _terms(module, leaf), module.__dict__[JOINS]
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


def _joined(module: nn.Module, leaf: str) -> Tensor | None:
    """The whole value without a copy, if its two parts lie side by side."""
    if torch.compiler.is_compiling():
        return None
    join: Joined | None = module.__dict__[JOINS].get(leaf)
    return join.whole if join and join.holds(*_pair(module, leaf)) else None


def _join(module: nn.Module) -> None:
    """Let each slice of filters and its rest lie side by side wherever they can."""
    joins = module.__dict__.setdefault(JOINS, {})
    for leaf, dim in module.__dict__[DIMS].items():
        if dim is None:
            joins.pop(leaf, None)
            continue
        learned, rest = module._parameters[leaf], frozen_rest(module, leaf)
        if _joined(module, leaf) is not None:
            continue
        joins.pop(leaf, None)
        if learned is not None and dim == 0 and joinable(learned, rest):
            joins[leaf] = join_(learned, rest)
            module._buffers[rest_name(leaf)] = joins[leaf].rest


def _operands(module: nn.Module, leaf: str) -> tuple[Any, Any]:
    """What is learned of a weight or bias, and its whole; one value where it is not partly learned."""
    if leaf not in module.__dict__.get(DIMS, {}):
        whole = getattr(module, leaf)
        return whole, whole
    learned, rest = _pair(module, leaf)
    whole = _joined(module, leaf)
    if whole is None:
        whole = torch.cat([learned.detach(), rest], module.__dict__[DIMS][leaf])
    return learned, whole


def _conv_forward(module: Any, x: Tensor) -> Any:
    if not torch.is_grad_enabled():
        return module._conv_forward(x, module.weight, module.bias)
    padding: Any = module.padding
    if module.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        if any(module._reversed_padding_repeated_twice):
            x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
        padding = (0,) * len(module.stride)
    geometry = (module.stride, padding, module.dilation, module.groups)
    dim = module.__dict__[DIMS].get("weight", 0)
    if dim is None:
        a, b, _ = _terms(module, "weight")
        return factored_conv(x, a, b, module.weight, module.bias, geometry)
    learned, weight = _operands(module, "weight")
    learned_bias, bias = _operands(module, "bias")
    return sliced_conv(x, learned, weight, learned_bias, bias, dim, geometry)


def _linear_forward(module: Any, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return F.linear(x, module.weight, module.bias)
    dim = module.__dict__[DIMS].get("weight", 0)
    if dim is None:
        a, b, _ = _terms(module, "weight")
        return factored_linear(x, a, b, module.weight, module.bias)
    learned, weight = _operands(module, "weight")
    learned_bias, bias = _operands(module, "bias")
    return sliced_linear(x, learned, weight, learned_bias, bias, dim)


SLICED_FORWARDS: dict[Callable[..., Any], Callable[..., Any]] = {
    nn.Conv1d.forward: _conv_forward,
    nn.Conv2d.forward: _conv_forward,
    nn.Conv3d.forward: _conv_forward,
    nn.Linear.forward: _linear_forward,
}
"""Plain forward -> the forward that computes only the learned slice's gradient. Any other forward is kept."""


@cache
def _sliced_class(base: Any, leaves: tuple[str, ...]) -> type[nn.Module]:
    """A subclass of ``base`` in which the parameters ``leaves`` are partly learned."""

    def _apply(self: Any, fn: Any, recurse: bool = True) -> Any:
        base._apply(self, fn, recurse)
        _join(self)
        return self

    def __setstate__(self: Any, state: dict[str, Any]) -> None:  # noqa: N807
        base.__setstate__(self, state)
        _join(self)

    def __reduce_ex__(self: Any, protocol: Any) -> Any:  # noqa: N807
        return _restore, (base, leaves), {**self.__dict__, JOINS: {}}

    def __setattr__(self: Any, name: str, value: Any) -> None:  # noqa: N807
        if name in leaves and isinstance(value, nn.Parameter):
            _check_slice(self, name, value)
        base.__setattr__(self, name, value)

    def extra_repr(self: Any) -> str:
        names = [n for leaf, dim in self.__dict__[DIMS].items() for n in _learned_names(leaf, dim)]
        learned = [f"{name} {tuple(self._parameters[name].shape)}" for name in names]
        return ", ".join([base.extra_repr(self), "learned: " + ", ".join(learned)])

    body: dict[str, Any] = {
        "_plain": base,
        "__doc__": base.__doc__,
        "__module__": base.__module__,
        "_apply": _apply,
        "__setstate__": __setstate__,
        "__reduce_ex__": __reduce_ex__,
        "__setattr__": __setattr__,
        "extra_repr": extra_repr,
        **{leaf: _whole_property(leaf) for leaf in leaves},
    }
    convolves = getattr(base, "_conv_forward", None)
    stock = convolves in (None, nn.Conv1d._conv_forward, nn.Conv2d._conv_forward, nn.Conv3d._conv_forward)
    if stock and base.forward in SLICED_FORWARDS:
        body["forward"] = SLICED_FORWARDS[base.forward]
    return type(base.__name__, (base,), body)


def _whole_property(leaf: str) -> property:
    def refuse(module: nn.Module, value: Any) -> None:
        raise ConfigError(
            f"'{leaf}' of this {type(module).__name__} is partly learned and cannot be set to another, as "
            "FSDP and weight_norm do; use DistributedDataParallel, or reparametrise before adapt_."
        )

    return property(lambda module: whole_of(module, leaf), refuse)


def _check_slice(module: nn.Module, leaf: str, value: Tensor) -> None:
    """Refuse a whole weight where the learned slice stands."""
    learned = module._parameters.get(leaf)
    if learned is not None and value.shape != learned.shape:
        raise ConfigError(
            f"'{leaf}' of this {type(module).__name__} has {tuple(learned.shape)} learned values and cannot "
            f"be set to a parameter of shape {tuple(value.shape)}; copy it into the plain model, then adapt_."
        )


def _restore(base: Any, leaves: tuple[str, ...]) -> nn.Module:
    kind = _sliced_class(base, leaves)
    return kind.__new__(kind)
