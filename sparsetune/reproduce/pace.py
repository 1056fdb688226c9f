"""What a training step of each entry takes: in turn, in one process, so that their times can be compared."""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import Any

from sparsetune.choice import Choice
from sparsetune.data import Feed
from sparsetune.errors import DataError
from sparsetune.malloc import keep_freed_memory
from sparsetune.processes import processes
from sparsetune.reproduce.entry import config_of, data_of, learning, plain_of
from sparsetune.reproduce.jobs import DEFAULTS, Settings
from sparsetune.reproduce.place import Place
from sparsetune.reproduce.store import open_store
from sparsetune.stepping import Stepper
from sparsetune.timing import take_turns

ROUNDS, WARMUP = 20, 3
LR = 1e-6
"""So small that nothing changes which could make a step slower or faster."""


def pace(settings: Settings, place: Place) -> list[dict[str, Any]]:
    """Take the time of a step of each entry, on the first batch of its training.

    Args:
        settings: Of a job whose needs, the entries ``of``, are done.
        place: Where the results and the data are.

    Returns:
        For each entry, in order: ``id`` of its job, median ``ms`` of a step, the least ``low`` and the most
        ``high``. One whose budget was never spent, as its training diverged, is left out.

    Raises:
        SparsetuneError: As ``create``, ``adapt_`` and ``open_data`` raise.
    """
    with open_store(place.folder, write=False) as store:
        rows = {row.id: row for row in store.rows() if row.id in settings["of"]}
    data, config = data_of(settings, place), config_of(settings, LR)
    if data.train is None:
        raise DataError(f"{data.name} has no training pictures; a step needs some.")
    keep_freed_memory()
    with processes(config.device, config.amp) as group:
        feed = Feed(data.train, data.preprocessing, group.device, batch_size=config.batch_size)
        x, y = next(iter(feed.epoch(config.seed)))
        size = (x.shape[1], x.shape[2], x.shape[3])
        actions = {}
        for identity in settings["of"]:
            entry, choice = {**DEFAULTS, **rows[identity].settings}, rows[identity].result.get("choice")
            if entry["budget"] and not entry["spread"] and choice is None:
                continue
            made = Choice.from_json(choice) if choice else None
            net, _ = learning(plain_of(entry, place), entry, data, config, made)
            actions[identity] = partial(Stepper(net.train(), config, 1, group, size).step, x, y, 0, len(y))
        found = take_turns(actions, str(group.device), rounds=ROUNDS, warmup=WARMUP)
    return [
        {"id": identity, "ms": median(times), "low": min(times), "high": max(times)}
        for identity, times in found.items()
    ]
