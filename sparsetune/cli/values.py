"""``sparsetune compress``, ``diff``, ``soup``, ``stack`` and ``bundle``: delta files as values."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsetune.cli import console, options
from sparsetune.errors import ConfigError
from sparsetune.spec import PRECISIONS

Out = Annotated[Path, typer.Option("--out", "-o", help="The delta to write.")]


def compress(
    delta: Annotated[Path, typer.Argument(help="A delta.")],
    out: Out,
    dtype: options.Compression = "int8",
    as_json: options.Json = False,
) -> None:
    """Write a delta in fewer bits; measure with eval what that costs.

    Example: sparsetune compress runs/NAME/delta.safetensors -o small.safetensors --dtype int8
    """
    if dtype not in PRECISIONS:
        raise ConfigError(f"dtype '{dtype}' is not one of {', '.join(PRECISIONS)}.")
    before = delta.stat().st_size if delta.is_file() else 0
    from sparsetune.delta import compress as compress_delta

    compress_delta(delta, out, dtype)
    after = out.stat().st_size
    if as_json:
        console.print_json({"delta": str(out), "bytes": after, "bytes_before": before})
        return
    console.out.print(f"{out}  ({console.size(after)}, {after / before:.1%} of {console.size(before)})")
    console.out.print(f"\nnext: {shlex.join(['sparsetune', 'eval', str(delta), str(out)])}")


def diff(
    first: Annotated[Path, typer.Argument(help="A delta.")],
    second: Annotated[Path, typer.Argument(help="Another of the same model and learn spec.")],
    as_json: options.Json = False,
) -> None:
    """Compare two deltas, tensor by tensor.

    Example: sparsetune diff a.safetensors b.safetensors
    """
    from sparsetune.delta import diff as diff_deltas

    changes = diff_deltas(first, second)
    if as_json:
        console.print_json([change.to_json() for change in changes])
        return
    rows = [
        [c.name, f"{c.differing:,} of {c.values:,}", f"{c.largest:.3g}", f"{c.relative:.2%}"] for c in changes
    ]
    console.print_table(["tensor", "values that differ", "largest", "relative"], rows)


def soup(
    deltas: Annotated[list[Path], typer.Argument(help="Two deltas or more, over one backbone.")],
    out: Out,
    weights: Annotated[
        str | None, typer.Option("--weights", help="One number a delta, such as 2,1,1; equal if left out.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Average deltas into one.

    Example: sparsetune soup a.safetensors b.safetensors -o mean.safetensors
    """
    numbers = None if weights is None else _numbers(weights)
    from sparsetune.delta import soup as soup_deltas

    soup_deltas(deltas, out, numbers)
    value: dict[str, Any] = {"delta": str(out), "bytes": out.stat().st_size}
    if as_json:
        console.print_json(value)
        return
    console.out.print(f"{out}  ({console.size(value['bytes'])}, the average of {len(deltas)} deltas)")
    words = ["sparsetune", "eval", *map(str, deltas), str(out)]
    console.out.print(f"\nnext: {shlex.join(words)}")


def stack(
    deltas: Annotated[
        list[Path], typer.Argument(help="Two deltas or more, over one backbone, of different layers.")
    ],
    out: Out,
    backbone: options.BackboneFile = None,
    allow_network: options.AllowNetwork = False,
    as_json: options.Json = False,
) -> None:
    """Put deltas that learned different layers into one; others are refused.

    Example: sparsetune stack early.safetensors late.safetensors -o both.safetensors
    """
    from sparsetune.delta import stack as stack_deltas

    stack_deltas(deltas, out, backbone=backbone, allow_network=allow_network)
    value: dict[str, Any] = {"delta": str(out), "bytes": out.stat().st_size}
    if as_json:
        console.print_json(value)
    else:
        console.out.print(f"{out}  ({console.size(value['bytes'])}, {len(deltas)} deltas in one)")


def bundle(
    deltas: Annotated[
        list[str], typer.Argument(help="Deltas over one backbone, each as a path or as NAME=PATH.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The bundle to write.")],
    backbone: Annotated[
        Path | None,
        typer.Option("--backbone", help="The checkpoint that they stand on, to put it inside too."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Put deltas, and the checkpoint that they stand on, into one file that eval, Tasks and Ensemble take.

    Example: sparsetune bundle cats=a.safetensors cars=b.safetensors -o all.safetensors
    """
    files = dict(_named(word) for word in deltas)
    if len(files) < len(deltas):
        raise ConfigError("two deltas have the same name; say NAME=PATH for each.")
    from sparsetune.delta import bundle as write_bundle

    write_bundle(files, out, backbone)
    if as_json:
        console.print_json({"bundle": str(out), "bytes": out.stat().st_size, "names": list(files)})
    else:
        names = ", ".join(files)
        console.out.print(f"{out}  ({console.size(out.stat().st_size)}; {names})")


def _named(word: str) -> tuple[str, Path]:
    name, equals, given = word.partition("=")
    if equals:
        return name, Path(given)
    path = Path(word)
    return (path.parent.name if path.stem == "delta" and path.parent.name else path.stem), path


def _numbers(text: str) -> list[float]:
    try:
        return [float(piece) for piece in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"weights '{text}' are not numbers with commas between, such as 2,1,1.") from error
