"""A crew that saves the seconds that a new process takes to import torch."""

from __future__ import annotations

import json

from sparsetune.studies.jobs import Job
from sparsetune.studies.runner import Event, do
from sparsetune.studies.store import Place


class Inline:
    """A crew of one, in this process."""

    count = 1

    def __init__(self, place: Place) -> None:
        self.place, self.came, self.given = place, [], []

    def idle(self) -> int:
        return 1 - len(self.came)

    def give(self, job: Job, budget: float | None) -> None:
        self.given.append(job.id)
        value = json.loads(json.dumps(do(job.id, job.settings, self.place, budget)))
        self.came.append(Event(job.id, value["kind"], value))

    def events(self, seconds: float) -> list[Event]:
        came, self.came = self.came, []
        return came

    def close(self) -> None:
        pass
