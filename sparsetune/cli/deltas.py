"""What to do with delta files: ``info``, ``verify``, ``merge``, ``export``, ``slim``, ``push``, ``pull``.

And with their values: ``compress``, ``diff``, ``soup``, ``stack``, ``bundle`` and ``convert``.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsetune.cli import console, options
from sparsetune.errors import BackboneError, ConfigError, SparsetuneError
from sparsetune.host import fetch
from sparsetune.spec import PRECISIONS

if TYPE_CHECKING:
    from torch import nn

    from sparsetune.delta import Header

DAMAGED, NO_BACKBONE = 1, 3
"""Exit codes of ``verify``."""


def info(delta: options.Delta, as_json: options.Json = False) -> None:
    """Show all that a delta file says of itself, without building the model.

    Example: sparsetune info runs/NAME/delta.safetensors
    """
    from sparsetune.delta import read_header

    header = read_header(delta)
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
    max_memory: options.MaxMemory = None,
    as_json: options.Json = False,
) -> None:
    """Rebuild the model and check the backbone's fingerprint and every tensor.

    Example: sparsetune verify runs/NAME/delta.safetensors

    The exit code is 0 where all is well, 1 where the file is damaged, and 3 where its backbone is not at
    hand, is another one, or takes too much memory.
    """
    from sparsetune.delta import verify as check

    try:
        header = check(delta, backbone=backbone, allow_network=allow_network, max_bytes=max_memory)
    except SparsetuneError as error:
        elsewhere = isinstance(error, BackboneError)
        if as_json:
            intact = None if elsewhere else False
            console.print_json({"delta": delta, "intact": intact, "reason": str(error)})
        else:
            console.complain(error)
        raise typer.Exit(NO_BACKBONE if elsewhere else DAMAGED) from error
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
    max_memory: options.MaxMemory = None,
    as_json: options.Json = False,
) -> None:
    """Write a plain timm or torchvision checkpoint with backbone and slices in one.

    Example: sparsetune merge runs/NAME/delta.safetensors -o whole.safetensors
    """
    options.check_out(out, delta, "merge", "checkpoint")
    from sparsetune.delta import inspect, load, write_plain
    from sparsetune.sliced import merge_

    header = inspect(delta)
    net = merge_(load(delta, backbone=backbone, allow_network=allow_network, max_bytes=max_memory))
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
    if header.accuracy:
        split, top1 = header.accuracy
        rows.append((f"{split} accuracy", f"{top1:.2%} on {header.training.get('data')}"))
    rows.append(("written by", ", ".join(f"{k} {v}" for k, v in header.versions.items())))
    return rows


def export(
    delta: options.Delta,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write, ending in .onnx.")],
    backbone: options.BackboneFile = None,
    allow_network: options.AllowNetwork = False,
    max_memory: options.MaxMemory = None,
    as_json: options.Json = False,
) -> None:
    """Write one ONNX file with backbone and slices in one, for any batch size; needs `sparsetune[onnx]`.

    Its metadata carries class names and preprocessing as JSON, under `classes` and `preprocessing`.

    Example: sparsetune export runs/NAME/delta.safetensors -o cats.onnx
    """
    if out.suffix != ".onnx":
        raise ConfigError(f"'{out}' does not end in .onnx, the one format that export writes; rename it.")
    from sparsetune.delta import inspect, load
    from sparsetune.publish import export_onnx
    from sparsetune.sliced import merge_

    header = inspect(delta)
    if header.preprocessing is None:
        raise ConfigError(f"{delta} does not say how pictures are prepared; save it with preprocessing=...")
    metadata = {
        "model": f"{header.library} {header.model}",
        "preprocessing": json.dumps(header.preprocessing.to_json()),
    }
    if header.classes:
        metadata["classes"] = json.dumps(header.classes)
    net = merge_(load(delta, backbone=backbone, allow_network=allow_network, max_bytes=max_memory))
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


def slim(
    delta: options.Delta,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write, ending in .safetensors.")],
    backbone: options.BackboneFile = None,
    allow_network: options.AllowNetwork = False,
    max_memory: options.MaxMemory = None,
    as_json: options.Json = False,
) -> None:
    """Write a zeroed network (fit --frozen zero) without its zero filters: smaller, faster, same outputs.

    Example: sparsetune slim runs/NAME/delta.safetensors -o slim.safetensors
    """
    options.check_out(out, delta, "slim", "slim network")
    from sparsetune.delta import inspect, load
    from sparsetune.narrow import pictures, write_slim
    from sparsetune.narrow import slim as narrowed
    from sparsetune.sliced import adapted

    header = inspect(delta)
    net = load(delta, backbone=backbone, allow_network=allow_network, max_bytes=max_memory)
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


def push(
    delta: options.Delta,
    repo: Annotated[str, typer.Argument(help="OWNER/NAME; made if missing.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch; made if missing; the main one if left out.")
    ] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="What to call the commit.")] = None,
    as_json: options.Json = False,
) -> None:
    """Upload a delta and a model card to the Hugging Face Hub; log in with `hf auth login` or HF_TOKEN.

    Example: sparsetune push runs/NAME/delta.safetensors OWNER/NAME
    """
    from huggingface_hub.utils.tqdm import disable_progress_bars

    from sparsetune.publish import push as upload

    if not console.err.is_terminal:
        disable_progress_bars()
    url = upload(delta, repo, private=private, revision=revision, message=message)
    if as_json:
        console.print_json({"delta": delta, "repo": repo, "commit": url})
    else:
        console.out.print(url)


def pull(
    repo: Annotated[str, typer.Argument(help="OWNER/NAME, or hf://OWNER/NAME/FILE.safetensors.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Copy it to this file; else it stays in the cache.")
    ] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit.")] = None,
    as_json: options.Json = False,
) -> None:
    """Download a delta from the Hugging Face Hub, check it, and say where it is.

    Example: sparsetune pull OWNER/NAME -o cats.safetensors
    """
    from sparsetune.publish import pull as download

    path = download(repo, out, revision=revision)
    if as_json:
        console.print_json({"repo": repo, "delta": str(path), "file_bytes": path.stat().st_size})
    else:
        console.out.print(str(path))


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
    max_memory: options.MaxMemory = None,
    as_json: options.Json = False,
) -> None:
    """Put deltas that learned different layers into one; others are refused.

    Example: sparsetune stack early.safetensors late.safetensors -o both.safetensors
    """
    from sparsetune.delta import stack as stack_deltas

    stack_deltas(deltas, out, backbone=backbone, allow_network=allow_network, max_bytes=max_memory)
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


def convert(
    source: Annotated[
        Path, typer.Argument(help="The folder of an adapter that PEFT saved, or a delta of low-rank sums.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The delta to write, or the folder of the adapter.")
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", help="timm name, or torchvision/NAME, that the adapter was made for."),
    ] = None,
    img_size: options.ImgSize = None,
    in_chans: options.InChans = None,
    model_kwargs: options.ModelKwargs = None,
    pretrained: options.Pretrained = False,
    backbone_seed: options.BackboneSeed = 0,
    num_classes: Annotated[
        int | None,
        typer.Option("--num-classes", min=1, help="Class count, where the adapter has no classifier."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", help="What it was trained on, for class names and preprocessing in the delta."
        ),
    ] = None,
    backbone: options.BackboneFile = None,
    allow_network: options.AllowNetwork = False,
    max_memory: options.MaxMemory = None,
    as_json: options.Json = False,
) -> None:
    """Make a delta of a LoRA adapter of PEFT's, or such an adapter of a delta; outputs stay the same.

    Example: sparsetune convert adapter/ --model resnet18 --pretrained --data photos/ -o mine.safetensors

    And back: sparsetune convert mine.safetensors -o adapter/
    """
    from sparsetune.publish import is_adapter, to_peft

    if is_adapter(source) == (model is None):
        wrong = (
            f"'{source}' is a PEFT adapter, and no file says of which model; give --model."
            if model is None
            else f"'{source}' is no folder of a PEFT adapter; a delta knows its model, so leave out --model."
        )
        raise ConfigError(wrong)
    if model is None:
        from sparsetune.delta import load

        net = load(source, backbone=backbone, allow_network=allow_network, max_bytes=max_memory)
        to_peft(net, out)
    else:
        options.check_out(out, "", "convert", "delta")
        kwargs = options.kwargs_from(model, img_size, in_chans, model_kwargs) or {}
        weights = {"seed": backbone_seed, "pretrained": pretrained, "checkpoint": backbone}
        net = _converted(source, out, model, num_classes, data, {**weights, **kwargs})
    from sparsetune.sliced import adapted

    made, files = adapted(net).plan, [out] if out.is_file() else [*out.glob("adapter_*")]
    count = sum(file.stat().st_size for file in files)
    if as_json:
        learned = made.learned_parameters
        console.print_json({"out": str(out), "bytes": count, "learned_parameters": learned})
        return
    kept = f"{console.size(count)}, {made.learn.describe()}"
    console.out.print(f"{out}  ({kept})")
    check = shlex.join(["sparsetune", "verify", str(out)])
    console.out.print(f"\nnext: {check}" if model else f"\nnext: PeftModel.from_pretrained(net, '{out}')")


def _converted(
    source: Path, out: Path, model: str, count: int | None, data: str | None, options: dict[str, Any]
) -> nn.Module:
    """Save an adapter as a delta; return the model."""
    from sparsetune.backbone import Backbone, Origin, create, skeleton
    from sparsetune.data import open_data
    from sparsetune.delta import save
    from sparsetune.publish import classes_in, from_peft
    from sparsetune.train import pictures_for

    opened = open_data(data) if data else None
    if count is None:
        arguments = {k: v for k, v in options.items() if k not in ("seed", "pretrained", "checkpoint")}
        seeded = Backbone(kind="seed")
        like = Origin(library="timm", name=model, kwargs=arguments, num_classes=2, backbone=seeded)
        count = classes_in(source, skeleton(like)) or (len(opened.classes) if opened else None)
    if count is None:
        raise ConfigError(f"'{source}' has no classifier, so give --num-classes, or --data.")
    net = from_peft(create(model, num_classes=count, **options), source)
    form = None if opened is None else pictures_for(net, opened).preprocessing
    save(net, out, classes=opened.classes if opened else None, preprocessing=form)
    return net


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
