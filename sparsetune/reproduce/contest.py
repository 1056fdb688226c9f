"""An entry of the comparison, trained by the one loop: its bytes and accuracy."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from torch import Tensor, nn

from sparsetune.choice import Choice
from sparsetune.data import Data, loader
from sparsetune.errors import DivergedError
from sparsetune.files import write_text
from sparsetune.folders import CHECKPOINT, DELTA
from sparsetune.inference import predict_logits
from sparsetune.lowrank import learned_tensors
from sparsetune.metrics import scores
from sparsetune.precision import VARIANCE, Precision, decode, encode
from sparsetune.reproduce.entry import config_of, data_of, learning, plain_of
from sparsetune.reproduce.jobs import Settings
from sparsetune.reproduce.place import Place
from sparsetune.reproduce.store import open_store
from sparsetune.saving import fill_rounded, save
from sparsetune.training import Watch, train

FEWER_BITS: tuple[Precision, ...] = ("bf16", "int8")
BATCH = 256
CHOICE = "choice.json"
"""Beside a checkpoint: what the budget is spent on, so that nothing is chosen twice."""


def contend(
    settings: Settings, place: Place, folder: Path, budget: float | None = None, watch: Watch | None = None
) -> dict[str, Any] | None:
    """Train an entry and measure what it comes to.

    Its bytes are those of our file, or of the values that a file of PEFT's would have to hold: adapters,
    normalisation, head and running statistics, without names. Both are scored in float32 and, rounded by the
    same code, in fewer bits.

    Args:
        settings: Of a job whose needs are done.
        place: Where the results and the data are.
        folder: For the checkpoint and, of ours, the delta.
        budget: Seconds after which the training is saved and stopped.
        watch: Called after each step and each epoch.

    Returns:
        What was measured, or ``None`` when the time was up before the end. ``seconds`` is the time of all of
        it since the last start, ``choosing_seconds`` that of choosing, where there is a budget.

    Raises:
        DivergedError: When a loss does not stay finite, or none did in tuning.
        SparsetuneError: As ``train`` raises.
    """
    began = time.monotonic()
    config = config_of(settings, best_rate(settings, place) if settings["lr"] is None else settings["lr"])
    data, net = data_of(settings, place), plain_of(settings, place)
    checkpoint, note = folder / CHECKPOINT, folder / CHOICE
    chosen = json.loads(note.read_text()) if checkpoint.is_file() and note.is_file() else {}
    ready = time.monotonic()
    known = Choice.from_json(chosen["choice"]) if chosen else None
    net, choice = learning(net, settings, data, config, known)
    if choice and not known:
        chosen = {"choice": choice.to_json(), "choosing_seconds": time.monotonic() - ready}
        write_text(note, json.dumps(chosen))
    same = {"entry": settings}
    history = train(
        net, data, config, same, checkpoint=checkpoint, resume=True, time_budget=budget, watch=watch
    )
    if len(history) < config.epochs:
        return None
    last = history[-1]
    result: dict[str, Any] = {
        "lr": config.lr,
        "top1": last.test_top1,
        "top5": last.test_top5,
        "loss": last.test_loss,
        "train_top1": last.train_top1,
        "train_loss": last.train_loss,
        "train_pictures": len(data.train or ()),
        "test_pictures": len(data.test),
        "learned_parameters": sum(value.numel() for value in net.parameters() if value.requires_grad),
    }
    result |= chosen
    if not settings["held_out"]:
        result["stored"] = [*_stored(net, settings, data, folder)]
    for path in (checkpoint, note):
        path.unlink(missing_ok=True)
    return {**result, "seconds": time.monotonic() - began}


def best_rate(settings: Settings, place: Place) -> float:
    """Return the learning rate that was best, on pictures held out, in the mean over the seeds that tuned it.

    Raises:
        DivergedError: When each diverged with some seed.
    """
    found: dict[float, list[dict[str, Any]]] = {}
    with open_store(place.folder, write=False) as store:
        for row in store.rows():
            if row.id in settings["of"]:
                found.setdefault(row.settings["lr"], []).append(row.result)
    merits = {
        rate: (fmean(result["top1"] for result in results), -fmean(result["loss"] for result in results))
        for rate, results in found.items()
        if all("top1" in result for result in results)
    }
    if not merits:
        raise DivergedError("no learning rate of the tuning converged with every seed.")
    return max(merits, key=lambda rate: merits[rate])


def _stored(net: nn.Module, settings: Settings, data: Data, folder: Path) -> Iterator[dict[str, Any]]:
    """Bytes and scores of what was learned, in each precision; ``net`` is rounded on the way.

    ``right`` has a bit for each test picture, in hexadecimal digits: whether it is classified rightly.
    """
    own = settings["kind"] == "ours"
    values = [] if own else learned_tensors(net)
    kept = [value.clone() for value in values]
    variances = {value.data_ptr() for name, value in net.named_buffers() if name.endswith(VARIANCE)}
    relative = [value.data_ptr() in variances for value in values]
    if own:
        save(net, folder / DELTA, classes=data.classes, preprocessing=data.preprocessing)
    whole = (folder / DELTA).stat().st_size if own else sum(value.nbytes for value in values)
    for dtype in (None, *FEWER_BITS):
        count = whole
        if dtype is not None:
            count = (
                fill_rounded(net, folder / DELTA, dtype)
                if own
                else _round_theirs(values, kept, relative, dtype)
            )
        batches = loader(data.test, data.preprocessing, batch_size=BATCH)
        logits, labels = predict_logits(net, batches)
        found = scores(logits.double().softmax(1), labels)
        right = np.packbits((logits.argmax(1) == labels).numpy()).tobytes().hex()
        yield {
            "dtype": dtype or "float32",
            "bytes": count,
            "top1": found.top1,
            "loss": found.nll,
            "right": right,
        }


def _round_theirs(values: list[Tensor], kept: list[Tensor], relative: list[bool], dtype: Precision) -> int:
    """Put the values ``kept``, rounded, into ``values``; return the bytes that they then take."""
    count = 0
    for value, exact, by_share in zip(values, kept, relative, strict=True):
        if value.is_floating_point():
            code, numbers, scale = encode(exact, dtype, by_share)
            value.copy_(decode(code, numbers, scale, tuple(exact.shape)))
            count += numbers.nbytes + scale.nbytes
        else:
            count += value.nbytes
    return count
