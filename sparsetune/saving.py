"""``save``, ``load``, ``inspect`` and ``verify``: an adapted model to a delta file and back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsetune.adapt import adapt_, adapted, frozen_dtype, frozen_values, learned_values
from sparsetune.backbone import Origin, fingerprint, origin_of
from sparsetune.delta import read_delta, read_header, write_delta
from sparsetune.errors import BackboneError, DeltaError
from sparsetune.header import DTYPES, Header
from sparsetune.plan import Plan, plan
from sparsetune.preprocessing import Preprocessing
from sparsetune.zoo import HUB, recreate, skeleton

LIBRARIES = ("sparsetune", "torch", "timm", "torchvision", "numpy", "safetensors")


def save(
    net: nn.Module,
    path: str | Path,
    *,
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    training: dict[str, Any] | None = None,
) -> None:
    """Save what an adapted model has learned; the file appears whole or not at all.

    Args:
        net: An adapted model.
        path: The file, by convention ending in ``.safetensors``.
        classes: Class names in the order of the outputs.
        preprocessing: What the training pictures went through; needed by ``predict``.
        training: A summary of the training, plain JSON values.

    Raises:
        ConfigError: When the model is not adapted.
        DeltaError: When frozen values changed since ``adapt_``, so that no file could give this model back.
        StorageError: When the file cannot be written.
    """
    state, origin = adapted(net), origin_of(net)
    found, dtype = fingerprint(frozen_values(net, state.plan)), frozen_dtype(net, state.plan)
    if dtype == state.dtype and found != state.fingerprint:
        raise DeltaError(
            "frozen values changed since adapt_, so the backbone cannot give this model back; "
            "find what wrote to them, or save a whole checkpoint after sparsetune.merge_(net)."
        )
    header = Header(
        library=origin.library if origin else "module",
        model=origin.name if origin else type(net).__name__,
        kwargs=origin.kwargs if origin else {},
        num_classes=origin.num_classes if origin else 0,
        backbone=state.backbone,
        fingerprint=found,
        dtype=str(dtype).removeprefix("torch."),
        learn=state.plan.learn,
        classes=None if classes is None else tuple(classes),
        preprocessing=preprocessing,
        training=training or {},
        versions={name: version(name) for name in LIBRARIES},
    )
    write_delta(path, header, _tensors(net, state.plan))


def load(
    path: str | Path,
    module: nn.Module | None = None,
    *,
    backbone: str | Path | None = None,
    allow_network: bool = False,
) -> nn.Module:
    """Rebuild the model of a delta file: its backbone, checked by fingerprint, with the slices in place.

    Args:
        path: The delta file.
        module: For a delta of the user's own model: a plain model that holds the backbone's values.
        backbone: For a delta over a checkpoint file: that file; by default one of its name beside the delta.
        allow_network: Let a pretrained backbone be fetched.

    Returns:
        The adapted model in evaluation mode, on the CPU.

    Raises:
        DeltaError: When the file is damaged or does not fit the model.
        BackboneError: When the backbone cannot be rebuilt or is another one.
    """
    header = read_header(path)
    if module is None:
        origin = _origin(header, path)
        empty = _skeleton(origin)
        _check_fit(header, plan(empty, header.learn), path)
        _check_memory(empty, path)
        module = recreate(origin, _checkpoint(header, path, backbone, allow_network))
    else:
        _check_fit(header, plan(module, header.learn), path)
    net = adapt_(module.to(DTYPES[header.dtype]), header.learn, header.backbone.root)
    state = adapted(net)
    if state.fingerprint != header.fingerprint:
        raise BackboneError(
            f"{path} was saved over a backbone with fingerprint {header.fingerprint[:12]}…, but "
            f"{header.backbone.describe()} gives {state.fingerprint[:12]}… here; {_versions(header)}."
        )
    _fill(net, state.plan, read_delta(path, header))
    return net.eval()


def inspect(path: str | Path) -> Header:
    """Return all that a delta file says of itself, without building the model.

    Raises:
        DeltaError: When the file is missing, damaged, or no delta.
    """
    return read_header(path)


def verify(path: str | Path, *, backbone: str | Path | None = None, allow_network: bool = False) -> Header:
    """Rebuild the model of a delta file and check fingerprint, checksums, and that every value is finite.

    Args:
        path: The delta file.
        backbone: As for :func:`load`.
        allow_network: As for :func:`load`.

    Raises:
        DeltaError: When the file is damaged, does not fit, or holds a value that is not finite.
        BackboneError: When the backbone cannot be rebuilt or is another one.
    """
    net = load(path, backbone=backbone, allow_network=allow_network)
    for name, value in _tensors(net, adapted(net).plan).items():
        if value.is_floating_point() and not value.isfinite().all():
            raise DeltaError(f"{path}: '{name}' holds values that are not finite; the training diverged.")
    return read_header(path)


def fill(net: nn.Module, path: str | Path) -> None:
    """Put a delta's learned values and statistics into a model adapted alike over the same backbone.

    Raises:
        DeltaError: When the file is damaged, or its backbone or slices are not the model's.
    """
    header, state = read_header(path), adapted(net)
    if header.fingerprint != state.fingerprint:
        raise DeltaError(
            f"{path} stands on {header.backbone.describe()} with {header.learn}, this model on "
            f"{state.backbone.describe()} with {state.plan.learn}; start from a delta of the same."
        )
    _check_fit(header, state.plan, path)
    _fill(net, state.plan, read_delta(path, header))


def _origin(header: Header, path: str | Path) -> Origin:
    if header.library not in ("timm", "torchvision"):
        raise DeltaError(
            f"{path} is a delta of the user's own model {header.model}; "
            "build that and pass it as load(path, module=...)."
        )
    return Origin(
        library=header.library,
        name=header.model,
        kwargs=header.kwargs,
        num_classes=header.num_classes,
        backbone=header.backbone,
    )


def _skeleton(origin: Origin) -> nn.Module:
    if origin.name.startswith((*HUB, "local-dir:")):
        raise BackboneError(
            f"the model's architecture would be read from '{origin.name}'; "
            "create it yourself and pass it as load(path, module=...)."
        )
    return skeleton(origin)


def _checkpoint(
    header: Header, path: str | Path, backbone: str | Path | None, allow_network: bool
) -> str | Path | None:
    root = header.backbone.root
    if root.kind == "pretrained" and not allow_network:
        raise BackboneError(
            f"{path} stands on the pretrained weights {root.source}; "
            "pass allow_network=True (--allow-network) to let them be fetched."
        )
    if root.kind == "file" and backbone is None:
        return Path(path).parent / Path(root.source or "").name
    return backbone


def _check_fit(header: Header, made: Plan, path: str | Path) -> None:
    """Compare name and shape of every tensor of the file with what the plan expects."""
    expected = {part.name: part.learned_shape for part in made if part.k}
    expected |= {buffer.name: buffer.shape for buffer in made.buffers}
    found = {entry.name: entry.shape for entry in header.entries}
    if found == expected:
        return
    for name, shape in expected.items():
        if name not in found:
            problem = f"lacks '{name}', which {header.model} expects with shape {shape}"
        elif found[name] != shape:
            problem = f"holds '{name}' with shape {found[name]}; {header.model} expects {shape}"
        else:
            continue
        raise DeltaError(f"{path} {problem}; {_versions(header)}.")
    extra = next(name for name in found if name not in expected)
    raise DeltaError(f"{path} holds '{extra}', which {header.model} does not learn; {_versions(header)}.")


def _versions(header: Header) -> str:
    library = header.library if header.library in LIBRARIES else "timm"
    wrote, here = header.versions.get(library, "unknown"), version(library)
    if wrote != here:
        return f"it was saved with {library} {wrote} and this is {here}: install {library}=={wrote}"
    return f"it was saved with this {library} ({here}), so the file or the model is not the right one"


def _check_memory(empty: nn.Module, path: str | Path) -> None:
    needed = sum(value.numel() * value.element_size() for value in empty.state_dict().values())
    try:
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return
    if needed > max(available, total // 2):
        raise BackboneError(
            f"{path} asks for a {type(empty).__name__} of {needed / 2**30:.1f} GiB, more than this machine's "
            f"{available / 2**30:.1f} GiB of free memory; load it on a larger one."
        )


def _tensors(net: nn.Module, made: Plan) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {name: value.detach() for name, value in learned_values(net, made)}
    return tensors | {buffer.name: net.get_buffer(buffer.name) for buffer in made.buffers}


def _fill(net: nn.Module, made: Plan, values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, target in _tensors(net, made).items():
            if target.dtype == values[name].dtype:
                target.copy_(values[name])
            else:
                target.data = values[name].clone()
