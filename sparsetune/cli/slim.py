"""``sparsetune slim``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsetune.adapt import adapted
from sparsetune.cli import console, options
from sparsetune.saving import inspect, load
from sparsetune.slim import pictures
from sparsetune.slim import slim as narrowed
from sparsetune.slimfile import write_slim


def slim(
    delta: options.Delta,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write, ending in .safetensors.")],
    backbone: options.BackboneFile = None,
    allow_network: options.AllowNetwork = False,
    as_json: options.Json = False,
) -> None:
    """Write a zeroed network (fit --frozen zero) without its zero filters: smaller, faster, same outputs.

    Example: sparsetune slim runs/NAME/delta.safetensors -o slim.safetensors
    """
    options.check_out(out, delta, "slim", "slim network")
    header = inspect(delta)
    net = load(delta, backbone=backbone, allow_network=allow_network)
    made = adapted(net).plan
    form = header.preprocessing
    small = narrowed(net, pictures(net, form.size) if form else None)
    write_slim(out, small, header)
    counts = {
        "parameters": sum(parameter.numel() for parameter in small.parameters()),
        "learned_parameters": made.learned_parameters,
        "total_parameters": made.total_parameters,
    }
    if as_json:
        console.print_json({"slim": str(out), "bytes": out.stat().st_size, **counts})
    else:
        words = f"{counts['parameters']:,} values of the network's {counts['total_parameters']:,}"
        console.out.print(f"{out}  ({console.size(out.stat().st_size)}, {words})")
