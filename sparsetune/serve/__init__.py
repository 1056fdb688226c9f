"""One backbone, many deltas.

Imports ``delta``.

- ``shared``: the one model in memory, and how a delta's values get into it and out again.
- ``tasks``: ``Tasks``, one delta at a time, and ``Ensemble``, the mean of several.
"""

from sparsetune.serve.tasks import Ensemble, Tasks

__all__ = [
    "Ensemble",
    "Tasks",
]
