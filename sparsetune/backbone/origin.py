"""The origin of a model that is here: fingerprints, checkpoints, and whether it is still what was made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparsetune.backbone.source import Origin
from sparsetune.errors import BackboneError
from sparsetune.host import plain_file, read_sealed, reason
from sparsetune.parts import COMPILED, head_names, plain_class, plain_name, under

ORIGIN = "_sparsetune_origin"
"""Attribute of a model that ``create`` made."""
WRAPPED = ("module.", "model.", "state_dict.")
"""What wrappers (DistributedDataParallel, Lightning) put before every name."""


Values = Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]]
"""Makes a checkpoint's values those of a model."""


def origin_of(net: nn.Module) -> Origin | None:
    """Return how ``create`` made ``net``; ``None`` for other models."""
    found = getattr(net, ORIGIN, None)
    return found if isinstance(found, Origin) else None


def fingerprint(frozen: Iterable[tuple[str, Tensor]]) -> str:
    """Return the SHA-256 over frozen values, in hexadecimal.

    Args:
        frozen: Name and frozen values of each parameter, in the model's order. Values are read row by row in
            little-endian order, after name, dtype and shape, each ended by a zero byte: ``conv1.weight``,
            ``float32``, ``16,3,3,3``.
    """
    digest = sha256()
    for name, values in frozen:
        dtype = str(values.dtype).removeprefix("torch.")
        shape = ",".join(map(str, values.shape))
        digest.update(f"{name}\0{dtype}\0{shape}\0".encode())
        flat = values.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def take_values(net: nn.Module, found: dict[str, Tensor], source: str) -> None:
    """Copy a whole checkpoint into ``net``; a classifier for another class count keeps its own values.

    What the checkpoint's classifier has is left out where the model has none.

    Args:
        net: A plain model.
        found: Every tensor of the checkpoint, by name.
        source: What to call the checkpoint in an error.

    Raises:
        BackboneError: When a tensor is missing, too many, or of another shape.
    """
    heads, expected = head_names(net), net.state_dict()
    values = dict(found)
    for name, value in expected.items():
        shape = tuple(value.shape)
        if name not in values:
            longer = min((other for other in found if other.endswith("." + name)), key=len, default=None)
            remedy = f"; take '{longer.removesuffix(name)}' away from '{longer}' and so on" if longer else ""
            raise BackboneError(
                f"{source} lacks '{name}', which the model expects with shape {shape}{remedy}."
            )
        if values[name].shape != shape:
            if not _is_of(name, heads):
                raise BackboneError(
                    f"{source} holds '{name}' with shape {tuple(values[name].shape)}; "
                    f"the model expects {shape}."
                )
            values[name] = value
    if not any(_is_of(name, heads) for name in expected):
        values = {name: value for name, value in values.items() if not _is_of(name, heads)}
    extra = sorted(values.keys() - expected.keys())
    if extra:
        raise BackboneError(f"{source} holds '{extra[0]}', which the model does not have.")
    net.load_state_dict(values)


def _is_of(name: str, modules: tuple[str, ...]) -> bool:
    """Whether a tensor is one of these modules or of what is in them."""
    return under(name.rpartition(".")[0], modules)


def load_checkpoint(net: nn.Module, path: str | Path, fit: Values | None = None) -> None:
    """Copy a whole checkpoint in safetensors format into ``net``, as :func:`take_values` does.

    What wrappers of a model put before every name is taken away.

    Args:
        net: A plain model.
        path: The file.
        fit: Makes values of another input size, or number of channels, those of the model.

    Raises:
        BackboneError: When the file is not readable or does not fit.
    """
    try:
        found = read_sealed(path)[1]
    except (SafetensorError, OSError, ValueError) as error:
        remedy = "pass one that holds the whole model"
        if _is_pickled(path):
            remedy = (
                "a pickle can run code, so none is read: if you trust it, convert it once with "
                f"safetensors.torch.save_file(torch.load({str(path)!r}, weights_only=True), ...)"
            )
        raise BackboneError(
            f"{path} is not a readable safetensors checkpoint ({reason(error)}); {remedy}."
        ) from error
    found = _bare(found, net)
    if fit is not None and not _fits(net, found):
        found = fit(net, found)
    take_values(net, found, str(path))


def file_digest(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Raises:
        BackboneError: When it cannot be read.
    """
    digest = sha256()
    try:
        with plain_file(path).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise BackboneError(
            f"checkpoint {path} cannot be read: {error.strerror}; pass the path of a safetensors checkpoint."
        ) from error
    return digest.hexdigest()


def _bare(found: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """A checkpoint's values by the names of the model inside its wrappers."""
    own = net.state_dict().keys()
    found = {plain_name(name): value for name, value in found.items()}
    while prefix := next((p for p in WRAPPED if found and all(name.startswith(p) for name in found)), None):
        if any(name.startswith(prefix) for name in own):
            break
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


def _fits(net: nn.Module, found: dict[str, Tensor]) -> bool:
    """Whether a checkpoint has every name and shape of a model, its classifier aside."""
    heads, expected = head_names(net), net.state_dict()
    return expected.keys() == found.keys() and all(
        value.shape == found[name].shape or _is_of(name, heads) for name, value in expected.items()
    )


def _is_pickled(path: str | Path) -> bool:
    """Whether a file starts as torch's checkpoints do: as a zip archive or as a bare pickle."""
    try:
        with Path(path).open("rb") as file:
            return file.read(4).startswith((b"PK\3\4", b"\x80"))
    except OSError:
        return False


MADE = "_sparsetune_made"
"""Attribute of a model that ``create`` made: its structure then."""
GEOMETRY = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "eps")
"""Attributes of layers that decide what they compute."""


class Layer(NamedTuple):
    """A module without those in it: its kind in words, and the shapes of its tensors by name."""

    kind: str
    shapes: dict[str, tuple[int, ...]]


def structure(net: nn.Module) -> dict[str, Layer]:
    """Return what each module of a model is, by name.

    Layers that do nothing in evaluation (dropout) are alike, and so are batch norms with each other.
    """
    return {name: Layer(_kind(module), _shapes(module)) for name, module in _modules(net)}


def changed(then: dict[str, Layer], net: nn.Module, *, shapes: bool) -> str | None:
    """Say in words how a model differs from what it was; ``None`` if it does not.

    Args:
        then: Its structure then.
        net: The model.
        shapes: Whether to compare the shapes of tensors too, as those of a plain model.
    """
    now = structure(net)
    for name in (*then, *(name for name in now if name not in then)):
        was, found = then.get(name), now.get(name)
        if was is None or found is None:
            return f"module '{name}' is {'gone' if found is None else 'new'}"
        if was.kind != found.kind:
            return f"'{name}' is {found.kind} and was {was.kind}"
        if shapes and was.shapes != found.shapes:
            leaf = next(
                leaf for leaf in (was.shapes | found.shapes) if was.shapes.get(leaf) != found.shapes.get(leaf)
            )
            sizes = (each.shapes.get(leaf, "none") for each in (found, was))
            return "'{}' has shape {} and had {}".format(f"{name}.{leaf}".lstrip("."), *sizes)
    return None


def _modules(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in net.named_modules():
        if COMPILED not in module._modules:
            yield plain_name(name), module


def _kind(module: nn.Module) -> str:
    kind = plain_class(type(module)).__name__
    if kind.startswith("Drop"):
        kind = "Identity"
    elif isinstance(module, _BatchNorm):
        kind = "BatchNorm"
    settings = [f"{name}={vars(module)[name]}" for name in GEOMETRY if name in vars(module)]
    return f"{kind}({', '.join(settings)})"


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    tensors = (*module._parameters.items(), *module._buffers.items())
    return {name: tuple(value.shape) for name, value in tensors if value is not None}
