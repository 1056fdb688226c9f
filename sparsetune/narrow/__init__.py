"""ROOM narrow."""

from sparsetune.narrow.slim import Slimming, load_slim, pictures, slim, slimming, write_slim

__all__ = [
    "Slimming",
    "load_slim",
    "pictures",
    "slim",
    "slimming",
    "write_slim",
]
