"""ROOM studies."""

from sparsetune.studies.crew import Cluster, Crew, Event, Processes
from sparsetune.studies.jobs import DEFAULTS, TRAINING, VERSION, Job
from sparsetune.studies.runner import Progress, estimate, go, unused
from sparsetune.studies.sources import Noted, glance, look, missing, sources_from
from sparsetune.studies.store import Place, Row, Store, open_store

__all__ = [
    "Cluster",
    "Crew",
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
    "estimate",
    "glance",
    "go",
    "look",
    "missing",
    "open_store",
    "sources_from",
    "unused",
]
