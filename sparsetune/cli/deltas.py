"""``sparsetune info``, ``verify`` and ``merge``: what to do with a delta file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsetune.adapt import merge_
from sparsetune.cli import console, options
from sparsetune.errors import SparsetuneError
from sparsetune.fetch import fetch
from sparsetune.header import Header
from sparsetune.saving import inspect, load, write_plain
from sparsetune.saving import verify as check


def info(delta: options.Delta, as_json: options.Json = False) -> None:
    """Show all that a delta file says of itself, without building the model.

    Example: sparsetune info runs/NAME/delta.safetensors
    """
    header = inspect(delta)
    size = fetch(delta).stat().st_size
    if as_json:
        tensors = [{"name": e.name, "dtype": e.dtype, "shape": list(e.shape)} for e in header.entries]
        value = {
            **header.to_json(),
            "file_bytes": size,
            "tensor_bytes": header.learned_bytes,
            "tensors": tensors,
        }
        console.print_json(value)
        return
    console.print_fields(_rows(header, size))


def verify(
    delta: options.Delta,
    backbone: options.BackboneFile = None,
    allow_network: options.AllowNetwork = False,
    as_json: options.Json = False,
) -> None:
    """Rebuild the model and check the backbone's fingerprint and every tensor; exit code 0 or 1.

    Example: sparsetune verify runs/NAME/delta.safetensors
    """
    try:
        header = check(delta, backbone=backbone, allow_network=allow_network)
    except SparsetuneError as error:
        if as_json:
            console.print_json({"delta": delta, "intact": False, "reason": str(error)})
        else:
            console.complain(error)
        raise typer.Exit(1) from error
    if as_json:
        console.print_json({"delta": delta, "intact": True, "fingerprint": header.fingerprint})
    else:
        words = f"{len(header.entries)} tensors, backbone {header.backbone.describe()}"
        console.out.print(f"{delta}: intact ({words}, fingerprint {header.fingerprint[:12]}…)")


def merge(
    delta: options.Delta,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The checkpoint to write, ending in .safetensors.")
    ],
    backbone: options.BackboneFile = None,
    allow_network: options.AllowNetwork = False,
    as_json: options.Json = False,
) -> None:
    """Write a plain timm or torchvision checkpoint with backbone and slices in one.

    Example: sparsetune merge runs/NAME/delta.safetensors -o whole.safetensors
    """
    options.check_out(out, delta, "merge", "checkpoint")
    header = inspect(delta)
    net = merge_(load(delta, backbone=backbone, allow_network=allow_network))
    write_plain(net, out)
    use = f"{header.library}: {header.model}, num_classes={header.num_classes}"
    if as_json:
        console.print_json(
            {"checkpoint": str(out), "bytes": out.stat().st_size, "tensors": len(net.state_dict())}
        )
    else:
        console.out.print(f"{out}  ({console.size(out.stat().st_size)}, a plain checkpoint of {use})")


def _rows(header: Header, size: int) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = [
        ("model", f"{header.library} {header.model}, {header.num_classes} classes"),
        ("backbone", header.backbone.describe()),
        ("fingerprint", header.fingerprint),
        ("learned", header.learn.describe()),
        ("tensors", f"{len(header.entries)}, together {console.size(header.learned_bytes)}"),
        ("file", f"{console.size(size)}, format {header.format}"),
    ]
    if header.kwargs:
        rows.insert(1, ("arguments", ", ".join(f"{k}={v}" for k, v in header.kwargs.items())))
    if header.classes:
        names = ", ".join(header.classes[:10])
        rows.append(("classes", names + (f", … ({len(header.classes)})" if len(header.classes) > 10 else "")))
    if header.preprocessing:
        p = header.preprocessing
        rows.append(
            ("pictures", f"{'x'.join(map(str, p.size))}, mean {p.mean}, std {p.std}, {p.interpolation}")
        )
    result = header.training.get("result")
    if isinstance(result, dict) and isinstance(result.get("test_top1"), float):
        rows.append(("test accuracy", f"{result['test_top1']:.2%} on {header.training.get('data')}"))
    rows.append(("written by", ", ".join(f"{k} {v}" for k, v in header.versions.items())))
    return rows
