"""Observe, while a model is built, which law each of its random tensors follows.

Inside :func:`observing` a draw is noted instead of made, and the note follows the values through scaling, copies
and views. A draw is made only when something reads it that no law can follow; what comes out is *unknown*.
Notes belong to byte ranges of storages, so parameters, views and ``.data`` need no care.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from statistics import NormalDist
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparsetune.errors import ConfigError
from sparsetune.seeding import Law, draw

_UNIFORM, _NORMAL = ("uniform", 0.0, 1.0), ("normal", 0.0, 1.0)
_DRAWS = {
    **dict.fromkeys(("rand", "rand_like", "uniform_"), _UNIFORM),
    **dict.fromkeys(("randn", "randn_like", "normal_", "normal"), _NORMAL),
}
_SCALINGS: dict[str, Callable[[float, float], float]] = {
    "mul": operator.mul,
    "div": operator.truediv,
    "add": operator.add,
    "sub": operator.sub,
    "rsub": lambda value, number: number - value,
    "neg": lambda value, _: -value,
}
_SHIFTS = {"add", "sub", "rsub"}
_COPIES = {"clone", "_to_copy"}
_OVERWRITES = {"zero_", "fill_", "copy_"}
_SHAPE_ONLY = {"resize_", "set_", "empty_like", "zeros_like", "ones_like", "full_like"} | {
    f"new_{what}" for what in ("empty", "empty_strided", "zeros", "ones", "full")
}
_UNCLAMPED = "erfinv_ of a uniform draw, without the clamp_ of a truncated normal law"
_SQRT_HALF = math.sqrt(0.5)

_BUILDING = RLock()
"""Random state and ``torch.nn.init`` belong to the process, so one thread observes at a time."""


@dataclass(frozen=True)
class _Note:
    """What is known of bytes ``start`` to ``stop`` of a storage, which hold random values of ``dtype``.

    ``why`` says why ``law`` is missing or cannot be used; copies share the number of a ``draw``; ``made`` tells
    whether memory holds the values.
    """

    start: int
    stop: int
    dtype: torch.dtype
    law: Law | None
    why: str
    draw: int
    made: bool


@dataclass
class _Storage:
    """Notes on one storage, which is kept so that no other takes its address."""

    memory: torch.UntypedStorage
    notes: list[_Note] = field(default_factory=list)


class Observation:
    """What was observed; ask once the model is built, before it is moved or cast."""

    def __init__(self) -> None:
        self._storages: dict[int, _Storage] = {}
        self._draws = 0

    def laws(self, module: nn.Module) -> dict[str, Law]:
        """Return parameter or buffer name -> law, for tensors of independent values of one law.

        Their memory may hold anything. A tensor that several names share appears under the first only; one
        that is in neither :meth:`laws` nor :meth:`unknown` is constant.
        """
        return {name: found for name, found in self._findings(module) if isinstance(found, Law)}

    def unknown(self, module: nn.Module) -> dict[str, str]:
        """Return parameter or buffer name -> why, for random tensors that no :class:`Law` describes."""
        return {name: found for name, found in self._findings(module) if isinstance(found, str)}

    def _findings(self, module: nn.Module) -> Iterator[tuple[str, Law | str]]:
        places: set[tuple[int, int, int]] = set()
        owners: dict[int, str] = {}
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            start, stop, dense = _span(tensor)
            place = (_address(tensor), start, stop)
            notes = self.notes(tensor)
            if not notes or place in places:
                continue
            places.add(place)
            copied = {owners[note.draw] for note in notes if note.draw in owners}
            owners.update((note.draw, name) for note in notes if note.draw not in owners)
            random = sum(min(stop, note.stop) - max(start, note.start) for note in notes)
            law = notes[0].law
            if why := next((note.why for note in notes if note.why), ""):
                yield name, why
            elif law is None or not dense or random < stop - start:
                yield name, "random in places only"
            elif any(note.law != law for note in notes):
                yield name, "its parts follow different laws"
            else:
                yield name, f"a copy of {min(copied)}" if copied else law

    def notes(self, tensor: Tensor) -> list[_Note]:
        """Return the notes on ``tensor``'s bytes."""
        start, stop, _ = _span(tensor)
        known = self._storages.get(_address(tensor))
        return [note for note in known.notes if note.start < stop and start < note.stop] if known else []

    def note(self, tensor: Any) -> _Note | None:
        """Return the one note with a law on all of ``tensor``, when its values are dense."""
        notes = self.notes(tensor) if isinstance(tensor, Tensor) else []
        if len(notes) != 1 or notes[0].law is None:
            return None
        start, stop, dense = _span(tensor)
        return notes[0] if dense and notes[0].start <= start and stop <= notes[0].stop else None

    def forget(self, tensor: Tensor) -> None:
        """Drop what was known of ``tensor``'s bytes, which have been overwritten."""
        start, stop, dense = _span(tensor)
        for old in self.notes(tensor):
            notes = self._storages[_address(tensor)].notes
            notes.remove(old)
            if dense:
                pieces = replace(old, stop=min(old.stop, start)), replace(old, start=max(old.start, stop))
                notes.extend(piece for piece in pieces if piece.start < piece.stop)
            else:
                notes.append(replace(old, law=None, why="overwritten in places"))

    def put(self, tensor: Tensor, law: Law | None, why: str = "", source: _Note | None = None) -> None:
        """Note what ``tensor`` now holds: a new draw, or what has become of ``source``."""
        self.forget(tensor)
        start, stop, _ = _span(tensor)
        if start < stop:
            self._draws += 1
            number, made = (source.draw, source.made) if source else (self._draws, law is None)
            known = self._storages.setdefault(_address(tensor), _Storage(tensor.untyped_storage()))
            known.notes.append(_Note(start, stop, tensor.dtype, law, why, number, made))

    def make(self, tensor: Tensor) -> None:
        """Make the draws that ``tensor``'s bytes await."""
        for note in self.notes(tensor):
            if note.law is not None and not note.made:
                known = self._storages[_address(tensor)]
                count = (note.stop - note.start) // note.dtype.itemsize
                values = torch.empty(0, dtype=note.dtype, device=tensor.device)
                values.set_(known.memory, note.start // note.dtype.itemsize, (count,), (1,))
                values.copy_(draw(0, f"observed draw {note.draw}", (count,), note.law))
                known.notes[known.notes.index(note)] = replace(note, made=True)


@contextmanager
def observing() -> Iterator[Observation]:
    """Observe the construction of modules inside; one thread at a time.

    torch's random state on the CPU is as before at the end, also after an exception. Reading undrawn memory past
    torch, as with ``tensor.numpy()``, is not seen.

    Yields:
        The observation, to be asked after the construction.
    """
    seen = Observation()
    with _BUILDING, torch.random.fork_rng(devices=[]), _truncation_by_inverse():
        torch.default_generator.manual_seed(0)
        with _Watch(seen):
            yield seen


class _Watch(TorchDispatchMode):
    """Notes the operations that laws can follow and runs the others on draws that are made first."""

    def __init__(self, seen: Observation) -> None:
        super().__init__()
        self._seen = seen

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if name in _SHAPE_ONLY or _gives_views(func):
            return func(*args, **kwargs)
        found = self._follow(name, args, kwargs)
        if found is None:
            return self._run(func, name, args, kwargs)
        law, why, source = found
        in_place = name.endswith("_")
        undrawn = source is None or not source.made
        out = args[0] if in_place and undrawn else func(*args, **kwargs)
        self._seen.put(out, law, why, source)
        return out

    def _follow(
        self, name: str, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[Law, str, _Note | None] | None:
        """Return law, reservation and origin of an operation's result, if it has a law."""
        target = args[0] if args and isinstance(args[0], Tensor) else None
        if name.endswith("_") and not (_is_float(target) and _span(target)[2]):
            return None
        if not (kwargs.get("dtype") or torch.float32).is_floating_point:
            return None
        if name in _DRAWS and not (name == "normal" and target is not None):
            law = _drawn(name, args) if kwargs.get("generator") is None else None
            return None if law is None else (law, "", None)
        source = self._seen.note(args[1] if name == "copy_" else target)
        if source is None or source.law is None:
            return None
        if name in _COPIES or (name == "copy_" and args[0].numel() == args[1].numel()):
            return source.law, source.why, source
        after = None if kwargs else _after(name.removesuffix("_"), source.law, source.why, args[1:])
        return None if after is None else (*after, source)

    def _run(self, func: Any, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        seen = self._seen
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if name in _OVERWRITES and _span(args[0])[2]:
            inputs = inputs[1:]
        drawn = torch.Tag.nondeterministic_seeded in func.tags
        random = drawn or any(seen.notes(tensor) for tensor in inputs)
        for tensor in inputs:
            seen.make(tensor)
        out = func(*args, **kwargs)
        for tensor in tree_leaves((_written(func, args, kwargs), out)):
            if not isinstance(tensor, Tensor):
                continue
            if random:
                seen.put(tensor, None, f"drawn by {name}" if drawn else f"made by {name} from random values")
            else:
                seen.forget(tensor)
        return out


def _law(kind: Any, *numbers: float) -> Law | None:
    """The law with these numbers, if there is one; if not, torch may complain in its own words."""
    try:
        return Law(kind, *map(float, numbers))
    except ConfigError:
        return None


def _drawn(name: str, args: Sequence[Any]) -> Law | None:
    kind, a, b = _DRAWS[name]
    given = args[:2] if name == "normal" else args[1:3] if name.endswith("_") else ()
    return _law(kind, *given, *(a, b)[len(given) :])


def _after(name: str, law: Law, why: str, numbers: Sequence[Any]) -> tuple[Law, str] | None:
    """Law and reservation of the values of ``law`` once an operation has changed them."""
    if not all(number is None or isinstance(number, (int, float)) for number in numbers):
        return None
    if name == "clamp":
        return _clamped(law, why, *numbers)
    if name == "erfinv":
        after, why = (None if why else _after_erfinv(law)), _UNCLAMPED
    else:
        after = _scaled(name, law, *numbers) if name in _SCALINGS and len(numbers) <= 1 else None
    return None if after is None else (after, why)


def _scaled(name: str, law: Law, number: float = 0.0) -> Law | None:
    if name in ("mul", "div") and number == 0:
        return None
    change = _SCALINGS[name]
    if law.kind == "uniform":
        return _law("uniform", *sorted((change(law.a, number), change(law.b, number))))
    std = law.b if name in _SHIFTS else abs(change(law.b, number))
    if name == "mul" and law.b == _SQRT_HALF:
        std = _over_sqrt_2(abs(number))
    bounds = sorted((change(law.low, number), change(law.high, number)))
    return _law(law.kind, change(law.a, number), std, *bounds)


def _after_erfinv(law: Law) -> Law | None:
    """Uniform between ``2 Phi(l) - 1`` and ``2 Phi(h) - 1`` becomes normal / sqrt(2) between ``l`` and ``h``."""
    if law.kind != "uniform" or not -1 <= law.a < law.b <= 1:
        return None
    unit = NormalDist(0, _SQRT_HALF)
    low, high = (
        math.copysign(math.inf, x) if abs(x) == 1 else unit.inv_cdf((x + 1) / 2) for x in (law.a, law.b)
    )
    return _law("trunc_normal", 0.0, _SQRT_HALF, low, high)


def _clamped(
    law: Law, why: str, low: float | None = None, high: float | None = None
) -> tuple[Law, str] | None:
    """Clamping to the bounds that the values have already makes those bounds exact."""
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    if why == _UNCLAMPED:
        normal = NormalDist(law.a, law.b)
        near = all(abs(normal.cdf(x) - normal.cdf(y)) < 1e-9 for x, y in ((low, law.low), (high, law.high)))
        after = _law(law.kind, law.a, law.b, low, high) if near else None
        return None if after is None else (after, "")
    least, most = (law.a, law.b) if law.kind == "uniform" else (law.low, law.high)
    return (law, why) if low <= least and most <= high else None


def _over_sqrt_2(product: float) -> float:
    """The number that times sqrt(2) gave ``product``: the shortest, where two did."""
    guess = product / math.sqrt(2)
    near = (guess, math.nextafter(guess, 0), math.nextafter(guess, math.inf))
    exact = [number for number in near if number * math.sqrt(2) == product]
    return min(exact or [guess], key=lambda number: (len(repr(number)), number))


def _span(tensor: Tensor) -> tuple[int, int, bool]:
    """First byte and end of ``tensor`` in its storage, and whether its values fill all between."""
    if tensor.layout is not torch.strided or tensor.numel() == 0:
        return 0, 0, True
    reach = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.storage_offset() * tensor.itemsize
    return start, start + reach * tensor.itemsize, reach == tensor.numel()


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata) if tensor.layout is torch.strided else 0


def _is_float(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.is_floating_point()


@cache
def _gives_views(func: Any) -> bool:
    aliases = [result.alias_info for result in func._schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


def _written(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that ``func`` writes to."""
    taken = func._schema.arguments
    given = {**dict(zip((argument.name for argument in taken), args, strict=False)), **kwargs}
    return [
        given.get(argument.name) for argument in taken if argument.alias_info and argument.alias_info.is_write
    ]


@contextmanager
def _truncation_by_inverse() -> Iterator[None]:
    """Let ``torch.nn.init.trunc_normal_`` invert the distribution function.

    So it did before torch began to redraw what falls outside, in a loop that depends on the values.
    """
    name = "_no_grad_trunc_normal_"
    before = getattr(nn.init, name, None)
    setattr(nn.init, name, _trunc_normal_)
    try:
        yield
    finally:
        setattr(nn.init, name, before)


def _trunc_normal_(
    tensor: Tensor, mean: float, std: float, a: float, b: float, generator: torch.Generator | None = None
) -> Tensor:
    low, high = (2 * NormalDist(mean, std).cdf(bound) - 1 for bound in (a, b))
    with torch.no_grad():
        tensor.uniform_(low, high, generator=generator).erfinv_()
        return tensor.mul_(std * math.sqrt(2.0)).add_(mean).clamp_(min=a, max=b)
