"""Where a training step's time goes, full and adapted, operation by operation; writes JSON.

Example: python docs/results/profiling.py --out docs/results/profile-cpu.json
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from steps import add_options, pictures, step_of, write_rows
from torch.profiler import ProfilerActivity, profile

import sparsetune as st

CASES = {"densenet100_12": (32, 32), "wrn28_4": (32, 32), "resnet50": (16, 96)}
"""Model -> batch size and picture side."""
GROUPS = {
    "convolution, forward": ("convolution",),
    "convolution, backward": ("convolution_backward",),
    "matrix products": ("bmm", "mm", "addmm", "matmul"),
    "batch norm": ("native_batch_norm", "native_batch_norm_backward"),
    "activations": ("clamp_min", "clamp_min_", "relu", "relu_", "threshold_backward"),
    "sums, joins and copies": ("add", "add_", "cat", "copy_", "clone", "slice_backward", "sum"),
}
"""Kind of work -> torch's operations, of which the outermost counts with all that it calls."""


def milliseconds(step: Callable[[], None]) -> dict[str, float]:
    """Profile one step; return the time of each kind of work, of the rest, and of the whole step."""
    with profile(activities=[ProfilerActivity.CPU]) as run:
        start = time.perf_counter()
        step()
        whole = (time.perf_counter() - start) * 1e3
    kinds = {f"aten::{name}": kind for kind, names in GROUPS.items() for name in names}
    found = dict.fromkeys(GROUPS, 0.0)
    for event in run.events():
        parent, inside = event.cpu_parent, False
        while parent is not None:
            inside, parent = inside or parent.name in kinds, parent.cpu_parent
        if event.name in kinds and not inside:
            found[kinds[event.name]] += event.cpu_time_total / 1e3
    return {**found, "all else": whole - sum(found.values()), "whole step": whole}


def measure(name: str, fraction: float, rounds: int) -> dict[str, Any]:
    """Profile full training, ours, and normalisation alone, in turn; of each its fastest step counts."""
    batch_size, size = CASES[name]
    x = pictures(batch_size, size)
    full = st.create(name, num_classes=10)
    learns = {"ours": st.Learn(fraction=fraction), "norm only": st.Learn(filters=0, head=False)}
    nets = {"full": full, **{kind: st.adapt_(copy.deepcopy(full), learn) for kind, learn in learns.items()}}
    steps = {kind: step_of(net, net, x) for kind, net in nets.items()}
    for step in steps.values():
        step()
    taken = [{kind: milliseconds(step) for kind, step in steps.items()} for _ in range(rounds)]
    fastest = {kind: min((t[kind] for t in taken), key=lambda ms: ms["whole step"]) for kind in steps}
    rounded = {kind: {part: round(ms, 1) for part, ms in found.items()} for kind, found in fastest.items()}
    return {"model": name, "fraction": fraction, "batch_size": batch_size, "size": size, "ms": rounded}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=CASES, action="append", help="May be repeated; all if left out.")
    parser.add_argument("--fraction", type=float, default=0.1)
    add_options(parser, rounds=8)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [measure(name, options.fraction, options.rounds) for name in options.model or CASES]
    write_rows(rows, options.out)


if __name__ == "__main__":
    main()
