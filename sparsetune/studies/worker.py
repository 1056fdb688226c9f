"""A worker process: reads jobs from stdin, a JSON line each, and writes what happens to stdout."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from sparsetune.errors import DivergedError, SparsetuneError
from sparsetune.studies.store import Place
from sparsetune.studies.work import about, perform
from sparsetune.train import Epoch, Step

EVERY = 0.3
"""Seconds between two messages about steps; when nobody reads them any more, the worker ends."""


def do(
    identity: str, settings: dict[str, Any], place: Place, budget: float | None, watch: Any = None
) -> dict[str, Any]:
    """Do a job; return what became of it, as plain JSON values: ``kind`` and what goes with it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nobody at a worker can act on them
            result = perform(identity, settings, place, budget, watch)
    except DivergedError as error:
        result = {"diverged": str(error)}
    except SparsetuneError as error:
        return {"kind": "failed", "reason": str(error)}
    except MemoryError:
        return {"kind": "failed", "reason": "the memory was not enough; give fewer --jobs."}
    if result is None:
        return {"kind": "stopped"}
    return {"kind": "finished", "result": result, "about": about(settings, place)}


def main() -> None:
    """Do jobs until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that gives the jobs ends this one
    messages = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not get among them
    place = Place(Path(sys.argv[1]), json.loads(sys.argv[2]))
    messages.write(json.dumps({"kind": "ready"}) + "\n")
    for line in sys.stdin:
        given = json.loads(line)
        said = 0.0

        def watch(event: Step | Epoch, epochs: int = given["settings"]["epochs"]) -> None:
            nonlocal said
            if isinstance(event, Step) and time.monotonic() - said > EVERY:
                said = time.monotonic()
                done = (event.epoch - 1 + event.step / event.steps) / epochs
                messages.write(json.dumps({"kind": "step", "done": done, "loss": event.loss}) + "\n")

        came = do(given["id"], given["settings"], place, given["budget"], watch)
        messages.write(json.dumps(came) + "\n")


if __name__ == "__main__":
    main()
