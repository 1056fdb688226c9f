"""``sparsetune predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from sparsetune.cli import console, options
from sparsetune.data import decode
from sparsetune.errors import ConfigError
from sparsetune.machine import pick_device
from sparsetune.outputs import logits_of
from sparsetune.saving import inspect, load


def predict(
    delta: options.Delta,
    images: Annotated[list[Path], typer.Argument(help="One picture or several.")],
    top: Annotated[int, typer.Option("--top", min=1, help="Show so many classes of each.")] = 5,
    device: options.Device = None,
    backbone: options.BackboneFile = None,
    allow_network: options.AllowNetwork = False,
    as_json: options.Json = False,
) -> None:
    """Name what is in pictures.

    Example: sparsetune predict runs/NAME/delta.safetensors cat.jpg
    """
    place = pick_device(device)
    header = inspect(delta)
    if header.preprocessing is None:
        raise ConfigError(f"{delta} does not say how pictures are prepared; save it with preprocessing=...")
    pictures = [decode(path, f"image '{path}'") for path in images]
    x = torch.stack([header.preprocessing.apply(picture) for picture in pictures])
    net = load(delta, backbone=backbone, allow_network=allow_network).to(place)
    with torch.inference_mode():
        probabilities = logits_of(net(x.to(place))).softmax(1).cpu()
    classes = header.classes or tuple(str(i) for i in range(probabilities.shape[1]))
    found = []
    for path, row in zip(images, probabilities, strict=True):
        values, indices = row.topk(min(top, len(row)))
        ranked = [(classes[i], v) for i, v in zip(indices.tolist(), values.tolist(), strict=True)]
        found.append({"image": str(path), "classes": [{"name": n, "probability": p} for n, p in ranked]})
        if not as_json:
            console.out.print(str(path), style="bold")
            for name, probability in ranked:
                console.out.print(f"  {probability:7.2%}  {name}")
    if as_json:
        console.print_json(found)
