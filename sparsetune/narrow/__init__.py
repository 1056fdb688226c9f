"""A network whose unlearned filters are zero, computed without them.

Imports ``sliced`` and ``delta``.

- ``follow``: from which channels on everything is constant, through the whole graph of a model.
- ``narrow``: its layers cut to the others.
- ``network``: the whole model made smaller for use, or narrow while it trains; and as a file.
"""

from sparsetune.narrow.network import Slimming, load_slim, pictures, slim, slimming, write_slim

__all__ = [
    "Slimming",
    "load_slim",
    "pictures",
    "slim",
    "slimming",
    "write_slim",
]
