"""``write_finished``: the delta of a finished run, which tells how it was trained and what it scores."""

from __future__ import annotations

import copy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from sparsetune.data import Data, loader
from sparsetune.data.sources import told
from sparsetune.fetch import is_address
from sparsetune.filesize import longest_noted
from sparsetune.inference import predict_logits
from sparsetune.metrics import scores
from sparsetune.saving import fill_rounded, save
from sparsetune.settings import Run
from sparsetune.training import Epoch


def write_finished(net: nn.Module, path: Path, settings: Run, data: Data, last: Epoch) -> None:
    """Save what a run has learned.

    The result in the file is that of the last epoch, but for the test scores of a file in fewer bits, which
    are measured with the values that it gives back. Where these bits cannot hold a value, the file has all.

    Args:
        net: The trained model; it is not changed.
        path: The file.
        settings: Of the run.
        data: What it was trained on.
        last: The record of its last epoch.

    Raises:
        DeltaError: When a value is beyond what the settings' ``dtype`` holds.
        SparsetuneError: As ``save`` raises.
    """
    save(net, path, **_said(settings, data, last))
    if settings.dtype:
        rounded = copy.deepcopy(net)
        fill_rounded(rounded, path, settings.dtype)
        batches = loader(data.test, data.preprocessing, batch_size=settings.config.batch_size)
        logits, labels = predict_logits(rounded, batches)
        found = scores(logits.double().softmax(1), labels)
        last = replace(last, test_top1=found.top1, test_top5=found.top5, test_loss=found.nll)
        save(net, path, **_said(settings, data, last), dtype=settings.dtype)


def longest_said(settings: Run, data: Data) -> dict[str, Any]:
    """What a finished file will say beside its values, with results as long as numbers can be."""
    values: dict[str, Any] = dict.fromkeys((field.name for field in fields(Epoch)), -1.2345678901234567e-300)
    said = _said(settings, data, Epoch(**{**values, "epoch": settings.config.epochs}))
    return {**said, "training": said["training"] | longest_noted(settings.budget or 0)}


def _said(settings: Run, data: Data, last: Epoch) -> dict[str, Any]:
    """What the file says beside its values."""
    start = settings.init_from
    training = {
        "data": told(data.source),
        "train_pictures": len(data.train or ()),
        "options": {
            "size": settings.size,
            "train_limit": settings.train_limit,
            "test_limit": settings.test_limit,
            "init_from": start if start is None or is_address(start) else Path(start).name,
            **({"dtype": settings.dtype} if settings.dtype else {}),
        },
        "config": settings.config.decisive,
        "result": {k: v for k, v in last.to_json().items() if k != "seconds"},
    }
    return {"classes": data.classes, "preprocessing": data.preprocessing, "training": training}
