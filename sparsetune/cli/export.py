"""``sparsetune export``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sparsetune.adapt import merge_
from sparsetune.cli import console, options
from sparsetune.errors import ConfigError
from sparsetune.export import export_onnx
from sparsetune.saving import inspect, load


def export(
    delta: options.Delta,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write, ending in .onnx.")],
    backbone: options.BackboneFile = None,
    allow_network: options.AllowNetwork = False,
    as_json: options.Json = False,
) -> None:
    """Write one ONNX file with backbone and slices in one, for any batch size; needs `sparsetune[onnx]`.

    Its metadata carries class names and preprocessing as JSON, under `classes` and `preprocessing`.

    Example: sparsetune export runs/NAME/delta.safetensors -o cats.onnx
    """
    if out.suffix != ".onnx":
        raise ConfigError(f"'{out}' does not end in .onnx, the one format that export writes; rename it.")
    header = inspect(delta)
    if header.preprocessing is None:
        raise ConfigError(f"{delta} does not say how pictures are prepared; save it with preprocessing=...")
    metadata = {
        "model": f"{header.library} {header.model}",
        "preprocessing": json.dumps(header.preprocessing.to_json()),
    }
    if header.classes:
        metadata["classes"] = json.dumps(header.classes)
    net = merge_(load(delta, backbone=backbone, allow_network=allow_network))
    difference = export_onnx(net, out, header.preprocessing.size, metadata)
    if as_json:
        console.print_json({"onnx": str(out), "bytes": out.stat().st_size, "largest_difference": difference})
        return
    checked = (
        "not run: onnxruntime is not installed"
        if difference is None
        else f"run with onnxruntime: outputs differ from torch's by at most {difference:.1e}"
    )
    console.out.print(f"{out}  ({console.size(out.stat().st_size)}, {checked})")
