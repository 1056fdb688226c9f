"""What actions take: they take turns, so that whatever else the machine does meanwhile falls on all alike."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Figure:
    """One measured quantity of one contestant.

    Attributes:
        median: Over the counted rounds.
        low: Least.
        high: Most.
        ratio: Median over rounds of it over full training's in the same round; ``None`` where there is none.
    """

    median: float
    low: float
    high: float
    ratio: float | None


def figure(values: Sequence[float], full: Sequence[float] | None) -> Figure:
    """Sum up one value a round, beside full training's in the same rounds if it has any."""
    ratio = None if full is None else median(a / b for a, b in zip(values, full, strict=True))
    return Figure(median(values), min(values), max(values), ratio)


def take_turns(
    actions: Mapping[Key, Callable[[], object]],
    device: str,
    *,
    rounds: int,
    warmup: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[Key, list[float]]:
    """Time actions, each once a round, in their order.

    Args:
        actions: What to time, by a key.
        device: Where they compute; on a GPU its own clock counts, from an idle GPU to an idle GPU.
        rounds: Counted rounds.
        warmup: Rounds before, not counted.
        progress: Called with the rounds done and the rounds in all.

    Returns:
        The milliseconds that each action took in each counted round.
    """
    place = torch.device(device)
    clock = _cuda_ms if place.type == "cuda" else _cpu_ms
    found: dict[Key, list[float]] = {key: [] for key in actions}
    for i in range(warmup + rounds):
        for key, action in actions.items():
            taken = clock(action, place)
            if i >= warmup:
                found[key].append(taken)
        if progress:
            progress(i + 1, warmup + rounds)
    return found


def _cpu_ms(action: Callable[[], object], _: torch.device) -> float:
    start = time.perf_counter()
    action()
    return 1e3 * (time.perf_counter() - start)


def _cuda_ms(action: Callable[[], object], device: torch.device) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    stream = torch.cuda.current_stream(device)
    torch.cuda.synchronize(device)
    start.record(stream)
    action()
    end.record(stream)
    torch.cuda.synchronize(device)
    taken: float = start.elapsed_time(end)
    return taken


def peak_bytes(action: Callable[[], None], device: str) -> int:
    """Return the most bytes that ``action`` holds at one time, beyond those held before it.

    What a library takes past torch's allocators (oneDNN's scratch memory) is not seen.

    Args:
        action: The work; it must not free what was allocated before, which would go unseen on a CPU.
        device: Where it computes.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        action()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        action()
    events = [each for each in seen.profiler.kineto_results.events() if each.name() == "[memory]"]
    events.sort(key=lambda each: each.start_ns())
    held: Iterable[int] = accumulate((each.nbytes() for each in events), initial=0)
    return max(held)


def held_bytes(net: nn.Module, optimizer: Optimizer) -> int:
    """Return the bytes of a model's parameters and buffers and of its optimiser's state; shared ones once."""
    return _bytes([*net.parameters(), *net.buffers(), *_state(optimizer)])


def learning_bytes(net: nn.Module, optimizer: Optimizer) -> int:
    """Return the bytes of a model's gradients, as they stand, and of its optimiser's state."""
    gradients = (each.grad for each in net.parameters() if each.grad is not None)
    return _bytes([*gradients, *_state(optimizer)])


@contextmanager
def _quiet() -> Iterator[None]:
    """Send what the profiler's library logs past Python to nowhere."""
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _state(optimizer: Optimizer) -> Iterator[Tensor]:
    state = (value for values in optimizer.state.values() for value in values.values())
    return (value for value in state if isinstance(value, Tensor))


def _bytes(tensors: Iterable[Tensor]) -> int:
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
