"""Observe, while a model is built, which law each of its random tensors follows.

Inside :func:`observing` a draw is noted instead of made, and the note follows the values through scaling,
copies and views. Draws are made only when an operation that no law can follow reads them; what it gives is
*unknown*. Notes belong to byte ranges of storages, so parameters, views and ``.data`` need no care.
"""

from __future__ import annotations

import math
import operator
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import count
from statistics import NormalDist
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from sparsetune.backbone.seeding import Law, draw, draw_
from sparsetune.errors import BackboneError
from sparsetune.host import size
from sparsetune.parts import STORED, head_names, under

DRAWN = "_sparsetune_drawn"
"""Attribute of a model: the seed, and the laws by which parameters of its classifier were drawn."""

_ARITHMETIC = {"mul": operator.mul, "div": operator.truediv, "add": operator.add, "sub": operator.sub}
_SQRT_HALF = math.sqrt(0.5)
_UNCLAMPED = "erfinv_ of a uniform draw, without the clamp_ that ends a truncated normal draw"
_UNIFORM, _NORMAL = {"uniform_", "rand", "rand_like"}, {"normal_", "randn", "randn_like"}
_OVERWRITES = {"zero_", "fill_", "copy_"}
_SHAPE_ONLY = {"resize_", "set_", "empty_like", "zeros_like", "ones_like", "full_like"}
BUILDING = RLock()
"""Random state, torch.nn.init, warnings and environment are the process's, so one thread builds at a time."""


def after(name: str, law: Law, why: str, *numbers: Any) -> tuple[Law, str] | None:
    """Return law and reservation of the values of ``law`` after one more operation, ``None`` if it has none.

    Args:
        name: The operation's name in torch, without the underscore that says in place.
        law: What the values follow.
        why: Why the law cannot be used yet; empty if it can.
        *numbers: The operation's other operands.
    """
    if not all(isinstance(number, (int, float)) for number in numbers):
        return None
    if name == "erfinv" and law.kind == "uniform" and -1 <= law.a < law.b <= 1:
        inverse = NormalDist(0, _SQRT_HALF).inv_cdf
        ends = (math.copysign(math.inf, x) if abs(x) == 1 else inverse((x + 1) / 2) for x in (law.a, law.b))
        return Law("trunc_normal", 0.0, _SQRT_HALF, *ends), _UNCLAMPED
    if name == "clamp" and why == _UNCLAMPED and len(numbers) == 2:
        below = NormalDist(law.a, law.b).cdf
        near = all(abs(below(x) - below(y)) < 1e-9 for x, y in zip(numbers, (law.low, law.high), strict=True))
        return (Law(law.kind, law.a, law.b, *map(float, numbers)), "") if near else None
    if name in ("neg", "rsub"):
        law, name, numbers = _arithmetic("mul", law, -1), "add", numbers or (0,)
    if name not in _ARITHMETIC or len(numbers) != 1 or (name in ("mul", "div") and not numbers[0]):
        return None
    return _arithmetic(name, law, *numbers), why


def _arithmetic(name: str, law: Law, number: float) -> Law:
    a, b, low, high = (_ARITHMETIC[name](value, number) for value in (law.a, law.b, law.low, law.high))
    if law.kind == "uniform":
        return Law("uniform", min(a, b), max(a, b))
    std = abs(b) if name in ("mul", "div") else law.b
    if (name, law.b) == ("mul", _SQRT_HALF):
        std = float(f"{std:.15g}")  # of a truncated normal draw, which multiplies by std * sqrt(2)
    return Law(law.kind, a, std, min(low, high), max(low, high))


@dataclass(eq=False)
class _Note:
    """Bytes ``start`` to ``stop`` of ``memory`` hold random values of ``dtype``."""

    memory: torch.UntypedStorage
    start: int
    stop: int
    dtype: torch.dtype
    law: Law | None
    why: str  # the law is missing or cannot be used
    draw: int  # a number that copies share
    made: bool  # memory holds the values already


@dataclass(frozen=True)
class Stretch:
    """Values ``start`` to ``stop`` of a tensor, counted row by row, are independent and follow ``law``."""

    start: int
    stop: int
    law: Law


class Memory:
    """Bytes that tensors take, those of the meta device as if they were real.

    Attributes:
        peak: The most that they took at once.
    """

    def __init__(self, most: int | None = None) -> None:
        self.peak, self._now, self._most = 0, 0, most
        self._held: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def expect(self, nbytes: int) -> None:
        """Raise ``BackboneError`` if so many more would be above the limit."""
        if self._most is not None and self._now + nbytes > self._most:
            raise BackboneError(
                f"building it takes more than {size(self._most)} of memory, which is the limit here; load it "
                "on a larger machine, or allow more (max_bytes, --max-memory)."
            )

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Count the memory of ``tensors`` until it is freed."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, nbytes = storage._cdata, storage.nbytes()
            if key not in self._held:
                self.expect(nbytes)
                self._held[key] = weakref.ref(storage, partial(self._free, key, nbytes))
                self._now += nbytes
                self.peak = max(self.peak, self._now)

    def _free(self, key: int, nbytes: int, _: object) -> None:
        self._now -= nbytes
        self._held.pop(key, None)


class Observation:
    """What was observed; ask once the model is built, before it is moved or cast."""

    def __init__(self, seed: int = 0, memory: Memory | None = None) -> None:
        self._seed, self.memory = seed, memory
        self._notes: dict[int, list[_Note]] = {}
        self._draws = count()

    def laws(self, module: nn.Module) -> dict[str, tuple[Stretch, ...]]:
        """Return parameter or buffer name -> the stretches of random values in it, in order.

        Memory there may hold anything; what lies between is constant. A tensor that several names share is
        under the first only; one in neither :meth:`laws` nor :meth:`unknown` is constant.
        """
        return {name: found for name, found in self._findings(module) if isinstance(found, tuple)}

    def unknown(self, module: nn.Module) -> dict[str, str]:
        """Return parameter or buffer name -> why, for random tensors that no :class:`Law` describes.

        Their values are made then, from the seed as far as torch's arithmetic is the same everywhere.
        """
        found = {name: why for name, why in self._findings(module) if isinstance(why, str)}
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if name in found:
                self.make(tensor)
        return found

    def _findings(self, module: nn.Module) -> Iterator[tuple[str, tuple[Stretch, ...] | str]]:
        places = set()
        owners: dict[int, tuple[str, int]] = {}
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            notes, place = self.notes(tensor), _place(tensor)
            if not notes or place in places:
                continue
            places.add(place)
            address, start, stop, dense = place
            owner, source = owners.setdefault(notes[0].draw, (name, address))
            laws = [(max(start, note.start), min(stop, note.stop), note.law) for note in notes]
            why = next((note.why for note in notes if note.why), "")
            if why or not dense:
                yield name, why or "random in places only"
            elif source != address:
                yield name, f"a copy of {owner}"
            elif laws[0][:2] != (start, stop) and not tensor.is_contiguous():
                yield name, "its parts follow different laws"
            else:
                yield name, _stretches(laws, start, tensor.itemsize)

    def notes(self, tensor: Tensor) -> list[_Note]:
        """Return the notes on ``tensor``'s bytes."""
        address, start, stop, _ = _place(tensor)
        return [note for note in self._notes.get(address, []) if note.start < stop and start < note.stop]

    def lawful(self, tensor: Tensor) -> tuple[Law, str, _Note] | None:
        """Return law, reservation and note, when one note has a law for all of a dense ``tensor``."""
        _, start, stop, dense = _place(tensor)
        notes = self.notes(tensor) if dense else []
        if len(notes) != 1 or notes[0].law is None or start < notes[0].start or notes[0].stop < stop:
            return None
        return notes[0].law, notes[0].why, notes[0]

    def put(self, tensor: Tensor, law: Law | None, why: str = "", source: _Note | None = None) -> None:
        """Note what ``tensor`` now holds: a new draw, what has become of ``source``, or nothing random."""
        address, start, stop, dense = _place(tensor)
        if address not in self._notes and not (law or why):
            return
        notes = self._notes.setdefault(address, [])
        for old in self.notes(tensor):
            if dense:
                notes.remove(old)
                pieces = replace(old, stop=min(old.stop, start)), replace(old, start=max(old.start, stop))
                notes.extend(piece for piece in pieces if piece.start < piece.stop)
            else:
                old.law, old.why = None, "overwritten in places"
        if (law or why) and start < stop:
            of = (source.draw, source.made) if source else (next(self._draws), law is None)
            notes.append(_Note(tensor.untyped_storage(), start, stop, tensor.dtype, law, why, *of))

    def make(self, tensor: Tensor) -> None:
        """Make the draws that ``tensor``'s bytes await."""
        for note in self.notes(tensor):
            if note.law is not None and not note.made and not tensor.is_meta:
                start, stop = (byte // note.dtype.itemsize for byte in (note.start, note.stop))
                values = torch.empty(0, dtype=note.dtype, device=tensor.device)
                values.set_(note.memory, start, (stop - start,), (1,))
                values.copy_(draw(self._seed, f"observed draw {note.draw}", (stop - start,), note.law))
                note.made = True


@contextmanager
def observing(seed: int = 0, memory: Memory | None = None) -> Iterator[Observation]:
    """Observe the modules that are built inside; one thread at a time.

    Where there is a ``memory``, what tensors take is counted there.

    Draws that have to be made come from ``seed``. torch's random state on the CPU is as before at the end,
    also after an exception. Who reads memory past torch, as with ``tensor.numpy()``, finds no random values
    there.
    """
    seen = Observation(seed, memory)
    patched = "_no_grad_trunc_normal_"
    with BUILDING, torch.random.fork_rng(devices=[]), _Watch(seen):
        torch.default_generator.manual_seed(seed % 2**64)
        original = getattr(nn.init, patched, None)
        setattr(nn.init, patched, _trunc_normal_)
        try:
            yield seen
        finally:
            setattr(nn.init, patched, original)


class _Watch(TorchDispatchMode):
    """Notes the operations that laws can follow, and runs the others on draws that are made first."""

    def __init__(self, seen: Observation) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        memory = self._seen.memory
        if memory is None:
            return self._note(func, args, kwargs or {})
        kwargs = kwargs or {}
        memory.expect(_bytes_ahead(func, args, kwargs))
        out = self._note(func, args, kwargs)
        if not _makes_or_changes(func)[1]:
            memory.hold(each for each in _tensors(out) if each.layout is torch.strided)
        return out

    def _note(self, func: Any, args: Any, kwargs: Any) -> Any:
        name = func.overloadpacket.__name__
        if name in _SHAPE_ONLY or name.startswith("new_") or _gives_views(func):
            return func(*args, **kwargs)
        if (followed := self._follow(name, args, kwargs)) is None:
            return self._run(func, name, args, kwargs)
        made = followed[2] is not None and followed[2].made
        out = func(*args, **kwargs) if made or not name.endswith("_") else args[0]
        self._seen.put(out, *followed)
        return out

    def _follow(self, name: str, args: Any, kwargs: Any) -> tuple[Law, str, _Note | None] | None:
        """Return law, reservation and origin of a result that has a law."""
        target = args[0] if args and isinstance(args[0], Tensor) else None
        if name.endswith("_") and (target is None or not target.is_floating_point() or not _place(target)[3]):
            return None
        if not (kwargs.get("dtype") or torch.float32).is_floating_point or kwargs.get("generator"):
            return None
        if name in _UNIFORM | _NORMAL or (name == "normal" and target is None):
            given = args[1:] if name.endswith("_") else args[:2] if name == "normal" else ()
            kind: Any = "uniform" if name in _UNIFORM else "normal"
            return Law(kind, *given, *(0.0, 1.0)[len(given) :]), "", None
        found = None if target is None else self._seen.lawful(args[1] if name == "copy_" else target)
        if found is None or name in ("clone", "_to_copy"):
            return found
        if name == "copy_":
            return found if args[0].numel() == args[1].numel() else None
        changed = None if kwargs else after(name.removesuffix("_"), *found[:2], *args[1:])
        return None if changed is None else (*changed, found[2])

    def _run(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        inputs = [*_tensors((args, kwargs))]
        if name in _OVERWRITES and _place(args[0])[3]:
            inputs = inputs[1:]
        drawn = torch.Tag.nondeterministic_seeded in func.tags
        random = drawn or any(self._seen.notes(tensor) for tensor in inputs)
        why = f"drawn by {name}" if drawn else f"made by {name} from random values" if random else ""
        for tensor in inputs:
            self._seen.make(tensor)
        out = func(*args, **kwargs)
        for tensor in inputs if out is None else _tensors(out):
            self._seen.put(tensor, None, why)
        return out


@torch.no_grad()
def _trunc_normal_(
    tensor: Tensor, mean: float, std: float, a: float, b: float, generator: torch.Generator | None = None
) -> Tensor:
    """Invert the distribution function, as torch did before it redrew outliers in a loop over values."""
    low, high = (2 * NormalDist(mean, std).cdf(bound) - 1 for bound in (a, b))
    tensor.uniform_(low, high, generator=generator).erfinv_()
    return tensor.mul_(std * math.sqrt(2)).add_(mean).clamp_(min=a, max=b)


def _stretches(laws: list[tuple[int, int, Law | None]], origin: int, itemsize: int) -> tuple[Stretch, ...]:
    """Bytes ``laws`` of a tensor whose first is ``origin``, in order, neighbours of one law joined."""
    found: list[Stretch] = []
    for start, stop, law in sorted(laws, key=lambda each: each[0]):
        first, last = (start - origin) // itemsize, (stop - origin) // itemsize
        if law is None:
            continue
        if found and (found[-1].stop, found[-1].law) == (first, law):
            first = found.pop().start
        found.append(Stretch(first, last, law))
    return tuple(found)


def _place(tensor: Tensor) -> tuple[int, int, int, bool]:
    """Address of ``tensor``'s storage, first byte and end in it, and whether values fill all between."""
    if tensor.layout is not torch.strided or tensor.numel() == 0:
        return 0, 0, 0, True
    reach = count = tensor.numel()
    if not tensor.is_contiguous():
        spans = zip(tensor.shape, tensor.stride(), strict=True)
        reach = 1 + sum((size - 1) * stride for size, stride in spans)
    start = int(tensor.storage_offset()) * tensor.itemsize
    stop = start + int(reach) * tensor.itemsize
    return int(tensor.untyped_storage()._cdata), start, stop, reach == count


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors among an operation's operands or results."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors([*value.values()])


def _bytes_ahead(func: Any, args: Any, kwargs: Any) -> int:
    """Bytes of what an operation is about to make outside the meta device, as far as torch can tell."""
    makes, changes = _makes_or_changes(func)
    if changes:
        return 0
    given = next(_tensors((args, kwargs)), None)
    device = kwargs.get("device") or (given.device if given is not None else torch.device("cpu"))
    if device.type == "meta" or not (makes or given is not None):
        return 0
    if makes:
        kwargs = {**kwargs, "device": torch.device("meta")}
    try:
        out = func(*tree_map(_imagined, args), **tree_map(_imagined, kwargs))
    except (RuntimeError, NotImplementedError):
        return 0
    return sum(tensor.numel() * tensor.itemsize for tensor in _tensors(out))


@cache
def _makes_or_changes(func: Any) -> tuple[bool, bool]:
    """Whether an operation says where its result is made, and whether it changes its operands."""
    return any(each.name == "device" for each in func._schema.arguments), func._schema.is_mutable


def _imagined(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


@cache
def _gives_views(func: Any) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(each.alias_info and not each.alias_info.is_write for each in returns)


def draw_initial(net: nn.Module, seen: Observation, seed: int) -> None:
    """Draw every random tensor of a new model whose law was observed; note the other ones as ``STORED``.

    Raises:
        BackboneError: When a random buffer follows no law and is not among those that a file holds.
    """
    tensors: dict[str, Tensor] = {**dict(net.named_buffers()), **dict(net.named_parameters())}
    persistent = net.state_dict().keys()
    for name, reason in (unknown := seen.unknown(net)).items():
        if name not in persistent:
            raise BackboneError(
                f"the initial values of '{name}' cannot be rebuilt from a seed ({reason}), nor be saved; "
                "use pretrained weights or a checkpoint, or adapt_ a model that you built yourself."
            )
    setattr(net, STORED, tuple(unknown))
    laws, heads = seen.laws(net), head_names(net)
    setattr(net, DRAWN, (seed, {name: laws[name] for name in laws if under(name, heads)}))
    for name, stretches in laws.items():
        for stretch in stretches:
            _draw_stretch(tensors[name].detach(), seed, name, stretch)


def drawn_head(net: nn.Module) -> list[nn.Parameter]:
    """Return the classifier's parameters that are still as :func:`draw_initial` drew them."""
    seed, laws = _drawn(net)
    found = []
    for name, value in net.named_parameters():
        again = torch.empty_like(value.detach(), device="cpu")
        for stretch in laws.get(name, ()):
            _draw_stretch(again, seed, name, stretch)
        if name in laws and torch.equal(again, value.detach().cpu()):
            found.append(value)
    return found


def _drawn(net: nn.Module) -> tuple[int, dict[str, list[Stretch]]]:
    return getattr(net, DRAWN, (0, {}))


def _draw_stretch(tensor: Tensor, seed: int, name: str, stretch: Stretch) -> None:
    start, stop = stretch.start, stretch.stop
    if stop - start < tensor.numel():
        tensor.view(-1)[start:stop] = draw(seed, name, (stop,), stretch.law)[start:]
    elif tensor.is_contiguous() and (tensor.dtype, tensor.device.type) == (torch.float32, "cpu"):
        draw_(tensor, seed, name, stretch.law)
    else:
        tensor.copy_(draw(seed, name, tensor.shape, stretch.law))
