"""``save``, ``load``, ``inspect`` and ``verify``: an adapted model to a delta file and back, and its size."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from sparsetune.backbone import Backbone, fingerprint, origin_of
from sparsetune.data import MOST, Preprocessing, Seen
from sparsetune.delta.container import LIMIT, compress, read_delta, read_header, write_delta
from sparsetune.delta.header import Header, header_text
from sparsetune.delta.rebuild import (
    LIBRARIES,
    check_fit,
    check_rebuilds,
    check_values,
    rebuild,
    same_backbone,
)
from sparsetune.errors import BackboneError, ConfigError, DeltaError, SparsetuneError, notify
from sparsetune.host import sealed_bytes, write_bytes
from sparsetune.parts import Plan, head_names, role_of, under, unwrapped
from sparsetune.sliced import (
    Taught,
    adapted,
    check_frozen,
    check_layers,
    freeze_,
    learned_values,
    prepared,
    put_stored,
    stored_values,
    taught,
    teach,
    to_freeze,
)
from sparsetune.spec import Precision, check_precision


def save(
    net: nn.Module,
    path: str | Path,
    *,
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    training: dict[str, Any] | None = None,
    dtype: Precision | None = None,
) -> None:
    """Save what an adapted model has learned; the file appears whole or not at all.

    Args:
        net: An adapted model.
        path: The file, by convention ending in ``.safetensors``.
        classes: Class names in the order of the outputs; left out, those that ``fit`` or ``load`` met.
        preprocessing: What the training pictures went through, needed by ``predict``; left out, likewise.
        training: A summary of the training, plain JSON values; of one by ``fit`` the file also says which
            pictures it was, in a few hundred bytes.
        dtype: ``bf16``, ``fp16``, ``int8`` or ``int6`` for a smaller file, whose values are near the model's;
            ``None`` for these very values.

    Raises:
        ConfigError: When the model is not adapted, ``dtype`` is another, or ``classes`` or ``training``
            cannot stand in a file.
        DeltaError: When the frozen values are not the backbone's, so that no file could give this model back,
            or a value is beyond what ``dtype`` holds.
        StorageError: When the file cannot be written.
    """
    check_precision(dtype)
    net = unwrapped(net)
    state, told = adapted(net), taught(net)
    classes = told.classes if classes is None else classes
    if preprocessing in (None, told.default):
        preprocessing = told.preprocessing
    found, frozen, stored = check_savable(net)
    seen = told.seen.to_json(state.plan.bytes_in(dtype)) if told.seen else {}
    header = header_of(
        net,
        state.plan,
        state.backbone,
        fingerprint=found,
        dtype=str(frozen).removeprefix("torch."),
        classes=classes,
        preprocessing=preprocessing,
        training=_plain({**(training or {}), **seen}),
    )
    write_delta(path, header, _tensors(net, state.plan) | stored, dtype)


def header_of(
    net: nn.Module, made: Plan, backbone: Backbone, *, classes: Sequence[str] | None, **said: Any
) -> Header:
    """Return what a file says of a model.

    Args:
        net: The model, plain or adapted; its tensors are not read.
        made: What is learned of it.
        backbone: What it stands on.
        classes: Class names in the order of the outputs.
        **said: The header's other fields, as they are.

    Raises:
        ConfigError: When a value cannot stand in a file.
    """
    origin = origin_of(net)
    return Header(
        library=origin.library if origin else "module",
        model=origin.name if origin else type(net).__name__,
        kwargs=origin.kwargs if origin else {},
        num_classes=origin.num_classes if origin else 0,
        backbone=backbone,
        learn=made.learn,
        classes=None if classes is None else tuple(classes),
        versions={name: version(name) for name in LIBRARIES},
        **said,
    )


def check_savable(net: nn.Module) -> tuple[str, torch.dtype, dict[str, Tensor]]:
    """Make sure that a file could give an adapted model back.

    Args:
        net: The model.

    Returns:
        Fingerprint and dtype of its frozen values, and those that a file must hold.

    Raises:
        ConfigError: When it is not adapted, or no longer what was planned.
        DeltaError: When the frozen values are not the backbone's.
    """
    state, origin = adapted(net), origin_of(net)
    check_layers(net)
    found, frozen = check_frozen(net)
    stored: dict[str, Tensor] = {}
    if origin and state.backbone.root.kind != "module":
        stored = stored_values(net, state.plan)
        check_rebuilds(replace(origin, backbone=state.backbone), state.plan, found, frozen, stored)
    return found, frozen, stored


def write_plain(net: nn.Module, path: str | Path, about: Mapping[str, str] | None = None) -> None:
    """Write a plain model's ``state_dict``; the file appears whole or not at all.

    Args:
        net: The model.
        path: The file.
        about: More metadata of it.

    Raises:
        StorageError: When the file cannot be written.
    """
    tensors = {name: value.clone().contiguous() for name, value in net.state_dict().items()}
    write_bytes(path, sealed_bytes(tensors, {"format": "pt", **(about or {})}))


def load(
    path: str | Path,
    module: nn.Module | None = None,
    *,
    backbone: str | Path | None = None,
    allow_network: bool = False,
    max_bytes: int | None = None,
) -> nn.Module:
    """Rebuild the model of a delta file: its backbone, checked by fingerprint, with the slices in place.

    Args:
        path: The delta file.
        module: For a delta of the user's own model: a plain model that holds the backbone's values.
        backbone: For a delta over a checkpoint file: that file or another with the same values; by default
            one of its name beside the delta, where the run that wrote it had it, or in the working folder.
            For a delta over published weights: a checkpoint of them.
        allow_network: Let a pretrained backbone be fetched.
        max_bytes: Memory that the model, and all that rebuilding it takes, may have; half of what is
            free if left out.

    Returns:
        The adapted model in evaluation mode: ``module`` itself, where it is, or a new one on the CPU. After
        an error ``module`` is as it was.

    Raises:
        DeltaError: When the file is damaged or does not fit the model.
        BackboneError: When the backbone cannot be rebuilt or is another one.
        UnknownNameError: When timm or torchvision has no model of that name, or the model no such layer.
        ConfigError: When the model cannot be built with the file's arguments.
    """
    header = read_header(path)
    with _naming(path):
        check_values(header, max_bytes)
        values = read_delta(path, header)
        if module is None:
            net = rebuild(header, path, backbone, allow_network, max_bytes)
        else:
            net = unwrapped(module)
        made, source = prepared(net, header.learn, header.backbone.root)
        check_fit(header, made)
        dtype = getattr(torch, header.dtype)
        found = fingerprint(to_freeze(net, made, dtype, values))
        if found != header.fingerprint:
            taken = backbone if header.backbone.root.kind in ("file", "pretrained") else None
            raise BackboneError(
                f"it was saved over a backbone with fingerprint {header.fingerprint[:12]}…, but "
                f"{taken or header.backbone.describe()} gives {found[:12]}… here; {same_backbone(header)}."
            )
        put_stored(_cast(net, dtype), made, values)
        freeze_(net, made, source, dtype, found)
        _fill(net, made, values)
    teach(net, taught_by(header))
    return (net if module is None else module).eval()


def inspect(path: str | Path) -> Header:
    """Return all that a delta file says of itself, without building the model.

    Raises:
        DeltaError: When the file is missing, damaged, or no delta.
    """
    return read_header(path)


def taught_by(header: Header) -> Taught:
    """Return what a model with the values of a delta was trained on, as that tells."""
    return Taught(header.classes, header.preprocessing, seen=Seen.from_json(header.training))


def verify(
    path: str | Path,
    *,
    backbone: str | Path | None = None,
    allow_network: bool = False,
    max_bytes: int | None = None,
) -> Header:
    """Rebuild the model of a delta file and check fingerprint, checksums, and that every value is finite.

    Args:
        path: The delta file.
        backbone: As for :func:`load`.
        allow_network: As for :func:`load`.
        max_bytes: Likewise.

    Raises:
        DeltaError: When the file is damaged, does not fit, or holds a value that is not finite.
        BackboneError: When the backbone cannot be rebuilt or is another one.
    """
    net = load(path, backbone=backbone, allow_network=allow_network, max_bytes=max_bytes)
    for name, value in _tensors(net, adapted(net).plan).items():
        if value.is_floating_point() and not value.isfinite().all():
            raise DeltaError(f"{path}: '{name}' holds values that are not finite; the training diverged.")
    return read_header(path)


def fill(net: nn.Module, path: str | Path) -> None:
    """Put a delta's learned values and statistics into a model adapted alike over the same backbone.

    A classifier of another class count keeps its own values, and that is said.

    Raises:
        DeltaError: When the file is damaged, or its backbone or slices are not the model's.
    """
    net = unwrapped(net)
    header, state = read_header(path), adapted(net)
    if header.fingerprint != state.fingerprint:
        raise DeltaError(
            f"{path} stands on {header.backbone.describe()} with {header.learn}, this model on "
            f"{state.backbone.describe()} with {state.plan.learn}; start from a delta of the same."
        )
    origin = origin_of(net)
    count = origin.num_classes if origin else header.num_classes
    heads = head_names(net) if count != header.num_classes else ()
    with _naming(path):
        check_fit(header, state.plan, heads, count)
    values = read_delta(path, header)
    for part in state.plan:
        if part.k and under(part.homes[0][0], heads):
            values[part.name] = net.get_parameter(part.name).detach()
    _fill(net, state.plan, values)
    what = taught_by(header)
    teach(net, replace(what, classes=None) if heads else what)
    if heads:
        notify(f"{path} knows {header.num_classes} classes, so the classifier for {count} was drawn anew.")


def fill_rounded(net: nn.Module, path: str | Path, dtype: Precision) -> int:
    """Do what :func:`fill` does with the values that a delta would give back in fewer bits.

    Returns:
        The bytes of that smaller file, which is not kept.

    Raises:
        DeltaError: As ``fill`` raises, or when a value is beyond what ``dtype`` holds.
    """
    with TemporaryDirectory() as folder:
        small = Path(folder) / Path(path).name
        compress(path, small, dtype)
        fill(net, small)
        return small.stat().st_size


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Let every error name the file, in one line."""
    try:
        yield
    except SparsetuneError as error:
        text = " ".join(str(error).splitlines())
        error.args = (text if text.startswith(str(path)) else f"{path}: {text}",)
        raise


def _cast(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast floating values as ``module.to(dtype)``, which would take complex ones for floating."""
    module._apply(lambda value: value.to(dtype) if value.is_floating_point() else value)
    return module


def _plain(training: dict[str, Any]) -> dict[str, Any]:
    """Return a summary as plain JSON; a number that is not finite becomes ``None``."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(training), parse_constant=lambda _: None)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the summary of the training is not plain JSON ({error}).") from error
    return plain


def _tensors(net: nn.Module, made: Plan) -> dict[str, Tensor]:
    learned: dict[str, Tensor] = dict(learned_values(net, made))
    return learned | {buffer.name: net.get_buffer(buffer.name) for buffer in made.buffers}


def _fill(net: nn.Module, made: Plan, values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, target in _tensors(net, made).items():
            if target.dtype == values[name].dtype:
                target.copy_(values[name])
            else:
                target.data = values[name].to(target.device, copy=True)


def file_bytes(
    net: nn.Module,
    made: Plan,
    *,
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    training: Mapping[str, Any] | None = None,
    dtype: Precision | None = None,
) -> int:
    """Write a delta of values that no code makes shorter and return its size, the most that a real one takes.

    Beside what :func:`sparsetune.save` takes, ``made`` is what is learned of the model, plain or adapted,
    whose tensors are not read; ``training`` is its longest.

    Raises:
        ConfigError: When ``classes`` or ``training`` cannot stand in a file.
        StorageError: When there is no room for a temporary file.
    """
    header = _told(net, made, classes, preprocessing, training)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "delta.safetensors"
        write_delta(path, header, _noise(made), dtype)
        return path.stat().st_size


def check_told(net: nn.Module, made: Plan, **said: Any) -> None:
    """Make sure before a training that its file could hold what it will say beside its values.

    Args:
        net: The model, plain or adapted; its tensors are not read.
        made: What is learned of it.
        **said: ``classes``, ``preprocessing`` and ``training``, as :func:`save` takes them.

    Raises:
        ConfigError: When it could not, as with a class name that does not print on one line.
    """
    header = _told(net, made, **said)
    if (length := len(header_text(header))) > LIMIT:
        raise ConfigError(
            f"the file would hold {length} bytes about itself, more than {LIMIT}; shorten the class names."
        )


def _told(
    net: nn.Module,
    made: Plan,
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    training: Mapping[str, Any] | None = None,
) -> Header:
    """What a file of a training that is still to come says of itself."""
    origin = origin_of(net)
    backbone = origin.backbone if origin else Backbone.from_module(net)
    return header_of(
        net,
        made,
        backbone.zeroed() if made.learn.frozen == "zero" else backbone,
        fingerprint=sha256().hexdigest(),
        dtype="float32",
        classes=classes,
        preprocessing=preprocessing,
        training=dict(training or {}),
    )


def longest_noted(nbytes: int) -> dict[str, Any]:
    """Stand in for what a file of so many bytes may add to the summary of a training: its pictures."""
    hashes = sorted(int(sha256(str(number).encode()).hexdigest()[:10], 16) for number in range(MOST))
    return Seen(tuple(hashes), False, sha256().hexdigest()[:16], 10**9).to_json(nbytes)


def _noise(made: Plan) -> dict[str, Tensor]:
    """Values of which a code has all steps equally often; of a variance in equal ratios."""
    dtype = {8: torch.float64, 2: torch.float16}.get(made.itemsize, torch.float32)
    chance = torch.Generator().manual_seed(0)

    def drawn(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        values = 2 * torch.rand(shape, generator=chance) - 1
        return (values.exp2() if role_of(name) == "variance" else values).to(dtype)

    noise = {name: drawn(name, shape, dtype) for part in made for name, shape in part.learned.items()}
    noise |= {each.name: drawn(each.name, each.shape, each.dtype) for each in made.buffers}
    frozen = {part.frozen_name: part.frozen_shape for part in made if part.stored}
    return noise | {name: drawn(name, shape, dtype) for name, shape in frozen.items()}
