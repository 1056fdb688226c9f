"""Peak memory of a piece of work, as torch's allocators see it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile


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
