"""ROOM bench."""

from sparsetune.bench.bench import MEASURES, Row, bench
from sparsetune.bench.chart import amount, describe, draw_bench
from sparsetune.bench.peft import is_installed, learned_tensors, uniform_lora
from sparsetune.bench.timing import take_turns

__all__ = [
    "MEASURES",
    "Row",
    "amount",
    "bench",
    "describe",
    "draw_bench",
    "is_installed",
    "learned_tensors",
    "take_turns",
    "uniform_lora",
]
