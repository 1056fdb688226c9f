"""A job: one thing to compute, named by its settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsetune.host import shown
from sparsetune.studies.store import Settings, Task

VERSION = 1
"""Of results: raised by whoever changes code so that a job gives another result, or measures it otherwise.
Results of other versions are kept, and no longer taken for the present one's."""

DEFAULTS: Settings = {
    "kind": "fit",
    "model": None,
    "model_kwargs": None,
    "data": "cifar10",
    "classes": None,
    "train_limit": None,
    "test_limit": None,
    "held_out": None,
    "size": None,
    "fraction": None,
    "filters": None,
    "rank": None,
    "budget": None,
    "spread": None,
    "dim": "out",
    "layers": None,
    "norm": True,
    "head": True,
    "frozen": None,
    "epochs": 10,
    "batch_size": 128,
    "opt": "momentum",
    "lr": 0.1,
    "sched": "cosine",
    "decay_milestones": [],
    "decay_rate": 0.1,
    "weight_decay": 5e-4,
    "val_share": 0.0,
    "seed": 0,
    "init_from": None,
    "members": None,
    "of": None,
    "digest": None,
    "version": None,
    "machine": None,
}
"""Every setting of a job; experiments and presets say only what differs.

``kind`` is ``fit`` (a training), ``ensemble`` (``members`` trainings judged together), ``weights`` (the
magnitudes that a training left), an entry of the comparison, ``ours`` or PEFT's ``lora``, or ``pace`` (what a
training step of each entry ``of`` takes). ``init_from`` and ``of`` name other jobs by their id. An entry with
``held_out`` is scored on that share of the training pictures; one without ``lr`` takes the best of the
entries ``of``, and one with ``budget`` learns what comes to so many bytes, spread over the layers as
``spread`` says or, without, as ``--budget`` chooses.
``size`` is of pictures, where it is not their own; of ``classes``, where it is not all, the first are taken.
A result rests on its data, whose ``digest`` this is, on code, by the ``version`` of results, and, of a
``pace``, on the ``machine``: with others it is another job's. Those of before there were such have ``None``.
"""

BASIS = ("digest", "version", "machine", "init_from")
"""What a result rests on beside what is asked for: data, code, of times the machine, and the backbone."""

LEARN = ("fraction", "filters", "rank", "dim", "layers", "norm", "head", "frozen")
TRAINING = (
    "epochs",
    "batch_size",
    "opt",
    "lr",
    "sched",
    "decay_milestones",
    "decay_rate",
    "weight_decay",
    "val_share",
    "seed",
)


@dataclass(frozen=True)
class Job:
    """One thing to compute.

    Attributes:
        settings: All of them, plain JSON values.
        needs: Jobs whose results it takes.
    """

    settings: Settings
    needs: tuple[Job, ...] = ()

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits from whatever differs from the defaults."""
        differing = {name: value for name, value in self.settings.items() if value != DEFAULTS[name]}
        text = json.dumps(differing, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """A few words for people."""
        held = self.settings
        if own := KINDS[held["kind"]].name(held):
            return own
        sizes = {"f": held["fraction"], "n": held["filters"], "r": held["rank"], "B": held["budget"]}
        size = next(f"{letter}{size:g}" for letter, size in sizes.items() if size is not None)
        words = [] if held["kind"] == "fit" else [held["kind"]]
        words = [held["model"], *words, held["data"], size, *(held["layers"] or ())]
        words += [f"along {held['dim']}"] * (held["dim"] != "out") + ["no norm"] * (not held["norm"])
        words += ["no head"] * (not held["head"]) + [f"rest {held['frozen']}"] * bool(held["frozen"])
        words += [held["opt"]] * (held["opt"] != DEFAULTS["opt"])
        words += [held["spread"]] if held["spread"] else []
        words += [f"tuning lr {held['lr']:g}"] if held["held_out"] else []
        return " ".join([*words, f"s{held['seed']}"])

    @property
    def data(self) -> set[str]:
        """The data sets that it takes, and that those take which it needs."""
        return {self.settings["data"]}.union(*(needed.data for needed in self.needs))


Result = dict[str, Any]
"""What was measured, plain JSON values."""
Doing = Callable[[Task], Result | None]
"""Does a job; ``None`` says that the time was up before the end."""


@dataclass(frozen=True)
class Kind:
    """What the kind of a job decides.

    Attributes:
        do: Does one.
        make: Makes one, and before it those that it needs.
        name: Its words for people where they are not the usual ones, or an empty text.
        trains: Whether it is a training.
    """

    do: Doing
    make: Callable[[Settings], Job] = Job
    name: Callable[[Settings], str] = lambda _: ""
    trains: bool = False


KINDS: dict[str, Kind] = {}
"""All kinds, by the name that settings have; filled by :func:`kind`."""


def kind(*names: str, **decides: Any) -> Callable[[Doing], Doing]:
    """Register the decorated function, which does a job, as that of kinds; ``decides`` is as in ``Kind``."""

    def register(do: Doing) -> Doing:
        KINDS.update(dict.fromkeys(names, Kind(do, **decides)))
        return do

    return register


def job(settings: Settings) -> Job:
    """Make the job of ``settings``, and before it those that it needs.

    Args:
        settings: All settings; an ensemble's are those of its members.
    """
    return KINDS[settings["kind"]].make(settings)


def based(settings: Settings, digests: Mapping[str, str], version: int | None) -> Settings:
    """Return settings that say what a result rests on: its data, by name, and the version of results."""
    return {**settings, "digest": digests.get(settings["data"]), "version": version}


def check_seeds(seeds: Sequence[int]) -> list[str]:
    """Return what is wrong with seeds, as sentences."""
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        return [f"seeds {shown(tuple(seeds))} are not different whole numbers of 0 or more."]
    return []


def with_tuples(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON values with a tuple in place of each list."""
    return {name: tuple(each) if isinstance(each, list) else each for name, each in value.items()}


def in_order(jobs: Iterable[Job]) -> Iterator[Job]:
    """Yield every job once, each after those that it needs."""
    seen: set[str] = set()

    def walk(each: Job) -> Iterator[Job]:
        if each.id not in seen:
            seen.add(each.id)
            for needed in each.needs:
                yield from walk(needed)
            yield each

    for each in jobs:
        yield from walk(each)
