"""A module with partly learned parameters: the plain module's class, with those parameters put together.

Inside such a module the registered parameter ``weight`` is the learned slice alone, a small tensor that any
optimiser may move; or other thin tensors stand in its place, as its kind (:mod:`sparsetune.sliced.kind`) has
it. What is frozen is a buffer beside it that no ``state_dict`` lists. Reading ``module.weight`` gives both
together, differentiable in what is learned, so every forward that uses it stays right; the forwards of plain
convolutions and linear maps are replaced by those of the kind, which never form a whole gradient.

A normalisation layer whose running statistics are to stay its backbone's gets a class that never trains.
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
from sparsetune.parts import plain_class
from sparsetune.sliced.kind import KEPT, KIND, Kind, rest_name, settle, value
from sparsetune.sliced.slices import Slice

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


def partly_(
    module: nn.Module, leaf: str, kind: Kind, learned: tuple[nn.Parameter, ...], frozen: Tensor
) -> None:
    """Make parameter ``leaf`` of ``module`` partly learned.

    Args:
        module: A plain or already sliced module; its class is replaced by a subclass of it.
        leaf: The parameter's name.
        kind: How it is learned.
        learned: The learned tensors, as ``kind.start`` gives them.
        frozen: What is frozen, likewise.
    """
    _become(module, {**getattr(module, KIND, {}), leaf: kind})
    names = kind.names(leaf)
    if leaf not in names:
        del module._parameters[leaf]
    for name, parameter in zip(names, learned, strict=True):
        if name == leaf:
            module._parameters[leaf] = parameter
        else:
            module.register_parameter(name, parameter)
    module.register_buffer(rest_name(leaf), frozen, persistent=False)
    settle(module)


def unslice_(module: nn.Module, leaf: str) -> None:
    """Undo :func:`partly_`: register a parameter's whole current value in its place."""
    kinds = dict(module.__dict__[KIND])
    kind = kinds.pop(leaf)
    with torch.no_grad():
        whole = kind.whole(module, leaf).detach()
    for name in kind.names(leaf):
        del module._parameters[name]
    delattr(module, rest_name(leaf))
    module.__dict__[KEPT].pop(leaf, None)
    _become(module, kinds)
    module._parameters[leaf] = nn.Parameter(whole)


def _become(module: nn.Module, kinds: dict[str, Kind]) -> None:
    """Give ``module`` the class in which the parameters of ``kinds`` are partly learned."""
    base: Any = plain_class(type(module))
    if kinds:
        module.__class__ = _sliced_class(base, tuple(kinds))
        module.__dict__[KIND] = kinds
    else:
        module.__class__ = base
        del module.__dict__[KIND], module.__dict__[KEPT]


WHOLE = Slice(0)
"""Stands in where a bias alone is partly learned: a weight of which all filters are learned, or none."""


def _conv_forward(module: Any, x: Tensor) -> Any:
    if not torch.is_grad_enabled():
        return module._conv_forward(x, value(module, "weight"), value(module, "bias"))
    padding: Any = module.padding
    if module.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        if any(module._reversed_padding_repeated_twice):
            x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
        padding = (0,) * len(module.stride)
    geometry = (module.stride, padding, module.dilation, module.groups)
    return module.__dict__[KIND].get("weight", WHOLE).apply(module, x, geometry)


def _linear_forward(module: Any, x: Tensor) -> Any:
    if not torch.is_grad_enabled():
        return F.linear(x, value(module, "weight"), value(module, "bias"))
    return module.__dict__[KIND].get("weight", WHOLE).apply(module, x, None)


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
        settle(self)
        return self

    def __setstate__(self: Any, state: dict[str, Any]) -> None:  # noqa: N807
        base.__setstate__(self, state)
        settle(self)

    def __reduce_ex__(self: Any, protocol: Any) -> Any:  # noqa: N807
        return _restore, (base, leaves), {**self.__dict__, KEPT: {}}

    def __setattr__(self: Any, name: str, value: Any) -> None:  # noqa: N807
        if name in leaves and isinstance(value, nn.Parameter) and not _fits(self, name, value):
            _refuse(self, name)
        base.__setattr__(self, name, value)

    def extra_repr(self: Any) -> str:
        names = [name for leaf, kind in self.__dict__[KIND].items() for name in kind.names(leaf)]
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
    whole: Tensor = module.__dict__[KIND][leaf].whole(module, leaf)
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


def hold_statistics_(module: nn.Module) -> None:
    """Let a layer stay in evaluation mode, whatever its model is put into, so that its statistics stay."""
    module.eval()
    kind: Any = type(module)
    module.__class__ = _held_class(kind)


def let_statistics_go_(module: nn.Module) -> None:
    """Undo what :func:`hold_statistics_` did."""
    module.__class__ = plain_class(type(module))


@cache
def _held_class(base: Any) -> type[nn.Module]:
    """A subclass of ``base`` that is always in evaluation mode."""

    def train(self: Any, mode: bool = True) -> Any:
        base.train(self, mode)
        self.training = False
        return self

    def __reduce_ex__(self: Any, protocol: Any) -> Any:  # noqa: N807
        return _held_again, (base,), self.__dict__

    body = {
        "_plain": base,
        "__doc__": base.__doc__,
        "__module__": base.__module__,
        "train": train,
        "__reduce_ex__": __reduce_ex__,
    }
    return type(base.__name__, (base,), body)


def _held_again(base: Any) -> nn.Module:
    kind = _held_class(base)
    return kind.__new__(kind)
