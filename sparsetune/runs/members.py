"""An ensemble trained in one go: runs that differ in the seed of their training, over one backbone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sparsetune.data import Preprocessing, loader
from sparsetune.delta import bundle, is_delta
from sparsetune.errors import ConfigError
from sparsetune.host import DELTA, pick_device
from sparsetune.runs.choosing import Choosing
from sparsetune.runs.folder import RUNS
from sparsetune.runs.run import Outcome, run
from sparsetune.runs.settings import Run, opened
from sparsetune.serve import Ensemble
from sparsetune.train import Diversity, Scores, Start, Watch, diversity, predict_logits, scores

BUNDLE = "ensemble.safetensors"


@dataclass(frozen=True)
class Together:
    """What an ensemble came to.

    Attributes:
        folder: Where the members' folders are.
        members: The outcome of each run that was begun.
        finished: Whether all members are trained.
        scores: Of the averaged predictions on the test pictures, or those of validation where there are none;
            ``None`` before it is finished.
        diversity: How much the members differ; likewise.
    """

    folder: Path
    members: list[Outcome]
    finished: bool
    scores: Scores | None = None
    diversity: Diversity | None = None

    @property
    def deltas(self) -> list[Path]:
        """The members' files."""
        return [member.folder / DELTA for member in self.members]


def run_members(
    settings: Run,
    count: int,
    folder: Path | None = None,
    *,
    resume: bool = False,
    time_budget: float | None = None,
    watch: Watch | None = None,
    started: Callable[[Start], None] | None = None,
    choosing: Choosing | None = None,
) -> Together:
    """Train an ensemble: members over one backbone that differ in order, augmentation and dropout alone.

    The paper's ensembles (Section 4.3) start from one trained model: pass its checkpoint as ``init_from``.

    Args:
        settings: Of the first member; the others have the next training seeds.
        count: How many members, at least two.
        folder: Where ``member-0`` and so on are written; by default below ``runs``.
        resume: As for :func:`~sparsetune.runs.run.run`.
        time_budget: Seconds of training in all, after which to save and stop.
        watch: As for :func:`~sparsetune.runs.run.run`, for each member.
        started: Likewise.
        choosing: Likewise; all members learn what the first one chose.

    Raises:
        ConfigError: When ``count`` is below 2, or as ``run`` raises.
    """
    if count < 2:
        raise ConfigError(f"members {count} is no ensemble; give 2 or more, or leave it out.")
    folder = folder or RUNS / f"{settings.name}-members{count}"
    deadline = None if time_budget is None else time.monotonic() + time_budget
    members, choice = [], None
    for number in range(count):
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        seeded = replace(settings, config=settings.config.but(seed=settings.config.seed + number))
        place = folder / f"member-{number}"
        begun = resume and place.exists()
        outcome = run(
            seeded,
            place,
            resume=begun,
            time_budget=left,
            watch=watch,
            started=started,
            choosing=choosing if number == 0 else None,
            choice=choice,
        )
        members.append(outcome)
        choice = outcome.choice
        if not outcome.finished:
            return Together(folder, members, False)
    scores, diversity, _ = measure([m.folder / DELTA for m in members], settings)
    return Together(folder, members, True, scores, diversity)


def bundle_members(together: Together, settings: Run) -> Path:
    """Write the members, and the checkpoint that they stand on if it is a file, into one file; return it."""
    out = together.folder / BUNDLE
    bundle({delta.parent.name: delta for delta in together.deltas}, out, _checkpoint(settings))
    return out


def _checkpoint(settings: Run) -> str | None:
    start = settings.init_from
    return start if start and not is_delta(start) else None


def measure(deltas: list[Path], settings: Run) -> tuple[Scores, Diversity, Tensor]:
    """Return the scores of the members' averaged predictions, how much they differ, and what is right.

    The last, ``(pictures,)``, says of each picture whether they classify it rightly together.

    Args:
        deltas: The members' files, two or more.
        settings: Of one of them: what they stand on, and the data.
    """
    members, labels = predicted(deltas, settings)
    mean = members.mean(0)
    return scores(mean, labels), diversity(members), mean.argmax(1) == labels


def predicted(deltas: list[Path], settings: Run) -> tuple[Tensor, Tensor]:
    """Return what deltas say of the test pictures, or of those of validation where there is no test.

    Args:
        deltas: Their files.
        settings: Of one of them: what they stand on, and the data.

    Returns:
        Probabilities, ``(deltas, pictures, classes)`` float64, and labels, ``(pictures,)`` int64.
    """
    data = opened(replace(settings, train_limit=None))
    ensemble = Ensemble.load(deltas, backbone=_checkpoint(settings), allow_network=settings.pretrained)
    ensemble.to(pick_device(settings.config.device))
    form: Preprocessing = ensemble.headers["0"].preprocessing or data.preprocessing
    found, labels = [], torch.empty(0, dtype=torch.int64)
    for name in ensemble.headers:
        batches = loader(data.judged, form, batch_size=settings.config.batch_size)
        with ensemble.using(name) as net:
            logits, labels = predict_logits(net, batches)
        found.append(logits.double().softmax(1))
    return torch.stack(found), labels
