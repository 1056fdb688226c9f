"""Ours beside the alternatives, on this machine.

Imports ``serve`` and ``train``.

- ``bench``: contestants take turns, what they keep for many tasks, the picture; ``timing``: times and memory.
- ``peft``: PEFT's LoRA as an opponent.
"""

from sparsetune.bench.bench import MEASURES, Row, Workload, amount, bench, describe, draw_bench
from sparsetune.bench.peft import is_installed, learned_tensors, uniform_lora
from sparsetune.bench.timing import take_turns

__all__ = [
    "MEASURES",
    "Row",
    "Workload",
    "amount",
    "bench",
    "describe",
    "draw_bench",
    "is_installed",
    "learned_tensors",
    "take_turns",
    "uniform_lora",
]
