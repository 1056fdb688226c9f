"""Options that several commands share, and the values that they make."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsetune.backbone import plain_arguments
from sparsetune.errors import ConfigError
from sparsetune.host import fetch
from sparsetune.spec import Learn

LEARNED, DATA, TRAINING, RUN = "What is learned", "Data", "Training", "Run"
"""Panels of the help."""
WORDS = {"true": True, "false": False, "null": None}
"""Values as JSON writes them."""

Model = Annotated[
    str, typer.Option("--model", help="timm name, torchvision/NAME, or one of ours; see `sparsetune models`.")
]
ImgSize = Annotated[
    int | None,
    typer.Option("--img-size", min=1, help="Picture side that the model is built for, where it asks."),
]
InChans = Annotated[
    int | None,
    typer.Option("--in-chans", min=1, help="Channels that the model takes; 1 makes pictures grey."),
]
ModelKwargs = Annotated[
    list[str] | None,
    typer.Option(
        "--model-kwargs",
        metavar="KEY=VALUE",
        help="Argument of the model's constructor, such as depth=16; several in quotes, or repeated.",
    ),
]
Fraction = Annotated[
    float | None,
    typer.Option(
        "--fraction",
        rich_help_panel=LEARNED,
        help="Learn this fraction of each layer's filters; 0.1 is 10 %.",
    ),
]
Filters = Annotated[
    int | None,
    typer.Option("--filters", rich_help_panel=LEARNED, help="Learn this many filters of each layer instead."),
]
Rank = Annotated[
    int | None,
    typer.Option(
        "--rank",
        rich_help_panel=LEARNED,
        help="Learn a low-rank sum over each layer's frozen weight instead.",
    ),
]
Dim = Annotated[
    str,
    typer.Option(
        "--dim", rich_help_panel=LEARNED, help="Sliced dimension: out (filters), in, height or width."
    ),
]
Layers = Annotated[
    list[str] | None,
    typer.Option(
        "--layers",
        rich_help_panel=LEARNED,
        help="Slice only layers under modules of this name or pattern; may be repeated.",
    ),
]
Norm = Annotated[
    bool,
    typer.Option("--norm/--no-norm", rich_help_panel=LEARNED, help="Learn normalisation's scale and shift."),
]
Head = Annotated[
    bool, typer.Option("--head/--no-head", rich_help_panel=LEARNED, help="Learn the classifier.")
]
Frozen = Annotated[
    str | None,
    typer.Option(
        "--frozen",
        rich_help_panel=LEARNED,
        help="What the rest of sliced layers must be: random, zero or pretrained.",
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        "--budget",
        rich_help_panel=LEARNED,
        help="Choose what is learned, so that the delta has at most this size, such as 200KB.",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        rich_help_panel=RUN,
        help="How the delta keeps its values: float32, bf16, fp16, or int8 with a scale for each filter. "
        "float32 if left out; with --budget int8, which has room for nearly four times as many.",
    ),
]
Pretrained = Annotated[
    bool,
    typer.Option("--pretrained", rich_help_panel=LEARNED, help="Stand on published weights, not on a seed."),
]
BackboneSeed = Annotated[
    int,
    typer.Option("--backbone-seed", rich_help_panel=LEARNED, help="Seed of the frozen values."),
]
Delta = Annotated[str, typer.Argument(help="A delta: a file, or hf://OWNER/NAME.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for machines.")]
DataName = Annotated[
    str,
    typer.Option(
        "--data",
        rich_help_panel=DATA,
        help="digits, cifar10, cifar100, tiny-imagenet, hf://datasets/NAME, or a folder (images, Parquet).",
    ),
]
BackboneFile = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="A .safetensors checkpoint that the delta stands on, or of the published weights that it does.",
    ),
]
AllowNetwork = Annotated[
    bool, typer.Option("--allow-network", help="Let published weights that the delta stands on be fetched.")
]
Device = Annotated[str | None, typer.Option("--device", help="cpu or cuda; by default what there is.")]


def learn_from(
    fraction: float | None,
    filters: int | None,
    rank: int | None,
    dim: Any,
    layers: list[str] | None,
    norm: bool,
    head: bool,
    frozen: Any,
) -> Learn:
    """Make the learn spec from a command's options."""
    return Learn(
        fraction=fraction,
        filters=filters,
        rank=rank,
        dim=dim,
        layers=tuple(layers) if layers else None,
        norm=norm,
        head=head,
        frozen=frozen,
    )


def kwargs_from(
    model: str, img_size: int | None, in_chans: int | None, pairs: Sequence[str] | None
) -> dict[str, Any] | None:
    """Make the arguments of a model's constructor; a value is read as Python writes it, or else as text.

    Returns:
        ``None`` where there are none.

    Raises:
        ConfigError: When a word is not ``key=value``, a key comes twice, or a delta cannot hold a value.
    """
    own = {"img_size": img_size, "in_chans": in_chans}
    found: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
    for words in pairs or ():
        for word in re.split(r"\s+(?=[^\s=\[({'\"]+=)", words.strip()):
            key, sign, text = word.partition("=")
            if not sign or not key.isidentifier():
                raise ConfigError(f"--model-kwargs '{word}' is not KEY=VALUE, such as depth=16.")
            if key in found:
                raise ConfigError(f"the model argument '{key}' is given twice; keep one.")
            try:
                found[key] = ast.literal_eval(text)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                found[key] = WORDS.get(text, text)
    return plain_arguments(model, found) or None


def check_out(out: Path, delta: str, command: str, what: str) -> None:
    """Refuse a place where a command cannot write what it makes of a delta."""
    if out.suffix != ".safetensors":
        raise ConfigError(
            f"'{out}' does not end in .safetensors, the one format that {command} writes; rename it."
        )
    if out.exists() and (source := fetch(delta)).exists() and out.samefile(source):
        raise ConfigError(f"'{out}' is the delta itself; choose another name for the {what}.")
