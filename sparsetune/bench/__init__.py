"""Ours beside the alternatives, on this machine.

Imports ``serve`` and ``train``.

- ``bench``: contestants take turns, and what they keep for many tasks; ``timing``: fair times, memory.
- ``peft``: PEFT's LoRA as an opponent; ``chart``: the picture.
"""

from sparsetune.bench.bench import MEASURES, Row, Workload, bench
from sparsetune.bench.chart import amount, describe, draw_bench
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
