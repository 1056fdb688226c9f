"""The model card of a delta, which the Hugging Face Hub shows, and in it the command that trains it again."""

from __future__ import annotations

import re
import shlex
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from sparsetune.backbone import TORCHVISION
from sparsetune.delta import Header
from sparsetune.errors import ConfigError
from sparsetune.host import share, size
from sparsetune.parts import Plan
from sparsetune.spec import FREE, FitConfig, Option, words

ELSEWHERE = {"grad_checkpointing", *FREE}
"""Settings of a training that another machine may want otherwise: they change nothing that it comes to."""

OPTIONS = ("size", "train_limit", "test_limit", "init_from")
"""What else a run stores because its outcome depends on it."""

BUILT = ("img_size", "in_chans")
"""Arguments of a model that ``fit`` has an option for."""

DTYPE = "dtype"
"""Likewise, where the delta was saved in fewer bits."""

DATA = "digits"
"""The data that ``fit`` takes by itself."""


def command(header: Header) -> str | None:
    """Return the command that trains a delta again, with only the options that are not ``fit``'s defaults.

    Args:
        header: What a delta says of itself; it may be a stranger's.

    Returns:
        One line for a shell, each word quoted where it must be. Folders and files are named without their
        place, a folder of pictures with a slash behind, so that it is never taken for a built-in data set.
        ``None`` where the delta does not say how ``fit`` trained it, or has amounts by layer.
    """
    training, root = header.training, header.backbone.root
    options: Any = training.get("options")
    try:
        config = FitConfig(**training["config"])
    except (KeyError, TypeError, ConfigError, ValueError):
        return None
    known = (
        isinstance(options, dict)
        and {*OPTIONS} == {*options} - {DTYPE}
        and isinstance(training.get("data"), str)
    )
    if header.learn.by_layer or not known or root.kind == "module" or config.momentum != FitConfig().momentum:
        return None
    stands: dict[str, Any] = {
        "backbone_seed": root.seed or None,
        "pretrained": root.kind == "pretrained",
        "data": None if training["data"] == DATA else training["data"],
        **{name: options.get(name) for name in (*OPTIONS, DTYPE)},
    }
    if root.kind == "file":
        stands["init_from"] = root.source
    model = (TORCHVISION if header.library == "torchvision" else "") + header.model
    built = _words({"model": model, **_built(header.kwargs)})
    trained = words(config, ELSEWHERE, spelled=root.kind in ("pretrained", "file"))
    return shlex.join(["sparsetune", "fit", *built, *words(header.learn), *_words(stands), *trained])


def _built(kwargs: dict[str, Any]) -> dict[str, Any]:
    own = {name: value for name, value in kwargs.items() if name in BUILT and type(value) is int}
    return {**own, "model_kwargs": [f"{name}={value!r}" for name, value in kwargs.items() if name not in own]}


def _words(given: dict[str, Any]) -> list[str]:
    """Options of a run and their values; ``None`` and ``False`` are left out."""
    said = {name: value for name, value in given.items() if value is not None and value is not False}
    each = [Option(name=name, default=None, kind=type(value)).words(value) for name, value in said.items()]
    return [word for option in each for word in option]


TASK = "image-classification"

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_MARKUP = re.compile(r"[\\`*\[\]<>&|~#!${}]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def card(header: Header, file_bytes: int, made: Plan | None, address: str) -> str:
    """Return the model card of a delta, as Markdown after YAML.

    Args:
        header: What the delta says of itself; its texts may be a stranger's.
        file_bytes: Size of its file.
        made: The plan of its model; ``None`` where that cannot be built here.
        address: What a reader passes to ``load``.
    """
    name = f"{header.model} on {_data(header)}" if _data(header) else header.model
    parts = ["---", _front(header, name), "---", "", f"# {_plain(name)}", ""]
    parts += [_about(header), "", "| | |", "| --- | --- |"]
    parts += [f"| {left} | {_plain(right)} |" for left, right in _rows(header, file_bytes, made)]
    parts += ["", "## Use", "", *_use(header, address)]
    again = command(header)
    if again:
        parts += ["", "## Train again", "", "```sh", again, "```"]
        if _data(header).endswith("/"):
            parts += ["", f"Put the path of these pictures in the place of {_plain(_data(header))}."]
    return "\n".join(parts) + "\n"


def _front(header: Header, name: str) -> str:
    root, found = header.backbone.root, _accuracy(header)
    published = root.kind == "pretrained" and _REPOSITORY.fullmatch(root.source or "")
    own = header.library == "module"
    results = found and [
        EvalResult(
            task_type=TASK,
            dataset_type=_data(header),
            dataset_name=_data(header),
            metric_type="accuracy",
            metric_value=found[1],
            dataset_split=found[0],
        )
    ]
    data = ModelCardData(
        library_name="sparsetune",
        tags=["sparsetune"] if own else ["sparsetune", header.library],
        base_model=root.source if published and header.library == "timm" else None,
        pipeline_tag=None if own or not header.num_classes else TASK,
        model_name=name if found else None,
        eval_results=results,
    )
    return str(data.to_yaml())


def _about(header: Header) -> str:
    rest = {
        "seed": "is rebuilt from a seed",
        "pretrained": "are published weights",
        "file": "is in a checkpoint file",
        "module": "comes with the model",
    }[header.backbone.root.kind]
    zero = " Sliced layers are zero where they are not learned." if header.backbone.kind == "zero" else ""
    return (
        f"A delta, made with sparsetune: the learned slices of {_plain(header.model)}, and its running "
        f"statistics. The frozen backbone {rest}.{zero}"
    )


def _rows(header: Header, file_bytes: int, made: Plan | None) -> list[tuple[str, str]]:
    count = f", {header.num_classes} classes" if header.num_classes else ""
    rows = [("model", f"{header.library} {header.model}{count}")]
    if made:
        whole = made.total_parameters * made.itemsize
        rows.append(("learned", share(made.learned_parameters, made.total_parameters)))
        rows.append(("file", f"{size(file_bytes)}, {file_bytes / whole:.1%} of a whole checkpoint"))
    else:
        rows.append(("file", size(file_bytes)))
    rows += [
        ("slices", header.learn.describe()),
        ("backbone", header.backbone.describe()),
        ("fingerprint", header.fingerprint),
    ]
    if found := _accuracy(header):
        rows.append((f"{found[0]} accuracy", f"{found[1]:.2%}"))
    if _data(header):
        rows.append(("data", _data(header)))
    if header.classes:
        more = f", … ({len(header.classes)})" if len(header.classes) > 10 else ""
        rows.append(("classes", ", ".join(header.classes[:10]) + more))
    return rows


def _use(header: Header, address: str) -> list[str]:
    kind = header.backbone.root.kind
    python, shell = {
        "seed": ("", ""),
        "pretrained": (", allow_network=True", " --allow-network"),
        "file": (', backbone="whole.safetensors"', " --backbone whole.safetensors"),
        "module": (", module=net", ""),
    }[kind]
    lines = ["```python", "import sparsetune as st", "", f'net = st.load("{address}"{python})', "```"]
    if kind == "module":
        return ["Build the model that it is for as `net`; then", "", *lines]
    act, pictures = ("predict", " picture.jpg") if header.preprocessing else ("verify", "")
    return [*lines, "", "```sh", f"sparsetune {act} {address}{pictures}{shell}", "```"]


def _data(header: Header) -> str:
    data = header.training.get("data")
    return data.removeprefix("hf://datasets/") if isinstance(data, str) else ""


def _accuracy(header: Header) -> tuple[str, float] | None:
    """Which pictures the accuracy is on, and that, where the file says what these are of."""
    return header.accuracy if _data(header) else None


def _plain(text: str) -> str:
    """Let Markdown show a text as it is, also in a table, whatever signs it has."""
    return _MARKUP.sub(lambda sign: f"&#{ord(sign[0])};", text)
