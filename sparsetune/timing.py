"""What actions take: they take turns, so that whatever else the machine does meanwhile falls on all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

import torch

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
