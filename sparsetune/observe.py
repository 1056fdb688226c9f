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
from functools import lru_cache
from statistics import NormalDist
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparsetune.errors import ConfigError
from sparsetune.seeding import Law, draw

_DRAWS = {
    "rand": ("uniform", 0.0, 1.0),
    "rand_like": ("uniform", 0.0, 1.0),
    "uniform_": ("uniform", 0.0, 1.0),
    "randn": ("normal", 0.0, 1.0),
    "randn_like": ("normal", 0.0, 1.0),
    "normal_": ("normal", 0.0, 1.0),
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
        if not kwargs.get("dtype", torch.float32).is_floating_point:
            return None
        if name in _DRAWS or (name == "normal" and target is None):
            law = _drawn(name, args) if kwargs.get("generator") is None else None
            return law and (law, "", None)
        source = self._seen.note(args[1] if name == "copy_" else target)
        if source is None or source.law is None:
            return None
        if name in _COPIES or (name == "copy_" and args[0].numel() == args[1].numel()):
            return source.law, source.why, source
        after = None if kwargs else _after(name.removesuffix("_"), source, args[1:])
        return after and (*after, source)

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
