"""``sparsetune models``, ``plan``, ``bench`` and ``doctor``: what there is to learn, where, at what cost."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsetune.cli import console, options
from sparsetune.cli.options import Json
from sparsetune.errors import UnknownNameError

if TYPE_CHECKING:
    from sparsetune.bench import Row
    from sparsetune.parts import Part


EXTRAS = {"onnx": "onnxruntime", "peft": "peft", "ray": "ray"}
"""Extra -> the library that it brings."""
SEEDED = "003fd2ede3a410cf172466c5c46fab426333909732bf0cd9a6ef87f9b20feed3"
"""Fingerprint of a WRN-10-1 from seed 0 of which a tenth is learned."""
WRONG = 1
"""Exit code of ``doctor`` where seeds give other values than they must."""


def plan(
    *,
    model: options.Model,
    img_size: options.ImgSize = None,
    in_chans: options.InChans = None,
    model_kwargs: options.ModelKwargs = None,
    learned: options.Learned,
    num_classes: Annotated[int, typer.Option("--num-classes", min=1, help="Class count.")] = 10,
    size: Annotated[
        int | None,
        typer.Option("--size", min=1, help="Picture side for the arithmetic; the model's own if left out."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Show what would be learned, and what it would cost, without training.

    Example: sparsetune plan --model densenet100_12 --fraction 0.1
    """
    learn = learned.made()
    kwargs = options.kwargs_from(model, img_size, in_chans, model_kwargs) or {}
    from sparsetune.backbone import Backbone, Origin, skeleton
    from sparsetune.parts import arithmetic_share
    from sparsetune.parts import plan as make_plan

    seeded = Backbone(kind="seed")
    net = skeleton(
        Origin(library="timm", name=model, kwargs=kwargs, num_classes=num_classes, backbone=seeded)
    )
    made = make_plan(net, learn)
    share = arithmetic_share(net, made, size)
    if as_json:
        console.print_json({"model": model, **made.to_json(), "arithmetic_share": share})
        return
    console.print_table(["parameter", "shape", "learned", "values"], [_row(part) for part in made])
    fields = [
        ("learned", console.share(made.learned_parameters, made.total_parameters)),
        ("delta", f"about {console.size(made.delta_bytes)}"),
    ]
    if made.stored_bytes:
        fields.append(("stored", f"{console.size(made.stored_bytes)} of that: values that no seed gives"))
    if share is not None:
        fields.append(("arithmetic", f"about {share:.0%} of a full training step's"))
    console.out.print()
    console.print_fields(fields)
    for line in made.notes:
        console.out.print(line)


def _row(part: Part) -> list[str]:
    return [part.name, "x".join(map(str, part.shape)), part.share, f"{part.learned_numel:,}"]


def models(
    pattern: Annotated[
        str | None, typer.Argument(help="Such as wrn* or resnet; all names if left out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the names of models that can be adapted.

    Example: sparsetune models wrn
    """
    from sparsetune.backbone import names

    found = names(pattern)
    if not found:
        raise UnknownNameError("model", str(pattern), names())
    if as_json:
        console.print_json(found)
        return
    for name in found:
        console.out.print(name)


def bench(
    *,
    model: options.Model = "wrn28_4",
    img_size: options.ImgSize = None,
    in_chans: options.InChans = None,
    model_kwargs: options.ModelKwargs = None,
    learned: options.LearnedOverSeed,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Pictures a step.")] = 32,
    size: Annotated[
        int | None, typer.Option("--size", min=1, help="Picture side; --img-size, or 32, if left out.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Counted rounds.")] = 10,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads; all if left out.")
    ] = None,
    amp: Annotated[bool, typer.Option("--amp", help="Use bf16 autocast.")] = False,
    device: options.Device = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw the ratios into this PNG file.")] = None,
    as_json: options.Json = False,
) -> None:
    """Compare full training, ours, masked gradients and PEFT's LoRA here: time, memory, storage, as ratios.

    LoRA learns about as many values as ours; its row needs sparsetune[peft].

    Example: sparsetune bench --model wrn28_4 --fraction 0.1 --plot bench.png
    """
    learn = learned.made()
    kwargs = options.kwargs_from(model, img_size, in_chans, model_kwargs) or {}
    import torch

    from sparsetune.backbone import create
    from sparsetune.bench import Workload, draw_bench
    from sparsetune.bench import bench as measure
    from sparsetune.host import describe_machine, pick_device

    if threads:
        torch.set_num_threads(threads)
    place = str(pick_device(device))
    channels, size = kwargs.get("in_chans", 3), size or kwargs.get("img_size", 32)
    with console.progress() as bars:
        task = bars.add_task(f"{model}", total=None)
        rows, missing = measure(
            create(model, num_classes=10, **kwargs),
            learn,
            Workload(
                batch_size=batch_size,
                size=(channels, size, size),
                device=place,
                rounds=rounds,
                amp=torch.bfloat16 if amp else None,
            ),
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    for name, reason in missing.items():
        console.err.print(f"{name} is left out: {reason}")
    settings = {
        "model": model,
        **({"model_kwargs": kwargs} if kwargs else {}),
        "learn": learn.to_json(),
        "batch_size": batch_size,
        "size": size,
        "rounds": rounds,
    }
    settings |= {"device": place, "amp": amp}
    found = {**settings, **describe_machine(), "rows": [row.to_json() for row in rows]}
    if as_json:
        console.print_json(found)
    else:
        where = f"{place}, threads {torch.get_num_threads()}" if place == "cpu" else place
        console.out.print(
            f"{model}, batches of {batch_size}x{channels}x{size}x{size}, {where}; medians of {rounds} rounds"
        )
        console.print_table(["", "median", "least", "most", "of full"], list(_lines(rows)))
    if plot:
        draw_bench([found], plot)


def _lines(rows: list[Row]) -> Iterator[list[str]]:
    """A block for each measure, and in it a line for each contestant that has it."""
    from sparsetune.bench import MEASURES, amount

    yield ["learned values", "", "", "", ""]
    for row in rows:
        share = row.learned_parameters / rows[0].learned_parameters
        yield [f"  {row.name}", f"{row.learned_parameters:,}", "", "", f"{share:.3f}"]
    for key, (words, unit) in MEASURES.items():
        yield [words, "", "", "", ""]
        for row in rows:
            if each := row.figures.get(key):
                least, most = (amount(value, unit) if unit == "ms" else "" for value in (each.low, each.high))
                ratio = "" if each.ratio is None else f"{each.ratio:.2f}"
                yield [f"  {row.name}", amount(each.median, unit), least, most, ratio]


def doctor(as_json: Json = False) -> None:
    """Tell what sparsetune finds on this machine, and try whether seeds give the values that they must.

    Its output is what a report of a fault needs. The exit code is 1 where a seed gives other values.

    Example: sparsetune doctor
    """
    from importlib.metadata import PackageNotFoundError, version

    from sparsetune.backbone import create
    from sparsetune.data import cache_folder
    from sparsetune.host import describe_machine, pick_device, usable_bytes
    from sparsetune.sliced import adapt_, adapted
    from sparsetune.spec import Learn

    extras: dict[str, str | None] = dict.fromkeys(EXTRAS)
    for extra, library in EXTRAS.items():
        with suppress(PackageNotFoundError):
            extras[extra] = f"{library} {version(library)}"
    net = adapt_(create("wrn28_4", depth=10, width=1, num_classes=10), Learn(fraction=0.1))
    found = {
        **describe_machine(),
        "platform": platform.platform(),
        "device": str(pick_device()),
        "usable_bytes": usable_bytes(),
        "extras": extras,
        "data_folder": str(cache_folder()),
        "seeds_are_right": adapted(net).fingerprint == SEEDED,
    }
    if as_json:
        console.print_json(found)
    else:
        console.print_fields([*_told(found)])
    if not found["seeds_are_right"]:
        raise typer.Exit(WRONG)


def _told(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What ``doctor`` found, in words."""
    yield "versions", ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    yield "platform", found["platform"]
    yield "processor", f"{found['processor']} ({found['instructions']}), {found['threads']} threads"
    yield "trains on", found["accelerator"] if found["device"] == "cuda" else found["device"]
    room = found["usable_bytes"]
    yield (
        "memory",
        "not told" if room is None else f"{console.size(room)} for one model (half of what is free)",
    )
    for extra, there in found["extras"].items():
        yield extra, there or f"not here; pip install 'sparsetune[{extra}]'"
    yield "data", found["data_folder"]
    yield "seeds", "give the right values" if found["seeds_are_right"] else "GIVE OTHER VALUES: report this"
