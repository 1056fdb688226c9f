"""Times a zeroed network and its slim form in turn in one process, inference and training steps; writes JSON.

Example: python docs/results/slim.py --out docs/results/slim-cpu.json
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from steps import add_options, pictures, seconds, step_of, write_rows
from torch import Tensor, nn

import sparsetune as st
from sparsetune.narrow import Slimming


def inference_of(net: nn.Module, x: Tensor) -> Callable[[], None]:
    """Return a forward pass in evaluation mode."""
    net.eval()

    @torch.inference_mode()
    def step() -> None:
        net(x)

    return step


def in_turn(zeroed: Callable[[], None], slim: Callable[[], None], rounds: int) -> dict[str, Any]:
    """Time two kinds of step in turn, after two steps of each that do not count."""
    times: dict[str, list[float]] = {"zeroed": [], "slim": []}
    for number in range(rounds + 2):
        for kind, step in (("zeroed", zeroed), ("slim", slim)):
            took = seconds(step)
            if number >= 2:
                times[kind].append(took)
    return {
        "ms": {kind: round(median(values) * 1e3, 2) for kind, values in times.items()},
        "spread_ms": {
            kind: [round(min(values) * 1e3, 2), round(max(values) * 1e3, 2)] for kind, values in times.items()
        },
        "times_faster": round(median(a / b for a, b in zip(*times.values(), strict=True)), 2),
    }


def measure(name: str, fraction: float, batch_size: int, size: int, rounds: int) -> dict[str, Any]:
    """Compare one network's two forms: outputs, values, time."""
    net = st.adapt_(st.create(name, num_classes=10), st.Learn(fraction=fraction, frozen="zero"))
    x = pictures(batch_size, size)
    training = in_turn(
        step_of(net, net, x),
        step_of(twin := copy.deepcopy(net), Slimming(twin.train(), (3, size, size)), x),
        rounds,
    )
    small = st.slim(net.eval())
    with torch.inference_mode():
        wanted, found = net(x), small(x)
    return {
        "model": name,
        "fraction": fraction,
        "batch_size": batch_size,
        "size": size,
        "rounds": rounds,
        "values": {
            "whole": st.adapted(net).plan.total_parameters,
            "learned": st.adapted(net).plan.learned_parameters,
            "slim": sum(parameter.numel() for parameter in small.parameters()),
        },
        "largest_difference_of_largest_output": float((found - wanted).abs().max() / wanted.abs().max()),
        "inference": in_turn(inference_of(net, x), inference_of(small, x), rounds),
        "training_step": training,
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="wrn28_4")
    parser.add_argument("--fraction", type=float, action="append", help="May be repeated; 0.4 if left out.")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--size", type=int, default=32)
    add_options(parser, rounds=10)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [
        measure(options.model, fraction, options.batch_size, options.size, options.rounds)
        for fraction in options.fraction or [0.4]
    ]
    write_rows(rows, options.out)


if __name__ == "__main__":
    main()
