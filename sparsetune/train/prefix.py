"""The frozen layers that a model starts with: what they give is computed once for each view of a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from shutil import disk_usage
from tempfile import TemporaryFile, gettempdir
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sparsetune.backbone import evaluating
from sparsetune.data import Feed
from sparsetune.errors import StorageError
from sparsetune.host import free_bytes, size
from sparsetune.parts import keeps_statistics

SHARE = 0.25
"""Most of a device's free memory that outputs of the frozen layers may take; what takes more goes to disk."""
CHUNK = 32
"""Pictures that go through the frozen layers at once, always the same ones, so that results never differ."""


class ReachedError(Exception):
    """A forward pass came to the first learned layer."""


def _same(x: Any, *_: Any, **__: Any) -> Any:
    return x


class Tail(nn.Module):
    """A model from its first learned layer on.

    Args:
        net: The model.
        cut: Name of the layer.
        passed: Names of the layers before it, which hand on what they are given.
    """

    def __init__(self, net: nn.Module, cut: str, passed: tuple[str, ...]) -> None:
        super().__init__()
        self.net, self.cut, self.passed = net, cut, passed

    def forward(self, x: Tensor) -> Any:
        """Return the model's output for what its first learned layer is given."""
        before = [self.net.get_submodule(name) for name in self.passed]
        for module in before:
            module.__dict__["forward"] = _same
        try:
            return self.net(x)
        finally:
            for module in before:
                del module.__dict__["forward"]

    @torch.no_grad()
    def given(self, x: Tensor) -> Tensor:
        """Return what the first learned layer is given for pictures ``(B, C, H, W)``."""
        found: list[Tensor] = []

        def stop(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found.append(inputs[0])
            raise ReachedError

        handle = self.net.get_submodule(self.cut).register_forward_pre_hook(stop)
        try:
            with suppress(ReachedError):
                self.net(x)
        finally:
            handle.remove()
        return found[0]


class Last(Tail):
    """A model of which only the very last layer is learned."""

    def forward(self, x: Tensor) -> Any:
        """Return that layer's output."""
        return self.net.get_submodule(self.cut)(x)


def tail_of(net: nn.Module, x: Tensor) -> Tail | None:
    """Return what of a model has to be computed anew in each step.

    Layers before the first learned one are passed over. Whether the rest gives the same without them, as it
    does not where a shortcut leads around the cut, is tried.

    Args:
        net: A model in the mode in which it trains.
        x: A few pictures, ``(B, C, H, W)``.

    Returns:
        ``None`` where nothing can be saved.
    """
    names = {module: name for name, module in net.named_modules()}
    active = {name for module, name in names.items() if _is_active(module)}
    order: list[str] = []
    handles = [m.register_forward_pre_hook(lambda m, _: order.append(names[m])) for m in names]
    with evaluating(net), torch.no_grad():
        try:
            whole = net(x)
        finally:
            for handle in handles:
                handle.remove()
        pieces = next((name for name in order if name in active), "").split(".")
        for length in range(len(pieces), 0, -1):
            cut = ".".join(pieces[:length])
            before = order[: order.index(cut)] if order.count(cut) == 1 else []
            passed = tuple(_outermost(before, cut))
            for kind in (Last, Tail) if passed else ():
                if _is_right(tail := kind(net, cut, passed), x, whole):
                    return tail
    return None


def _is_active(module: nn.Module) -> bool:
    """Whether what a module gives changes while its model trains, its children aside."""
    if any(value is not None and value.requires_grad for value in module._parameters.values()):
        return True
    drops = "drop" in type(module).__name__.lower() or type(module).__name__ == "StochasticDepth"
    share = getattr(module, "p", None) or getattr(module, "drop_prob", None) or 0
    return module.training and (keeps_statistics(module) or (drops and bool(share)))


def _outermost(names: list[str], cut: str) -> Iterator[str]:
    """Yield the modules before a cut that are in no other one of them; those around it are none of them."""
    beside = [name for name in dict.fromkeys(names) if name and not f"{cut}.".startswith(f"{name}.")]
    for name in beside:
        if not any(name.startswith(f"{other}.") for other in beside):
            yield name


def _is_right(tail: Tail, x: Tensor, whole: Any) -> bool:
    try:
        again = tail(tail.given(x))
    except Exception:  # the rest of a model may do anything with what it is not made for
        return False
    return isinstance(again, Tensor) and isinstance(whole, Tensor) and torch.equal(again, whole)


@dataclass(eq=False)
class KeptFeed:
    """Batches of what the first learned layer is given, in the place of pictures; kept for each view.

    Attributes:
        feed: The pictures.
        tail: What comes behind the frozen layers.
        on_disk: Whether it is kept in a temporary file, which is gone with the process.
    """

    feed: Feed
    tail: Tail
    on_disk: bool = False
    _kept: dict[int, Tensor] = field(default_factory=dict)

    def epoch(
        self, seed: int | None = None, number: int = 0, skip: int = 0, view: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of one epoch, as :meth:`sparsetune.data.Feed.epoch` does."""
        if view not in self._kept:
            self._kept[view] = self._pass(seed, view)
        kept = self._kept[view]
        for rows in self.feed.rows(seed, number)[skip:]:
            index = torch.from_numpy(rows)
            x = kept.index_select(0, index.to(kept.device))
            yield x.to(self.feed.device), self.feed.split.labels[index]

    def _pass(self, seed: int | None, view: int) -> Tensor:
        """What the first learned layer is given for every picture, in their order."""
        with evaluating(self.tail.net):
            given = (self.tail.given(x) for x in self.feed.in_order(seed or 0, view, CHUNK))
            if not self.on_disk:
                return torch.cat([*given])
            first = next(given)
            kept = _on_disk((len(self.feed.split), *first.shape[1:]), first.dtype)
            done = 0
            for part in chain([first], given):
                kept[done : done + len(part)] = part
                done += len(part)
            return kept


def _on_disk(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An empty tensor in a file without a name, which the system removes when nothing uses it any more."""
    count = math.prod(shape) * dtype.itemsize
    if count > (free := disk_usage(gettempdir()).free):
        raise StorageError(
            f"{gettempdir()} has {size(free)} free, and outputs of the frozen layers take {size(count)}; "
            "free some, set TMPDIR to a folder on another disk, or leave cache out."
        )
    with TemporaryFile() as file:
        held = np.memmap(file, np.uint8, "w+", shape=(count,))
    return torch.from_numpy(held).view(dtype).view(shape)


def place(feeds: Sequence[Feed], tail: Tail, views: int, cache: int) -> Literal["memory", "disk"] | None:
    """Return where the outputs of the frozen layers have room: in a quarter of free memory, or in a file.

    Args:
        feeds: Training pictures, of which there are ``views``, and those that are watched.
        tail: What comes behind the frozen layers.
        views: How many views of each training picture are kept.
        cache: Most bytes on disk.
    """
    train, watched = feeds
    with evaluating(tail.net):
        one = tail.given(next(iter(train.in_order(0, 0, 1))))
    each = math.prod(one.shape) * one.element_size()
    needed = (views * len(train.split) + len(watched.split)) * each
    if needed <= SHARE * free_bytes(train.device):
        return "memory"
    return "disk" if needed <= cache else None
