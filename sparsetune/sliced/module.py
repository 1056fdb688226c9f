"""A module with partly learned parameters: the plain module's class, with those parameters put together.

Inside such a module the registered parameter ``weight`` is the learned slice alone, a small tensor that any
optimiser may move. The frozen rest is a buffer beside it that no ``state_dict`` lists. Reading
``module.weight`` gives both together, differentiable in the slice, so every forward that uses it stays
right; the forwards of plain convolutions and linear maps are replaced by those of ``functions``, which
never form a whole gradient.

Or the parameter is a low-rank sum (:mod:`sparsetune.sliced.functions`): two thin parameters ``weight_A`` and
``weight_B`` are registered in its place, and the buffer is the frozen weight that they add to.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from threading import local
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn import functional as F

from sparsetune.errors import ConfigError
from sparsetune.parts import factor_names, plain_class
from sparsetune.sliced.functions import factored_conv, factored_linear, sliced_conv, sliced_linear
from sparsetune.sliced.whole import DIMS, JOINS, join_slices, joined, pair, rest_name, terms_of, whole_of

ITEMS = {"__set__", "__setitem__"}
"""Functions that set a part or an attribute of their first argument, as all do whose names end in ``_``."""
OPERATORS = {
    f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
}
"""Of ``+=`` and its kin."""
OUTWARD = {"numpy", "__array__", "__dlpack__"}
"""Functions that give memory away to where no one watches."""


class Guarded(Tensor):
    """A tensor for reading alone; what is computed from it is ordinary."""

    told: str

    @classmethod
    def of(cls, value: Tensor, told: str) -> Guarded:
        """Guard a value, part of a graph or not.

        Args:
            value: The value.
            told: What whoever writes to it is told.
        """
        found = value.as_subclass(cls)
        found.told = told
        return found

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        held: list[tuple[Tensor, Guarded]] = []
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            target = _plain(_written(func.__name__, args, kwargs), held)
            if held and target is not None:
                raise ConfigError(held[0][1].told)
            args, kwargs = _plain(args, held), _plain(kwargs, held)
            versions = [value._version for value, _ in held]
            if func.__name__ in OUTWARD:
                args = (args[0].clone(), *args[1:])
        result = func(*args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            for (value, guard), version in zip(held, versions, strict=True):
                if value._version != version:
                    raise ConfigError(guard.told)
            return _guarded(result, held)


def _written(name: str, args: Any, kwargs: Any) -> Any:
    """What a function of that name writes to, as far as one can tell; ``None`` for nothing."""
    in_place = name.endswith("_") and not name.endswith("__")
    if in_place or name in ITEMS | OPERATORS or kwargs.get("inplace") is True:
        return next(iter((*args, *kwargs.values())))  # torch.nn.init gives all of them by name
    return kwargs.get("out")


def _plain(given: Any, held: list[tuple[Tensor, Guarded]]) -> Any:
    """Arguments without guards; what was guarded is noted in ``held``."""
    if isinstance(given, Guarded):
        held.append((given.as_subclass(Tensor), given))
        return held[-1][0]
    if type(given) in (list, tuple):
        return type(given)([_plain(value, held) for value in given])
    if type(given) is dict:
        return {name: _plain(value, held) for name, value in given.items()}
    return given


def _guarded(result: Any, held: list[tuple[Tensor, Guarded]]) -> Any:
    """A function's result, guarded where it shares memory with what was guarded."""
    if type(result) in (list, tuple):
        return type(result)([_guarded(value, held) for value in result])
    if not isinstance(result, Tensor) or is_functorch_wrapped_tensor(result):
        return result
    guard = next((guard for value, guard in held if _share_memory(result, value)), None)
    return Guarded.of(result, guard.told) if guard is not None else result


def _share_memory(one: Tensor, other: Tensor) -> bool:
    strided = one.layout == other.layout == torch.strided
    return strided and one.untyped_storage()._cdata == other.untyped_storage()._cdata


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
    join_slices(module)


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
    join_slices(module)


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


def _operands(module: nn.Module, leaf: str) -> tuple[Any, Any]:
    """What is learned of a weight or bias, and its whole; one value where it is not partly learned."""
    if leaf not in module.__dict__[DIMS]:
        whole = getattr(module, leaf)
        return whole, whole
    learned, rest = pair(module, leaf)
    whole = joined(module, leaf)
    if whole is None:
        whole = torch.cat([learned.detach(), rest], module.__dict__[DIMS][leaf])
    return learned, whole


def _value(module: nn.Module, leaf: str) -> Any:
    """The whole value of a weight or bias, not guarded."""
    return whole_of(module, leaf) if leaf in module.__dict__[DIMS] else getattr(module, leaf)


def _conv_forward(module: Any, x: Tensor) -> Any:
    if not torch.is_grad_enabled():
        return module._conv_forward(x, _value(module, "weight"), _value(module, "bias"))
    padding: Any = module.padding
    if module.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        if any(module._reversed_padding_repeated_twice):
            x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
        padding = (0,) * len(module.stride)
    geometry = (module.stride, padding, module.dilation, module.groups)
    dim = module.__dict__[DIMS].get("weight", 0)
    if dim is None:
        a, b, _ = terms_of(module, "weight")
        return factored_conv(x, a, b, whole_of(module, "weight"), _value(module, "bias"), geometry)
    learned, weight = _operands(module, "weight")
    learned_bias, bias = _operands(module, "bias")
    return sliced_conv(x, learned, weight, learned_bias, bias, dim, geometry)


def _linear_forward(module: Any, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return F.linear(x, _value(module, "weight"), _value(module, "bias"))
    dim = module.__dict__[DIMS].get("weight", 0)
    if dim is None:
        a, b, _ = terms_of(module, "weight")
        return factored_linear(x, a, b, whole_of(module, "weight"), _value(module, "bias"))
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
        join_slices(self)
        return self

    def __setstate__(self: Any, state: dict[str, Any]) -> None:  # noqa: N807
        base.__setstate__(self, state)
        join_slices(self)

    def __reduce_ex__(self: Any, protocol: Any) -> Any:  # noqa: N807
        return _restore, (base, leaves), {**self.__dict__, JOINS: {}}

    def __setattr__(self: Any, name: str, value: Any) -> None:  # noqa: N807
        if name in leaves and isinstance(value, nn.Parameter) and not _fits(self, name, value):
            _refuse(self, name)
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
    else:
        body["forward"] = _reading(base.forward)
    return type(base.__name__, (base,), body)


class _Inside(local):
    """How many forwards deep in modules that read their own weights a thread is."""

    depth = 0


_inside = _Inside()


def _reading(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A module's own forward, in which weights are not guarded."""

    @wraps(forward)
    def unguarded(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return forward(self, *args, **kwargs)
        _inside.depth += 1
        try:
            return forward(self, *args, **kwargs)
        finally:
            _inside.depth -= 1

    return unguarded


def _whole_property(leaf: str) -> property:
    return property(lambda module: _read(module, leaf), lambda module, _: _refuse(module, leaf))


def _read(module: nn.Module, leaf: str) -> Tensor:
    """The whole value for whoever asks, guarded unless that is a forward of such modules or a compiler."""
    whole = whole_of(module, leaf)
    if (
        torch.compiler.is_compiling()
        or _inside.depth
        or torch._C._get_tracing_state() is not None
        or type(whole) is not Tensor
    ):
        return whole
    return Guarded.of(
        whole,
        f"'{leaf}' of this {type(module).__name__} is partly learned, put together from what is learned and "
        "what is frozen, so nothing can be written into it; do that before adapt_ or after "
        "sparsetune.merge_(net), or write to the learned part, which is in net.named_parameters().",
    )


def _refuse(module: nn.Module, leaf: str) -> NoReturn:
    raise ConfigError(
        f"'{leaf}' of this {type(module).__name__} is partly learned and cannot be set to another, as FSDP "
        "and weight_norm do; use DistributedDataParallel, or set it before adapt_ or after "
        "sparsetune.merge_(net)."
    )


def _fits(module: nn.Module, leaf: str, value: Tensor) -> bool:
    """Whether a parameter may take the place of a learned slice."""
    learned = module._parameters.get(leaf)
    return learned is not None and learned.shape == value.shape


def _restore(base: Any, leaves: tuple[str, ...]) -> nn.Module:
    kind = _sliced_class(base, leaves)
    return kind.__new__(kind)
