"""``sparsetune predict``."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from sparsetune.backbone import logits_of
from sparsetune.cli import console, options
from sparsetune.data import Preprocessing, decode, scan
from sparsetune.delta import inspect, load
from sparsetune.errors import ConfigError, DataError
from sparsetune.host import pick_device

SOME_FAILED, ALL_FAILED = 1, 2
"""Exit codes where some pictures, or all, cannot be read."""


def predict(
    delta: options.Delta,
    images: Annotated[
        list[str], typer.Argument(help="Pictures, folders of pictures, or patterns such as 'photos/*.jpg'.")
    ],
    top: Annotated[int, typer.Option("--top", min=1, help="Show so many classes of each.")] = 5,
    batch_size: Annotated[
        int, typer.Option("--batch-size", "-b", min=1, help="Pictures at a time; memory grows with it.")
    ] = 32,
    device: options.Device = None,
    backbone: options.BackboneFile = None,
    allow_network: options.AllowNetwork = False,
    as_json: options.Json = False,
) -> None:
    """Name what is in pictures.

    Example: sparsetune predict runs/NAME/delta.safetensors cat.jpg photos/

    Pictures that cannot be read are named on stderr, and the others answered; the exit code is then 1.
    """
    place = pick_device(device)
    header = inspect(delta)
    if header.preprocessing is None:
        raise ConfigError(f"{delta} does not say how pictures are prepared; save it with preprocessing=...")
    named = [each for word in images for each in _pictures(word)]
    if all(error for _, error in named):
        raise DataError("\n".join(str(error) for _, error in named))
    net = load(delta, backbone=backbone, allow_network=allow_network).to(place)
    found: list[dict[str, Any]] = []
    for start in range(0, len(named), batch_size):
        batch = named[start : start + batch_size]
        answers = [(name, error or _read(name, header.preprocessing)) for name, error in batch]
        readable = [x for _, x in answers if isinstance(x, Tensor)]
        if readable:
            with torch.inference_mode():
                rows = iter(logits_of(net(torch.stack(readable).to(place))).softmax(1).cpu())
        for name, answer in answers:
            if isinstance(answer, DataError):
                console.complain(answer)
                found.append({"image": name, "error": str(answer)})
                continue
            ranked = _ranked(next(rows), header.classes, top)
            found.append({"image": name, "classes": [{"name": n, "probability": p} for n, p in ranked]})
            if not as_json:
                console.out.print(name, style="bold")
                for label, probability in ranked:
                    console.out.print(f"  {probability:7.2%}  {label}")
    failed = sum("error" in each for each in found)
    if failed == len(found):
        raise typer.Exit(ALL_FAILED)
    if as_json:
        console.print_json(found)
    if failed:
        raise typer.Exit(SOME_FAILED)


def _pictures(word: str) -> Iterator[tuple[str, DataError | None]]:
    """Yield the pictures that an argument names, in the order of their names, or why there are none."""
    path = Path(word).expanduser()
    matches = [] if path.exists() else glob.glob(str(path), recursive=True)  # noqa: PTH207 (no hidden files)
    if matches:
        for match in sorted(matches):
            yield from _pictures(match)
    elif path.is_dir():
        inside = scan(path).below()
        yield from ((picture, None) for picture in inside)
        if not inside:
            yield str(path), DataError(f"folder '{path}' holds no pictures; name one that does.")
    else:
        yield str(path), None


def _read(picture: str, preprocessing: Preprocessing) -> Tensor | DataError:
    """The model's input, or why there is none."""
    try:
        return preprocessing.apply(decode(picture, f"image '{picture}'"))
    except DataError as error:
        return error


def _ranked(row: Tensor, classes: tuple[str, ...] | None, top: int) -> list[tuple[str, float]]:
    values, indices = row.topk(min(top, len(row)))
    pairs = zip(indices.tolist(), values.tolist(), strict=True)
    return [(classes[index] if classes else str(index), value) for index, value in pairs]
