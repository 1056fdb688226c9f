"""Options that several commands share, and the values that they make.

A command takes the fields of a settings' class by one parameter, such as ``learn: options.Learned``;
:func:`expanded` puts an option for each field in its place, as ``spec.Option`` describes it.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, get_type_hints

import typer

from sparsetune.errors import ConfigError
from sparsetune.host import bytes_from, fetch
from sparsetune.spec import PRECISIONS, TRANSFER, FitConfig, Learn, Option, options_of

LEARNED, DATA, TRAINING, RUN = "What is learned", "Data", "Training", "Run"
"""Panels of the help."""
WORDS = {"true": True, "false": False, "null": None}
"""Values as JSON writes them."""

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Given(Generic[Settings]):
    """What a command was given for the fields of a settings' class; what was left out is not there."""

    kind: type[Settings]
    values: dict[str, Any]

    def made(self, **instead: Any) -> Settings:
        """Return the settings.

        Raises:
            SparsetuneError: When they cannot be used.
        """
        said = options_of(self.kind)
        given = {name: _read(said[name], value) for name, value in self.values.items()}
        return self.kind(**{**given, **instead})


def _read(o: Option, value: Any) -> Any:
    """A value of an option that takes a word or a number; other text is left for the settings to refuse."""
    if not isinstance(value, str) or not o.choices or o.least is None:
        return value
    with suppress(ValueError):
        return o.read(value)
    return value


@dataclass(frozen=True)
class Fields:
    """Which fields become options: those of ``kind`` that have a help text, in the order of the class."""

    kind: type
    panel: str
    without: tuple[str, ...] = ()

    def parameters(self) -> list[Parameter]:
        """Return a parameter for each, as typer reads it."""
        each = options_of(self.kind).values()
        return [_parameter(o, self.panel) for o in each if o.help and o.name not in self.without]


def _parameter(o: Option, panel: str) -> Parameter:
    """A parameter that is ``None`` if left out, where the default is empty, many values, or a recipe's."""
    plain = o.kind in (bool, int, float, str) and o.default is not None and not o.follows
    kind = str if o.choices and o.least is not None else o.kind
    hint: Any = Annotated[kind if plain else kind | None, typer_option(o, panel)]
    return Parameter(o.name, Parameter.KEYWORD_ONLY, default=o.default if plain else None, annotation=hint)


def typer_option(o: Option, panel: str | None = None) -> Any:
    """Return a described setting as typer's option, with ``--no-`` before the name of a flag that is set."""
    long = "--" + o.name.replace("_", "-")
    return typer.Option(
        f"{long}/{o.spelling}" if o.default is True else long,
        *([o.short] if o.short else []),
        help=o.help,
        show_default=_default(o) if o.follows else True,
        rich_help_panel=panel if o.panel == "" else o.panel,
        autocompletion=o.names or (among(o.choices) if o.choices else None),
    )


def _default(o: Option) -> str:
    """What is said of the default of a setting that a recipe may decide."""
    plain = {True: "on", None: "none"}.get(o.default, str(o.default))
    other = TRANSFER.settings.get(o.name, "by the number of pictures" if "epochs" in o.name else None)
    return plain if other is None else f"{plain}; over trained weights {other}"


def among(choices: Sequence[str]) -> Callable[[], list[str]]:
    """Return what tells a shell how a value may be completed."""
    return lambda: list(choices)


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command as typer takes it: in the place of :class:`Fields` stand parameters for the fields."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, tuple[Fields, list[str]]] = {}
    parameters: list[Parameter] = []
    for name, parameter in signature(command).parameters.items():
        fields = next((m for m in getattr(hints[name], "__metadata__", ()) if isinstance(m, Fields)), None)
        new = fields.parameters() if fields else [parameter.replace(annotation=hints[name])]
        parameters += new
        if fields:
            groups[name] = fields, [each.name for each in new]

    @functools.wraps(command)
    def plain(**given: Any) -> None:
        for name, (fields, names) in groups.items():
            values = {each: given.pop(each) for each in names}
            given[name] = Given(fields.kind, {n: value for n, value in values.items() if value is not None})
        command(**given)

    plain.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    plain.__annotations__ = {each.name: each.annotation for each in parameters}
    return plain


Learned = Annotated[Given[Learn], Fields(Learn, LEARNED)]
LearnedOverSeed = Annotated[Given[Learn], Fields(Learn, LEARNED, without=("frozen",))]
Trained = Annotated[Given[FitConfig], Fields(FitConfig, TRAINING)]
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
        help="How the delta keeps its values: float32, bf16, fp16, or int8 or int6 with a scale for each "
        "filter. float32 if left out; with --budget int8, which has room for nearly four times as many, or "
        "below 32KB int6.",
        autocompletion=among(["float32", *PRECISIONS]),
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
InitFrom = Annotated[
    str | None,
    typer.Option(
        "--init-from",
        rich_help_panel=LEARNED,
        help="A whole .safetensors checkpoint to stand on, or a delta to start from.",
    ),
]
DataName = Annotated[
    str,
    typer.Option(
        "--data",
        rich_help_panel=DATA,
        help="digits, cifar10, cifar100, tiny-imagenet, hf://datasets/NAME, or a folder (images, Parquet).",
    ),
]
Size = Annotated[
    int | None, typer.Option("--size", rich_help_panel=DATA, help="Resize pictures to this side.")
]
TrainLimit = Annotated[
    int | None,
    typer.Option(
        "--train-limit", rich_help_panel=DATA, help="Use so many training pictures, balanced over classes."
    ),
]
TestLimit = Annotated[
    int | None,
    typer.Option(
        "--test-limit", rich_help_panel=DATA, help="Use so many test pictures, balanced over classes."
    ),
]
Members = Annotated[
    int,
    typer.Option(
        "--members",
        rich_help_panel=RUN,
        help="Train an ensemble of so many, with the seeds that follow --seed, over one backbone.",
    ),
]
OneFile = Annotated[
    bool, typer.Option("--bundle", rich_help_panel=RUN, help="Put the members into one file as well.")
]
RunFolder = Annotated[
    Path | None, typer.Option("--out", rich_help_panel=RUN, help="Folder of the run; runs/NAME if left out.")
]
Resume = Annotated[
    bool, typer.Option("--resume", rich_help_panel=RUN, help="Go on where the same command stopped.")
]
RunTime = Annotated[
    str | None,
    typer.Option(
        "--time-budget", rich_help_panel=RUN, help="Stop cleanly after this long, such as 90s or 9m."
    ),
]
BackboneFile = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        help="The checkpoint that the delta stands on, or of its published weights; one beside the delta, "
        "where fit had it, or here is found.",
    ),
]
AllowNetwork = Annotated[
    bool, typer.Option("--allow-network", help="Let published weights that the delta stands on be fetched.")
]
MaxMemory = Annotated[
    int | None,
    typer.Option(
        "--max-memory",
        parser=bytes_from,
        metavar="SIZE",
        help="Memory that rebuilding the model may take, such as 2GB; half of what is free if left out.",
    ),
]
Tta = Annotated[
    int,
    typer.Option(
        "--tta",
        help="Average over so many views of each picture: itself, its mirror image (not of the data set "
        "digits), crops. For digits, letters or signs of your own leave it out.",
    ),
]
Device = Annotated[str | None, typer_option(options_of(FitConfig)["device"])]
Compression = Annotated[
    str,
    typer.Option(
        "--dtype",
        help="bf16, fp16, or int8 or int6 with a scale for each filter.",
        autocompletion=among(PRECISIONS),
    ),
]
TimeBudget = Annotated[
    str | None,
    typer.Option("--time-budget", help="Stop cleanly after this long, such as 9m; the same command goes on."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only say what there is to do, and how long it may take.")
]
Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, help="Trainings side by side.")]


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
    if not found:
        return None
    from sparsetune.backbone import plain_arguments

    return plain_arguments(model, found)


def check_out(out: Path, delta: str, command: str, what: str) -> None:
    """Refuse a place where a command cannot write what it makes of a delta."""
    if out.suffix != ".safetensors":
        raise ConfigError(
            f"'{out}' does not end in .safetensors, the one format that {command} writes; rename it."
        )
    if delta and out.exists() and (source := fetch(delta)).exists() and out.samefile(source):
        raise ConfigError(f"'{out}' is the delta itself; choose another name for the {what}.")
