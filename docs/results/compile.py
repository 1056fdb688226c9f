"""Times eager and compiled training steps, full and adapted, in turn in one process; writes JSON.

Example: python docs/results/compile.py --out docs/results/compile-cpu.json
"""

from __future__ import annotations

import argparse
import copy
from statistics import median
from typing import Any

import torch
from steps import add_options, pictures, seconds, step_of, write_rows

import sparsetune as st

CASES = {"wrn28_4": (32, 32), "resnet50": (16, 96)}
"""Model -> batch size and picture side."""


def measure(name: str, fraction: float, rounds: int) -> dict[str, Any]:
    """Time the four kinds of step of one model."""
    batch_size, size = CASES[name]
    x = pictures(batch_size, size)
    full = st.create(name, num_classes=10)
    ours = st.adapt_(copy.deepcopy(full), st.Learn(fraction=fraction))
    steps, compiling = {}, {}
    for kind, net in {"full": full, "ours": ours}.items():
        steps[f"{kind} eager"] = step_of(net, net, x)
        twin = copy.deepcopy(net)
        steps[f"{kind} compiled"] = step_of(twin, torch.compile(twin), x)
    for kind, step in steps.items():
        compiling[kind] = seconds(step)
        seconds(step)
    times: dict[str, list[float]] = {kind: [] for kind in steps}
    for _ in range(rounds):
        for kind, step in steps.items():
            times[kind].append(seconds(step))
    return {
        "model": name,
        "batch_size": batch_size,
        "size": size,
        "fraction": fraction,
        "rounds": rounds,
        "first_step_s": {kind: round(value, 2) for kind, value in compiling.items()},
        "step_ms": {kind: round(median(values) * 1e3, 2) for kind, values in times.items()},
        "step_spread_ms": {
            kind: [round(min(values) * 1e3, 2), round(max(values) * 1e3, 2)] for kind, values in times.items()
        },
        "compiled_over_eager": {
            kind: ratio(times, f"{kind} compiled", f"{kind} eager") for kind in ("full", "ours")
        },
        "ours_over_full": {
            kind: ratio(times, f"ours {kind}", f"full {kind}") for kind in ("eager", "compiled")
        },
    }


def ratio(times: dict[str, list[float]], above: str, below: str) -> float:
    """Median over rounds of one kind's step time over another's in the same round."""
    return round(median(a / b for a, b in zip(times[above], times[below], strict=True)), 3)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=CASES, action="append", help="May be repeated; all if left out.")
    parser.add_argument("--fraction", type=float, default=0.1)
    add_options(parser, rounds=20)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [measure(name, options.fraction, options.rounds) for name in options.model or CASES]
    write_rows(rows, options.out)


if __name__ == "__main__":
    main()
