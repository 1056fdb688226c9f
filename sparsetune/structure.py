"""What a model is made of: whether a file could give it back, and whether it still is what was adapted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparsetune.layers import COMPILED, plain_class, plain_name

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
