"""``slim``: a zeroed network as a smaller one that computes the same: for use, while it trains, in a file."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.dropout import _DropoutNd

from sparsetune.backbone import HUB, ORIGIN
from sparsetune.delta import (
    LIMIT,
    Header,
    described,
    header_text,
    other_versions,
    parse_header,
    text_digest,
    write_plain,
)
from sparsetune.errors import BackboneError, ConfigError, DeltaError, notify
from sparsetune.host import SEAL, json_from, read_sealed, reason, usable_bytes
from sparsetune.narrow.follow import follow
from sparsetune.narrow.narrow import Narrowing, narrow_
from sparsetune.sliced import UNSENT, adapted, merge_

KEY = "sparsetune.slim"
TOLERANCE = 1e-5
"""Largest difference of outputs, relative to the largest of them, that a slim network may show."""


def slim(net: nn.Module, inputs: Tensor | None = None) -> nn.Module:
    """Return a plain model without the filters that ``frozen="zero"`` made zero; ``net`` is unchanged.

    It has the same class and layers, only narrower, and in evaluation mode the same outputs on every input.
    Filters that are zero give constants; one in each layer stays and stands for all, so that padding is
    exact too.

    Args:
        net: An adapted model with ``Learn(frozen="zero")`` along ``out``.
        inputs: A batch such as the model takes; by default random pictures of its own size.

    Returns:
        The slim model, in evaluation mode.

    Raises:
        ConfigError: When the model is not adapted so, does what cannot be followed, or its slim form
            would differ by more than 1e-5 of the largest output.
    """
    small = narrowed(net, pictures(net, input_size(net)) if inputs is None else inputs, training=False)[1]
    small.__dict__.pop(ORIGIN, None)
    return small


def narrowed(net: nn.Module, inputs: Tensor, *, training: bool) -> tuple[Narrowing, nn.Module]:
    """Return which channels of an adapted model stay, and the narrow plain model; ``net`` is unchanged.

    Args:
        net: An adapted, zeroed model.
        inputs: A batch such as it takes.
        training: Whether the narrow model shall compute the same in training mode, or in evaluation mode.

    Raises:
        ConfigError: As :func:`slim` does.
    """
    made = adapted(net).plan
    if made.learn.frozen != "zero" or made.learn.dim != "out":
        raise ConfigError(
            f"this model learned {made.learn.describe()}, so no filters of it are zero; "
            "slim is for Learn(..., frozen='zero') along out."
        )
    plain = merge_(copy.deepcopy(net)).train(training)
    inputs = inputs if len(inputs) > 1 else torch.cat([inputs, inputs])
    filters = {part.name: part.k for part in made if part.layer and not part.whole}
    with torch.no_grad():
        values = values_of(net)
        narrowing = Narrowing(follow(copy.deepcopy(plain), inputs, filters), values)
        tensors, _ = narrowing.tensors(values)
        small = narrow_(copy.deepcopy(plain), tensors)
        _check_same(plain, small, inputs)
    return narrowing, small


def values_of(net: nn.Module) -> dict[str, Tensor]:
    """Return an adapted model's tensors under the plain model's names; of a slice what is learned."""
    return {**dict(net.named_buffers()), **dict(net.named_parameters())}


def input_size(net: nn.Module) -> tuple[int, ...]:
    """Return channels, height and width of a model's pictures: timm models say it."""
    size = (getattr(net, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
    return tuple(size)


def pictures(net: nn.Module, size: tuple[int, ...]) -> Tensor:
    """Return two random pictures ``(2, *size)``, always the same, where and as ``net``'s values are."""
    value = next(value for value in values_of(net).values() if value.is_floating_point())
    return torch.randn(2, *size, generator=torch.Generator().manual_seed(0)).to(value.device, value.dtype)


def _check_same(plain: nn.Module, small: nn.Module, inputs: Tensor) -> None:
    """Compare the two in float64, where rounding hides nothing, and without dropout."""
    outputs = []
    for net in (plain, small):
        twin = copy.deepcopy(net).cpu().double()
        for module in twin.modules():
            if isinstance(module, _DropoutNd):
                module.eval()
        outputs.append(twin(inputs.cpu().double()))
    wanted, found = outputs
    difference, largest = (found - wanted).abs().max().item(), wanted.abs().max().item()
    if not difference <= TOLERANCE * largest:
        raise ConfigError(
            f"the outputs of the slim {type(plain).__name__} would differ by {difference:.2g}, the largest "
            f"being {largest:.2g}; keep the network as it is."
        )


class Slimming(nn.Module):
    """An adapted, zeroed model whose training steps run on its slim shape.

    Its parameters are the model's, and what counts is the model's mode: in evaluation the model itself runs.

    Args:
        net: The adapted model, on the device where it will be trained.
        size: Channels, height and width of a picture.

    Raises:
        ConfigError: When no filters of it are zero, or it does what cannot be followed.
    """

    def __init__(self, net: nn.Module, size: tuple[int, ...]) -> None:
        super().__init__()
        self.net = net
        self._narrowing, small = narrowed(net, pictures(net, size), training=True)
        if not self._narrowing.smaller:
            raise ConfigError("no filters of this model are zero; train it as it is.")
        setattr(self, UNSENT, [f"net.{name}" for name in getattr(net, UNSENT)])
        self._small = (small,)  # in a tuple, so that its parameters are not this module's
        self._device = self._narrowing.device.type
        self._buffers_left = {name for name, _ in small.named_buffers()} - self._narrowing.names

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures ``(N, C, H, W)`` to logits, as the wide model does; its statistics move too."""
        if not self.net.training:
            out: Tensor = self.net(x)
            return out
        tensors, constants = torch.compiler.disable(self._tensors)()
        out = functional_call(self._small[0], tensors, (x,))
        torch.compiler.disable(self._move_statistics)(tensors, constants)
        return out

    def _tensors(self) -> tuple[dict[str, Tensor], list[Tensor]]:
        values = values_of(self.net)
        with torch.autocast(self._device, enabled=False):
            tensors, constants = self._narrowing.tensors(values)
        return tensors | {name: values[name] for name in self._buffers_left}, constants

    def _move_statistics(self, tensors: dict[str, Tensor], constants: list[Tensor]) -> None:
        self._narrowing.move_statistics(values_of(self.net), tensors, constants, self._momentum())

    def _momentum(self) -> dict[str, float]:
        """For each running mean, by how much a step moves it."""
        shares = {}
        for name in self._narrowing.means:
            norm: Any = self.net.get_submodule(name.rpartition(".")[0])
            shares[name] = 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        return shares


def slimming(net: nn.Module, size: tuple[int, ...]) -> nn.Module:
    """Return a model that trains ``net`` on its slim shape: call it where you would call ``net``.

    Outputs, gradients and running statistics are those of ``net``, up to rounding, at less time a step where
    ``net`` learned ``Learn(frozen="zero")``. :func:`fit` does this by itself.

    Args:
        net: An adapted model, on the device where it will be trained.
        size: Channels, height and width of a picture.

    Returns:
        A model with the parameters of ``net``, or ``net`` itself where it has no slim shape or some of its
        layers were put into evaluation mode.
    """
    some_rest = net.training and not all(module.training for module in net.modules())
    if adapted(net).plan.learn.frozen != "zero" or some_rest:
        return net
    try:
        return Slimming(net, size)
    except ConfigError:
        return net


def write_slim(path: str | Path, net: nn.Module, header: Header) -> None:
    """Write a slim network; the file appears whole or not at all.

    Args:
        path: The file.
        net: What ``slim`` returned.
        header: Of the delta that it came from.

    Raises:
        StorageError: When the file cannot be written.
    """
    write_plain(net, path, {KEY: header_text(header)})


def load_slim(
    path: str | Path,
    module: nn.Module | None = None,
    *,
    allow_network: bool = False,
    max_bytes: int | None = None,
) -> nn.Module:
    """Rebuild a slim network from its file alone.

    Args:
        path: A file that ``sparsetune slim`` wrote.
        module: For a network of the user's own: a plain one of the same class and sizes; it is made slim.
        allow_network: Let an architecture that is only on the Hugging Face Hub be fetched.
        max_bytes: Memory that it may take; half of what is free if left out.

    Returns:
        The plain slim model, in evaluation mode, on the CPU.

    Raises:
        DeltaError: When the file is missing, damaged, no slim network, or does not fit its model.
        BackboneError: When its architecture would have to be fetched.
        UnknownNameError: When timm or torchvision has no model of that name.
        ConfigError: When the model cannot be built with the file's arguments.
    """
    header, tensors = _read(path)
    wide = _wide(path, header, allow_network, max_bytes) if module is None else module
    _check_fit(path, header, wide.state_dict(), tensors)
    net = narrow_(wide, tensors).eval()
    if any(value.is_meta for value in (*net.parameters(), *net.buffers())):
        raise DeltaError(f"{path} lacks values that {header.model} computes; pass a plain one as module=....")
    if module is None:
        _check_runs(path, header, net)
    return net


def _wide(path: str | Path, header: Header, allow_network: bool, max_bytes: int | None) -> nn.Module:
    """Build the model without its values."""
    if header.library not in ("timm", "torchvision"):
        raise DeltaError(
            f"{path} is a slim {header.model} of the user's own; "
            "build a plain one and pass it as load_slim(path, module=...)."
        )
    if header.model.startswith(HUB) and not allow_network:
        raise BackboneError(
            f"{path} is a slim {header.model}; pass allow_network=True to let that be fetched."
        )
    return described(header.origin, usable_bytes(max_bytes))


def _read(path: str | Path) -> tuple[Header, dict[str, Tensor]]:
    try:
        texts, tensors = read_sealed(path)
        text = texts.get(KEY)
        if text is None:
            raise DeltaError(f"{path} is no slim network; write one with: sparsetune slim DELTA -o FILE.")
        if len(text) > LIMIT:
            raise ValueError(f"its description is longer than {LIMIT} bytes")
        value = json_from(text)
        digest = value.get("digest") if isinstance(value, dict) else None
        if not isinstance(digest, str) or digest != text_digest(text, digest):
            raise ValueError("its description does not match its checksum")
        if SEAL not in texts:
            notify(f"{path} has no checksum of its values, so damage to them would not show; write it anew.")
        return parse_header(value, ()), tensors
    except (SafetensorError, OSError, ValueError) as error:
        raise DeltaError(
            f"{path} is not an intact slim network ({reason(error)}); get a fresh copy of the file."
        ) from error


def _check_fit(path: str | Path, header: Header, wide: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Compare names, kinds and sizes with the wide model's."""
    for name in wide.keys() ^ tensors.keys():
        verb = "lacks" if name in wide else "holds"
        raise DeltaError(f"{path} {verb} '{name}', unlike {header.model}; {other_versions(header)}.")
    for name, value in tensors.items():
        shape, whole = tuple(value.shape), tuple(wide[name].shape)
        fits = len(shape) == len(whole) and all(n <= m for n, m in zip(shape, whole, strict=True))
        if not fits or value.is_floating_point() != wide[name].is_floating_point():
            raise DeltaError(
                f"{path} holds '{name}' as {value.dtype} of shape {shape}, no part of {header.model}'s "
                f"{whole}; {other_versions(header)}."
            )


def _check_runs(path: str | Path, header: Header, net: nn.Module) -> None:
    """Run the network without its values: its layers' widths must fit each other."""
    size = header.preprocessing.size if header.preprocessing else input_size(net)
    try:
        with torch.no_grad():
            copy.deepcopy(net).to("meta")(torch.empty(2, *size, device="meta"))
    except (RuntimeError, ValueError) as error:
        raise DeltaError(
            f"{path} holds layers that do not fit each other ({reason(error)}); get a fresh copy."
        ) from error
