"""Where a training step's time goes, full and adapted, operation by operation; writes JSON.

Example: python docs/results/profiling.py --out docs/results/profile-cpu.json
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import sparsetune as st
from sparsetune.machine import describe_machine

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


def steps_of(net: nn.Module, batch_size: int, size: int) -> Any:
    """Return a whole training step: forward, loss, backward, SGD with momentum and decay."""
    net.train()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch_size, 3, size, size, generator=generator)
    y = torch.randint(10, (batch_size,), generator=generator)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def milliseconds(step: Any, count: int) -> dict[str, float]:
    """Profile ``count`` steps; return the time of each kind of work, and of the rest, in one step."""
    for _ in range(2):
        step()
    with profile(activities=[ProfilerActivity.CPU]) as run:
        start = time.perf_counter()
        for _ in range(count):
            step()
        whole = (time.perf_counter() - start) * 1e3 / count
    kinds = {f"aten::{name}": kind for kind, names in GROUPS.items() for name in names}
    found = dict.fromkeys(GROUPS, 0.0)
    for event in run.events():
        parent, inside = event.cpu_parent, False
        while parent is not None:
            inside, parent = inside or parent.name in kinds, parent.cpu_parent
        if event.name in kinds and not inside:
            found[kinds[event.name]] += event.cpu_time_total / 1e3 / count
    found["all else"] = whole - sum(found.values())
    return {kind: round(value, 1) for kind, value in found.items()} | {"whole step": round(whole, 1)}


def measure(name: str, fraction: float, count: int) -> dict[str, Any]:
    """Profile full training, ours, and normalisation alone, of one model."""
    batch_size, size = CASES[name]
    full = st.create(name, num_classes=10)
    learns = {"ours": st.Learn(fraction=fraction), "norm only": st.Learn(filters=0, head=False)}
    nets = {"full": full, **{kind: st.adapt_(copy.deepcopy(full), learn) for kind, learn in learns.items()}}
    found = {kind: milliseconds(steps_of(net, batch_size, size), count) for kind, net in nets.items()}
    return {"model": name, "fraction": fraction, "batch_size": batch_size, "size": size, "ms": found}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=CASES, action="append", help="May be repeated; all if left out.")
    parser.add_argument("--fraction", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [measure(name, options.fraction, options.steps) for name in options.model or CASES]
    text = json.dumps({**describe_machine(), "rows": rows}, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
