"""A computed weight that refuses to be written to.

What a partly learned layer gives as its ``weight`` is put together from what is learned and what is frozen,
so a value written into it would be lost, or would reach frozen values. It therefore watches what is done to
it and to what shares its memory, as ``weight.data`` does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from sparsetune.errors import ConfigError

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
