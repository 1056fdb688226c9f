"""``sparsetune plan`` and ``models``: what there is to learn, before anything is trained."""

from __future__ import annotations

from typing import Annotated

import typer

from sparsetune.backbone import Backbone, Origin, names, skeleton
from sparsetune.cli import console, options
from sparsetune.cli.options import Json
from sparsetune.errors import UnknownNameError
from sparsetune.parts import Part, arithmetic_share
from sparsetune.parts import plan as make_plan


def plan(
    model: options.Model,
    img_size: options.ImgSize = None,
    in_chans: options.InChans = None,
    model_kwargs: options.ModelKwargs = None,
    fraction: options.Fraction = None,
    filters: options.Filters = None,
    rank: options.Rank = None,
    dim: options.Dim = "out",
    layers: options.Layers = None,
    norm: options.Norm = True,
    head: options.Head = True,
    frozen: options.Frozen = None,
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
    learn = options.learn_from(fraction, filters, rank, dim, layers, norm, head, frozen)
    seeded = Backbone(kind="seed")
    kwargs = options.kwargs_from(model, img_size, in_chans, model_kwargs) or {}
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
    found = names(pattern)
    if not found:
        raise UnknownNameError("model", str(pattern), names())
    if as_json:
        console.print_json(found)
        return
    for name in found:
        console.out.print(name)
