"""Evidence, not library: many trainings, their results, and what follows from them.

Imports whatever it needs; only ``cli`` imports it.

- ``jobs``: one thing to compute as a value with an identity; ``store``: results, once each, for ever.
- ``runner``: jobs in order, by processes or a cluster, which do the ``work``.
- A new kind of job is a function with ``jobs.kind`` on it, in ``work`` or beside what it belongs to.
- ``sources``: data sets by name, and counts that need no training.
- ``compare``: our methods beside PEFT's; ``paper``: the paper's experiments.
"""

from sparsetune.studies.jobs import DEFAULTS, TRAINING, VERSION, Job, in_order
from sparsetune.studies.runner import (
    Cluster,
    Event,
    Processes,
    Progress,
    deciding_first,
    estimate,
    go,
    take_over,
    unused,
)
from sparsetune.studies.sources import Noted, glance, look, missing, sources_from
from sparsetune.studies.store import Place, Row, Store, open_store

__all__ = [
    "Cluster",
    "DEFAULTS",
    "Event",
    "Job",
    "Noted",
    "Place",
    "Processes",
    "Progress",
    "Row",
    "Store",
    "TRAINING",
    "VERSION",
    "deciding_first",
    "estimate",
    "glance",
    "go",
    "in_order",
    "look",
    "missing",
    "open_store",
    "sources_from",
    "take_over",
    "unused",
]
