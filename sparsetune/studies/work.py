"""Do one job: a training, an ensemble's evaluation, a look at a training's weights; or, as a process, many.

A worker process reads jobs from stdin, a JSON line each, and writes what happens to stdout.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from dataclasses import replace
from os.path import realpath
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sparsetune.backbone import create
from sparsetune.delta import inspect, load
from sparsetune.errors import DivergedError, SparsetuneError
from sparsetune.host import DELTA
from sparsetune.runs import Run, measure, predicted, recorded, run
from sparsetune.sliced import adapt_, adapted, merge_
from sparsetune.spec import PAPER, FitConfig, Learn
from sparsetune.studies.compare.training import scored
from sparsetune.studies.intervals import packed
from sparsetune.studies.jobs import DEFAULTS, KINDS, LEARN, TRAINING, Job, Result, kind
from sparsetune.studies.sources import KNOWN, check_digest, describe_source, here
from sparsetune.studies.store import Place, Settings, Task
from sparsetune.train import Epoch, Step, Watch


def perform(
    identity: str, settings: Settings, place: Place, budget: float | None = None, watch: Watch | None = None
) -> Result | None:
    """Do a job of any kind.

    Args:
        identity: The job's id.
        settings: Of the job, whose needs are done.
        place: Where.
        budget: Seconds after which a training is saved and stopped.
        watch: Called after each step and each epoch of a training.

    Returns:
        What was measured, or ``None`` when the time was up before the end.

    Raises:
        DivergedError: When a loss does not stay finite.
        DataError: When the data is not that of the job.
        SparsetuneError: As ``run`` raises.
    """
    check_digest(settings, place.data(settings))
    return KINDS[settings["kind"]].do(Task(identity, settings, place, budget, watch))


def about(settings: Settings, place: Place) -> dict[str, Any]:
    """Return what a result was measured on and from."""
    return {**here(), "data": describe_source(settings["data"], place.data(settings))}


def _run_of(task: Task) -> Run:
    """The run of a training's settings, by the paper's recipe also where it starts from a trained model."""
    settings, start = task.settings, task.place.start(task.settings)
    learn = Learn(**{name: settings[name] for name in LEARN})
    if start is not None:
        learn = replace(learn, norm_stats="updated")
    return Run(
        model=settings["model"],
        model_kwargs=settings["model_kwargs"],
        learn=learn,
        config=FitConfig(**{name: settings[name] for name in TRAINING}).following(PAPER),
        data=task.place.data(settings),
        size=settings["size"],
        classes=settings["classes"],
        train_limit=settings["train_limit"],
        test_limit=settings["test_limit"],
        backbone_seed=settings["seed"],
        init_from=None if start is None else str(start),
    )


@kind("fit", trains=True)
def _fit(task: Task) -> Result | None:
    folder, asked = task.folder, _run_of(task)
    if folder.exists() and not _is_here(folder, asked):
        shutil.rmtree(folder)
    outcome = run(asked, folder, resume=folder.exists(), time_budget=task.budget, watch=task.watch)
    if not outcome.finished:
        return None
    last, plan, delta = outcome.history[-1], outcome.plan, folder / DELTA
    right = outcome.right
    if right is None:  # it ended before, and whoever was to write that down was killed
        found, labels = predicted([delta], asked)
        right = found[0].argmax(1) == labels
    return {
        **scored(last),
        **_each(right),
        "seconds": sum(record.seconds for record in outcome.history),
        "train_pictures": inspect(delta).training["train_pictures"],
        "learned_parameters": plan.learned_parameters,
        "total_parameters": plan.total_parameters,
        "delta_bytes": delta.stat().st_size,
    }


def _each(right: Tensor) -> Result:
    """Whether each picture that a result is judged by is classified rightly, and how many there are."""
    return {"right": packed(right), "test_pictures": len(right)}


def _is_here(folder: Path, asked: Run) -> bool:
    """Whether a run was begun with data and backbone where they lie now, so that it can go on."""
    began = {name: recorded(folder, name) for name in ("data", "init_from")}
    return all(realpath(path or "") == realpath(getattr(asked, name) or "") for name, path in began.items())


APART = 1000
"""Between the seeds of an ensemble's members, so that ensembles of seeds 0, 1, 2 … share none."""


def _with_members(settings: Settings) -> Job:
    """Members that start from one model that learned everything (paper, Section 4.3)."""
    slices = {name: DEFAULTS[name] for name in LEARN}
    training = {name: DEFAULTS[name] for name in ("opt", "lr")}
    fit = {**settings, "kind": "fit", "members": None}
    start = Job({**fit, **slices, **training, "fraction": 1.0})
    members = tuple(
        Job({**fit, "init_from": start.id, "seed": settings["seed"] + APART * number}, (start,))
        for number in range(1, settings["members"] + 1)
    )
    return Job({**settings, "init_from": start.id, "of": [member.id for member in members]}, members)


@kind("ensemble", make=_with_members)
def _ensemble(task: Task) -> Result:
    """``members`` trainings judged together."""
    deltas = [task.place.run(member) / DELTA for member in task.settings["of"]]
    if not all(delta.is_file() for delta in deltas):
        raise DivergedError("a member's training did not converge.")
    together, variety, right = measure(deltas, _run_of(task))
    found = [inspect(delta).accuracy for delta in deltas]
    members = [top1 for _, top1 in filter(None, found)]
    scores = {name: value for name, value in together.to_json().items() if not isinstance(value, list)}
    return {
        **scores,
        **variety.to_json(),
        "members": members,
        "mean_top1": sum(members) / len(members),
        **_each(right),
    }


def _with_training(settings: Settings) -> Job:
    """Magnitudes are those of a training; without anything to learn, as drawn."""
    if settings["fraction"] is None and settings["filters"] is None:
        return Job(settings)
    run = Job({**settings, "kind": "fit"})
    return Job({**settings, "of": run.id}, (run,))


def _as_drawn(settings: Settings) -> str:
    return "" if settings["of"] else f"{settings['model']} weights as drawn"


@kind("weights", make=_with_training, name=_as_drawn)
def _weights(task: Task) -> Result:
    """The magnitudes that a training left."""
    settings = task.settings
    if settings["of"] is None:
        net = create(settings["model"], num_classes=KNOWN[settings["data"]].classes, seed=settings["seed"])
        return {"layers": _magnitudes(adapt_(net, Learn(filters=0)))}
    delta = task.place.run(settings["of"]) / DELTA
    if not delta.is_file():
        raise DivergedError("the training did not converge.")
    return {"layers": _magnitudes(load(delta))}


def _magnitudes(net: nn.Module) -> list[dict[str, Any]]:
    """For each convolution, in the model's order: mean |w| and variance, of all of it and of its slice."""
    plan = adapted(net).plan
    values = merge_(net).state_dict()
    return [
        {
            "name": part.name,
            **_moments(values[part.name]),
            "learned": _moments(values[part.name].narrow(part.dim, 0, part.k)) if part.k else None,
        }
        for part in plan
        if part.layer and len(part.shape) == 4
    ]


def _moments(value: Tensor) -> dict[str, float]:
    exact = value.double()
    return {"mean": float(exact.abs().mean()), "variance": float(exact.var(unbiased=False))}


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
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
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


def _end_with(parent: int) -> None:
    """End this process once the one that gives the jobs is gone, however that ended."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main()
