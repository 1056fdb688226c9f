"""``sparsetune eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from sparsetune.cli import console, options
from sparsetune.data import NAMES, Data, loader, open_data
from sparsetune.errors import ConfigError, DataError
from sparsetune.header import Header
from sparsetune.inference import predict_logits
from sparsetune.machine import pick_device
from sparsetune.metrics import Scores, diversity, scores
from sparsetune.saving import inspect, load


def evaluate(
    deltas: Annotated[
        list[str],
        typer.Argument(help="One delta or several, files or hf://OWNER/NAME; several also as an ensemble."),
    ],
    data: Annotated[
        str | None,
        typer.Option("--data", help="As for fit; the data that the first delta was trained on if left out."),
    ] = None,
    test_limit: Annotated[
        int | None,
        typer.Option("--test-limit", help="Use so many test pictures, balanced over classes."),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", help="Pictures at a time.")] = 256,
    workers: Annotated[int, typer.Option("--workers", "-j", help="Processes that decode pictures.")] = 0,
    device: options.Device = None,
    backbone: options.BackboneFile = None,
    allow_network: options.AllowNetwork = False,
    as_json: options.Json = False,
) -> None:
    """Measure accuracy and calibration on test pictures.

    Example: sparsetune eval a.safetensors b.safetensors --data digits
    """
    place = pick_device(device)
    headers = [inspect(path) for path in deltas]
    source = data or _trained_on(headers[0])
    opened = open_data(source, test_limit=test_limit)
    for path, header in zip(deltas, headers, strict=True):
        _check_classes(path, header, opened)
    members, labels = [], torch.empty(0, dtype=torch.int64)
    with console.progress() as bars:
        for path, header in zip(deltas, headers, strict=True):
            net = load(path, backbone=backbone, allow_network=allow_network).to(place)
            batches = loader(
                opened.test,
                header.preprocessing or opened.preprocessing,
                batch_size=batch_size,
                workers=workers,
            )
            logits, labels = predict_logits(net, bars.track(batches, description=Path(path).name))
            members.append(logits.double().softmax(1))
    _print(deltas, opened, torch.stack(members), labels, as_json)


def _print(deltas: list[str], data: Data, members: Tensor, labels: Tensor, as_json: bool) -> None:
    found = [scores(member, labels) for member in members]
    value: dict[str, Any] = {
        "data": data.name,
        "pictures": len(labels),
        "members": [{"delta": path, **s.to_json()} for path, s in zip(deltas, found, strict=True)],
    }
    together = differ = None
    if len(deltas) > 1:
        together, differ = scores(members.mean(0), labels), diversity(members)
        value["ensemble"] = {**together.to_json(), **differ.to_json()}
    if as_json:
        console.print_json(value)
        return
    console.out.print(f"{len(labels):,} test pictures of {data.name}")
    rows = [[path, *_cells(s)] for path, s in zip(deltas, found, strict=True)]
    if together:
        rows.append(["ensemble", *_cells(together)])
    console.print_table(["delta", "top-1", "top-5", "NLL", "Brier", "ECE"], rows)
    if differ:
        console.out.print(
            f"mutual information {differ.mutual_information:.4f} nats, disagreement {differ.disagreement:.2%}"
        )


def _cells(s: Scores) -> tuple[str, ...]:
    return f"{s.top1:.2%}", f"{s.top5:.2%}", f"{s.nll:.4f}", f"{s.brier:.4f}", f"{s.ece:.4f}"


def _trained_on(header: Header) -> str:
    name = header.training.get("data")
    if name not in NAMES:
        raise ConfigError(
            f"the delta was trained on '{name}', which is not a built-in data set; pass --data."
        )
    return str(name)


def _check_classes(path: str, header: Header, data: Data) -> None:
    classes = header.classes
    if header.num_classes == len(data.classes) and classes in (None, data.classes):
        return
    named = f" ({', '.join(classes[:3])}, …)" if classes else ""
    raise DataError(
        f"{path} knows {header.num_classes} classes{named}, but {data.name} has "
        f"{len(data.classes)} ({', '.join(data.classes[:3])}, …); evaluate it on data of its own classes."
    )
