"""Measures what is kept behind frozen layers, and what a search for a rate takes, as ratios in one process.

EfficientNet-Lite0 with the weights given, on the training pictures of a folder:

- ``head``: ten epochs of the classifier alone, over one pass of the pictures through the model;
- ``third``: an epoch of the last third (a tenth of its filters, and the classifier) where outputs of the
  layers before it are kept, over one in which everything is learned; the first, which computes them, stands
  apart;
- ``search``: the trials of ``--lr auto``, over the training that they are for.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from steps import write_rows

import sparsetune as st
from sparsetune.data import Data, Feed
from sparsetune.train import Epoch, find_rate, pictures_for, predict_logits

MODEL = "tf_efficientnet_lite0"
THIRD = ["blocks.5", "blocks.6", "conv_head"]
LONG = 170
"""Epochs of a training that is long enough for trials."""
SAME: dict[str, Any] = {"val_share": 0.0, "lr": 0.001, "scale": None, "aug": False}


def opened(folder: Path, weights: Path, size: int, learn: st.Learn | None) -> tuple[torch.nn.Module, Data]:
    """Return the model, which learns that, and the pictures as it takes them."""
    data = st.open_data(str(folder), size=size)
    net = st.create(MODEL, num_classes=len(data.classes), checkpoint=weights)
    data = pictures_for(net, data)
    return (st.adapt_(net, learn) if learn else net), data


def seconds(action: Callable[[], Any]) -> float:
    """Time one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def few(data: Data) -> Data:
    """Leave two pictures to test, so that epochs are trainings."""
    return replace(data, test=data.test.take(np.arange(2)))


def epochs_of(net: torch.nn.Module, data: Data, **config: Any) -> list[Epoch]:
    """Train and return the epochs."""
    return st.fit(net, data, st.FitConfig(**{**SAME, **config}))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows = []

    net, data = opened(given.data, given.weights, given.size, st.Learn(filters=0, norm=False))
    data, train = few(data), data.train
    assert train is not None
    feed = Feed(train, data.preprocessing, torch.device("cpu"), batch_size=32, channels_last=True)
    for _ in feed.epoch():  # decodes
        pass
    one_pass = min(seconds(lambda: predict_logits(net.eval(), feed.epoch())) for _ in range(3))
    ten = seconds(lambda: epochs_of(net, data, epochs=10))
    rows.append({"what": "head", "pass": one_pass, "ten_epochs": ten, "ratio": ten / one_pass})

    learn = st.Learn(fraction=0.1, layers=THIRD, norm=False, norm_stats="frozen")
    net, _ = opened(given.data, given.weights, given.size, learn)
    first, *later = [e.seconds for e in epochs_of(net, data, epochs=4, views=1)]
    net, _ = opened(given.data, given.weights, given.size, st.Learn(fraction=1.0))
    whole = min(e.seconds for e in epochs_of(net, data, epochs=3))
    kept = min(later)
    rows.append({"what": "third", "first": first, "kept": kept, "full": whole, "ratio": kept / whole})

    net, _ = opened(given.data, given.weights, given.size, st.Learn(filters=0, norm_stats="frozen"))
    long = {"opt": "adamw", "epochs": LONG, "batch_size": 16, "warmup_epochs": 15.0, "val_share": 0.0}
    config = st.FitConfig(lr="auto", channels_last=True, aug=False, **long)
    search = seconds(lambda: find_rate(net, data, config, st.fit))
    an_epoch = min(e.seconds for e in epochs_of(net, data, epochs=3, batch_size=16))
    ratio = search / (config.epochs * an_epoch)
    rows.append({"what": "search", "seconds": search, "epoch": an_epoch, "epochs": LONG, "ratio": ratio})
    write_rows(rows, given.out)


if __name__ == "__main__":
    main()
