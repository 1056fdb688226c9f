"""A model whose backbone several delta files share; the first builds it, all must stand on the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from threading import RLock
from types import MethodType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from sparsetune.backbone import logits_of
from sparsetune.delta import Header, check_fit, load, read_delta, read_header, taught_by
from sparsetune.errors import ConfigError, DeltaError
from sparsetune.parts import head_names, under, unwrapped
from sparsetune.sliced import Taught, adapted, frozen_values, teach


class State(nn.Module):
    """One delta's values, packed; a module so that they move along with the model.

    Args:
        floats: ``(n,)``: the arena's values, then the slices', then the classifier's.
        counts: ``(m,)`` int64: how many batches each running statistic has seen.
        head: Shape of each of the classifier's parameters, by name.
    """

    floats: Tensor
    counts: Tensor

    def __init__(self, floats: Tensor, counts: Tensor, head: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.register_buffer("floats", floats, persistent=False)
        self.register_buffer("counts", counts, persistent=False)
        self.head = head

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.floats.nbytes + self.counts.nbytes


class Switch:
    """An adapted model as a place where the states of several deltas are put, one at a time.

    Args:
        net: An adapted model. From here on it is the switch's: in evaluation mode, without gradients, its
            values those that were put last.
    """

    def __init__(self, net: nn.Module) -> None:
        self.net = net.eval().requires_grad_(False)
        setattr(net, "train", _Evaluating(net))  # noqa: B010  (a method, to mypy)
        self.lock = RLock()
        self.current: State | None = None
        made, heads = adapted(net).plan, head_names(net)
        learned = [part for part in made if part.learned]
        self._head = [part.name for part in learned if under(part.homes[0][0], heads)]
        others = [part for part in learned if part.name not in self._head]
        gathered = [
            part.name for part in others if part.whole and len(part.shape) < 4
        ]  # of one memory format
        self._slices = [name for part in others if part.name not in gathered for name in part.learned]
        self._counts = [b.name for b in made.buffers if not b.dtype.is_floating_point]
        self._arena = gathered + [b.name for b in made.buffers if b.dtype.is_floating_point]
        self._homes = {part.name: part.homes for part in made}
        self._modules = [*net.modules()]
        self._borrowed: State | None = None
        self._touched = False
        self._seen: list[int] = []
        self.relink()

    def relink(self) -> None:
        """Gather the model's values anew, after it was moved."""
        self.current = None
        like = next(map(self._value, (*self._arena, *self._slices, *self._head)), torch.empty(0))
        self._floats = self._gather(self._arena, like)
        self._ints = self._gather(self._counts, like.long())
        slices = [self._value(name) for name in self._slices]
        self._targets = [value.view(-1) if value.is_contiguous() else value for value in slices]
        self._sizes = [target.numel() for target in self._targets]
        self._split = len(self._floats), len(self._floats) + sum(self._sizes)
        frozen = dict(frozen_values(self.net, adapted(self.net).plan))
        self._frozen = [*frozen.values()]
        self._frozen_versions = _versions(self._frozen)
        self._links = [
            _Link(held, leaf, value, value.data, value.data_ptr()) for held, leaf, value in self._values()
        ]

    def pack(self, values: Mapping[str, Tensor]) -> State:
        """Pack a delta's tensors, as they come by name from its file."""
        names = [*self._arena, *self._slices, *self._head]
        like = next(iter(self._targets), self._floats)
        floats = [values[name].detach().reshape(-1).to(like) for name in names]
        counts = [values[name].detach().reshape(-1).to(self._ints) for name in self._counts]
        head = {name: tuple(values[name].shape) for name in self._head}
        return State(_joined(floats, like), _joined(counts, self._ints), head)

    @contextmanager
    def holding(self, state: State, lend: bool) -> Iterator[nn.Module]:
        """Give the model with a state's values for as long as the context lasts; other threads wait.

        Args:
            state: What to put.
            lend: Whether the model is given away, to whoever may write to it.

        Raises:
            ConfigError: When it is lent already with another state, or frozen values were written.
        """
        with self.lock:
            outer = self._borrowed
            if lend and outer is not None and outer is not state:
                raise ConfigError(
                    "the one model of all these deltas is in use with another one; leave that context first."
                )
            try:
                net = self.put(state)
                if lend:
                    self._borrowed, self._touched = state, True
                yield net
            finally:
                self._borrowed = outer
                if outer is not None and outer is not state:
                    self.put(outer)
                    self._touched = True

    def put(self, state: State) -> nn.Module:
        """Give the model a state's values and return it; hold :attr:`lock` while they matter.

        Raises:
            ConfigError: When something wrote to frozen values.
        """
        for module in self._modules:
            if module.training:
                module.training = False
        if self._touched or self._seen != _versions(self._written()):
            self._undo()
        elif state is self.current:
            return self.net
        self._copy(state)
        self.current, self._touched = state, self._borrowed is not None
        self._seen = _versions(self._written())
        return self.net

    def _copy(self, state: State) -> None:
        floats, slices, head = self._pieces(state)
        with torch.no_grad():
            self._floats.copy_(floats)
            self._ints.copy_(state.counts)
            if self._targets:
                torch._foreach_copy_(self._targets, slices)
        for name, piece in head.items():
            value = nn.Parameter(piece.clone(), requires_grad=False)
            for held, leaf in self._places(name):
                held[leaf] = value

    def _pieces(self, state: State) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
        """A state's values as they go to the arena, the slices and the classifier."""
        sizes = {name: prod(shape) for name, shape in state.head.items()}
        floats, *pieces = state.floats.split([self._split[0], *self._sizes, *sizes.values()])
        slices = [
            piece if target.dim() == 1 else piece.view(target.shape)
            for piece, target in zip(pieces, self._targets, strict=False)
        ]
        heads = zip(state.head.items(), pieces[len(slices) :], strict=True)
        return floats, slices, {name: piece.view(shape) for (name, shape), piece in heads}

    def _undo(self) -> None:
        """Put the model together again as it was made, whatever a borrower did to it."""
        for held, leaf, value, data, place in self._links:
            if held.get(leaf) is not value:
                held[leaf] = value
            if value.data_ptr() != place:
                value.data = data
            if value.requires_grad:
                value.requires_grad_(False)
                value.grad = None
        if self._frozen_versions != _versions(self._frozen):
            raise ConfigError(
                "frozen values of the model that several deltas share were written; load the deltas anew, "
                "and train one by itself, as load() gives it."
            )

    def _written(self) -> list[Tensor]:
        head = [held[leaf] for name in self._head for held, leaf in self._places(name)[:1]]
        return [self._floats, self._ints, *self._targets, *self._frozen, *head]

    def _values(self) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
        """Yield every value that stays the same tensor, but for the classifier's, with its place."""
        for name in (*self._arena, *self._counts, *self._slices):
            for held, leaf in self._places(name):
                yield held, leaf, held[leaf]
        frozen = {id(value) for value in self._frozen}
        for module in self._modules:
            for leaf, value in module._buffers.items():
                if value is not None and id(value) in frozen:
                    yield module._buffers, leaf, value

    def _gather(self, names: Sequence[str], like: Tensor) -> Tensor:
        """Make the tensors of these names views of one flat tensor of the type of ``like``, and return it."""
        found = [self._value(name) for name in names]
        if not found:
            return like.new_empty(0)
        arena = torch.cat([value.reshape(-1) for value in found])
        for name, value, piece in zip(names, found, arena.split([v.numel() for v in found]), strict=True):
            view = piece.view(value.shape)
            shared = nn.Parameter(view, requires_grad=False)
            for held, leaf in self._places(name):
                held[leaf] = shared if isinstance(held[leaf], nn.Parameter) else view
        return arena

    def _value(self, name: str) -> Tensor:
        held, leaf = self._places(name)[0]
        value: Tensor = held[leaf]
        return value.detach()

    def _places(self, name: str) -> list[tuple[dict[str, Any], str]]:
        """Every place of the model that holds the tensor of that name; several where it is shared."""
        owner, _, leaf = name.rpartition(".")
        found = []
        for home, own in self._homes.get(name, ((owner, leaf),)):
            module = self.net.get_submodule(home)
            found.append((module._parameters if own in module._parameters else module._buffers, own))
        return found


class _Link(NamedTuple):
    """A tensor of the model, where it belongs, and which memory it has."""

    held: dict[str, Any]
    leaf: str
    value: Tensor
    data: Tensor
    place: int


class _Evaluating:
    """``train`` of a model that several deltas share; a copy of the model has its own again."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, mode: bool = True) -> nn.Module:
        if mode:
            raise ConfigError(
                f"this {type(self.net).__name__} is shared by several deltas, for evaluation; train a delta "
                "by itself, as load() gives it."
            )
        return type(self.net).train(self.net, False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return MethodType(type(self.net).train, memo[id(self.net)])


def _versions(tensors: Sequence[Tensor]) -> list[int]:
    """How often each was written to, where torch counts that."""
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


def _joined(values: list[Tensor], like: Tensor) -> Tensor:
    return torch.cat(values) if values else like.new_empty(0)


class Shared(nn.Module):
    """One adapted model, and the packed values of each delta by name; for evaluation only.

    Args:
        path: The first delta; its backbone is the one.
        name: What to call it.
        module: As for :func:`sparsetune.load`.
        backbone: Likewise.
        allow_network: Likewise.
        max_bytes: Likewise.
    """

    def __init__(
        self,
        name: str,
        path: str | Path,
        *,
        module: nn.Module | None = None,
        backbone: str | Path | None = None,
        allow_network: bool = False,
        max_bytes: int | None = None,
    ) -> None:
        super().__init__()
        given: dict[str, Any] = {"allow_network": allow_network, "max_bytes": max_bytes}
        self.net = load(path, module, backbone=backbone, **given)
        self.first = read_header(path)
        self.switch = Switch(self.net)
        self.states = nn.ModuleDict()
        self.headers: dict[str, Header] = {}
        self._taught: dict[str, Taught] = {}
        self.take(name, path)
        self.eval()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy, or a pickle, is made of: all but the switch, which it makes anew."""
        with self.switch.lock:
            return {name: value for name, value in self.__dict__.items() if name != "switch"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.switch = Switch(self.net)

    def take(self, name: str, path: str | Path) -> None:
        """Read a delta and keep its values under ``name``.

        Raises:
            ConfigError: When the name is no text.
            DeltaError: When it is damaged, or stands on another backbone or learns other slices.
        """
        check_name(name)
        header, first = read_header(path), self.first
        if (header.fingerprint, header.learn) != (first.fingerprint, first.learn):
            raise DeltaError(
                f"{path} stands on {header.backbone.describe()} with {header.learn}, the deltas here on "
                f"{first.backbone.describe()} with {first.learn}; load those of one backbone together."
            )
        check_fit(header, adapted(self.net).plan, head_names(self.net), first.num_classes)
        self.states[_key(name)] = self.switch.pack(read_delta(path, header))
        known = {entry: entry for entry in first.entries}  # whose names need no second copy
        entries = tuple(known.get(entry, entry) for entry in header.entries)
        self.headers[name] = replace(header, entries=entries)

    def drop(self, name: str) -> None:
        """Forget a delta."""
        del self.states[_key(name)], self.headers[name]
        self._taught.pop(name, None)

    @contextmanager
    def using(self, name: str, lend: bool = False) -> Iterator[nn.Module]:
        """Give the model with a delta's values, for as long as the context lasts; other threads wait.

        Args:
            name: The delta's.
            lend: Whether the model is given to the user, who may do with it what he likes.
        """
        state, header = self.held(name)
        with self.switch.holding(state, lend) as net:
            if lend:
                if name not in self._taught:
                    self._taught[name] = taught_by(header)
                teach(unwrapped(net), self._taught[name])
            yield net

    def held(self, name: str) -> tuple[State, Header]:
        """Return a delta's values and what its file says of itself."""
        return cast(State, self.states[_key(name)]), self.headers[name]

    def logits(self, name: str, x: Tensor) -> Tensor:
        """Compute a delta's logits; no row of pictures gives no row of logits."""
        with self.using(name) as net:
            found = logits_of(net(x if len(x) else x.new_zeros(1, *x.shape[1:])))
        return found if len(x) else found[:0]

    def train(self, mode: bool = True) -> Shared:
        """Stay in evaluation mode, where deltas cannot mix.

        Raises:
            ConfigError: When ``mode`` is true.
        """
        if mode:
            raise ConfigError(
                f"{type(self).__name__} is for evaluation; train a delta by itself, as load() gives it."
            )
        super().train(False)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        with self.switch.lock:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            self.switch.relink()
        return self


def check_name(name: object) -> None:
    """Refuse a name that is no text.

    Raises:
        ConfigError: When it is none.
    """
    if not isinstance(name, str):
        raise ConfigError(f"the name {name!r} of a delta is not a text; write it as one.")


def check_pictures(x: object) -> None:
    """Refuse what is no batch.

    Raises:
        ConfigError: When it is not a tensor with a row for each picture.
    """
    if not isinstance(x, Tensor):
        raise ConfigError(
            f"the pictures are a {type(x).__name__}, not a tensor; give one of shape (B, C, H, W)."
        )
    if x.dim() < 2:
        raise ConfigError(f"pictures of shape {tuple(x.shape)} are no batch; give (B, C, H, W).")


def _key(name: str) -> str:
    """A name as a module may have it: without dots."""
    return "delta " + name.replace("%", "%25").replace(".", "%2E")
