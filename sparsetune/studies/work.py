"""Do one job: a training, an ensemble's evaluation, a look at a training's weights, an entry, its pace."""

from __future__ import annotations

import functools
import shutil
from os.path import realpath
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sparsetune.backbone import create
from sparsetune.delta import inspect, load
from sparsetune.errors import DivergedError
from sparsetune.host import DELTA, describe_machine
from sparsetune.runs import Run, measure, recorded, run
from sparsetune.sliced import adapt_, adapted, merge_
from sparsetune.spec import FitConfig, Learn
from sparsetune.studies.compare.entry import contend, pace
from sparsetune.studies.jobs import LEARN, TRAINING, Settings
from sparsetune.studies.sources import KNOWN, check_digest, describe_source
from sparsetune.studies.store import Place
from sparsetune.train import Watch


def perform(
    identity: str, settings: Settings, place: Place, budget: float | None = None, watch: Watch | None = None
) -> dict[str, Any] | None:
    """Do a job whose needs are done.

    Args:
        identity: The job's id.
        settings: Of the job.
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
    if settings["kind"] == "fit":
        return _fit(identity, settings, place, budget, watch)
    if settings["kind"] in ("ours", "lora"):
        return contend(settings, place, place.run(identity), budget, watch)
    if settings["kind"] == "ensemble":
        return _ensemble(settings, place)
    if settings["kind"] == "pace":
        return {"steps": pace(settings, place)}
    return {"layers": _weights(settings, place)}


def about(settings: Settings, place: Place) -> dict[str, Any]:
    """Return what a result was measured on and from."""
    return {**_machine(), "data": describe_source(settings["data"], place.data(settings))}


@functools.cache
def _machine() -> dict[str, Any]:
    return dict(describe_machine())


def _settings(settings: Settings, place: Place) -> Run:
    """The run that ``sparsetune fit`` would do for a training's settings."""
    start = place.start(settings)
    return Run(
        model=settings["model"],
        model_kwargs=settings["model_kwargs"],
        learn=Learn(**{name: settings[name] for name in LEARN}),
        config=FitConfig(**{name: settings[name] for name in TRAINING}),
        data=place.data(settings),
        size=settings["size"],
        train_limit=settings["train_limit"],
        test_limit=settings["test_limit"],
        backbone_seed=settings["seed"],
        init_from=None if start is None else str(start),
    )


def _fit(
    identity: str, settings: Settings, place: Place, budget: float | None, watch: Watch | None
) -> dict[str, Any] | None:
    folder, asked = place.run(identity), _settings(settings, place)
    if folder.exists() and not _is_here(folder, asked):
        shutil.rmtree(folder)
    outcome = run(asked, folder, resume=folder.exists(), time_budget=budget, watch=watch)
    if not outcome.finished:
        return None
    last, plan, delta = outcome.history[-1], outcome.plan, folder / DELTA
    return {
        "top1": last.test_top1,
        "top5": last.test_top5,
        "loss": last.test_loss,
        "train_top1": last.train_top1,
        "train_loss": last.train_loss,
        "seconds": sum(record.seconds for record in outcome.history),
        "train_pictures": inspect(delta).training["train_pictures"],
        "learned_parameters": plan.learned_parameters,
        "total_parameters": plan.total_parameters,
        "delta_bytes": delta.stat().st_size,
    }


def _is_here(folder: Path, asked: Run) -> bool:
    """Whether a run was begun with data and backbone where they lie now, so that it can go on."""
    began = {name: recorded(folder, name) for name in ("data", "init_from")}
    return all(realpath(path or "") == realpath(getattr(asked, name) or "") for name, path in began.items())


def _ensemble(settings: Settings, place: Place) -> dict[str, Any]:
    deltas = [place.run(member) / DELTA for member in settings["of"]]
    if not all(delta.is_file() for delta in deltas):
        raise DivergedError("a member's training did not converge.")
    together, variety = measure(deltas, _settings(settings, place))
    members = [inspect(delta).training["result"]["test_top1"] for delta in deltas]
    scores = {name: value for name, value in together.to_json().items() if not isinstance(value, list)}
    return {
        **scores,
        **variety.to_json(),
        "members": members,
        "mean_top1": sum(members) / len(members),
    }


def _weights(settings: Settings, place: Place) -> list[dict[str, Any]]:
    if settings["of"] is None:
        net = create(settings["model"], num_classes=KNOWN[settings["data"]].classes, seed=settings["seed"])
        return _magnitudes(adapt_(net, Learn(filters=0)))
    delta = place.run(settings["of"]) / DELTA
    if not delta.is_file():
        raise DivergedError("the training did not converge.")
    return _magnitudes(load(delta))


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
