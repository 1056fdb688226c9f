"""A slim network as one file that gives it back alone: its plain checkpoint, and what it is a checkpoint of.

The tensors are those of the slim network's ``state_dict`` under their plain names. Metadata
``sparsetune.slim`` is the header of the delta that it came from (see ``header.py``); the widths of the layers
are those of the tensors.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sparsetune.delta import LIMIT
from sparsetune.errors import BackboneError, DeltaError
from sparsetune.header import Header, header_text, parse_header, text_digest
from sparsetune.narrow import narrow_
from sparsetune.rebuild import other_versions
from sparsetune.saving import write_plain
from sparsetune.slim import input_size
from sparsetune.weights import HUB
from sparsetune.zoo import skeleton

KEY = "sparsetune.slim"


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


def load_slim(path: str | Path, module: nn.Module | None = None, *, allow_network: bool = False) -> nn.Module:
    """Rebuild a slim network from its file alone.

    Args:
        path: A file that ``sparsetune slim`` wrote.
        module: For a network of the user's own: a plain one of the same class and sizes; it is made slim.
        allow_network: Let an architecture that is only on the Hugging Face Hub be fetched.

    Returns:
        The plain slim model, in evaluation mode, on the CPU.

    Raises:
        DeltaError: When the file is missing, damaged, no slim network, or does not fit its model.
        BackboneError: When its architecture would have to be fetched.
        UnknownNameError: When timm or torchvision has no model of that name.
        ConfigError: When the model cannot be built with the file's arguments.
    """
    header, tensors = _read(path)
    wide = _wide(path, header, allow_network) if module is None else module
    _check_fit(path, header, wide.state_dict(), tensors)
    net = narrow_(wide, tensors).eval()
    if any(value.is_meta for value in (*net.parameters(), *net.buffers())):
        raise DeltaError(f"{path} lacks values that {header.model} computes; pass a plain one as module=....")
    if module is None:
        _check_runs(path, header, net)
    return net


def _wide(path: str | Path, header: Header, allow_network: bool) -> nn.Module:
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
    return skeleton(header.origin)


def _read(path: str | Path) -> tuple[Header, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
            if text is None:
                raise DeltaError(f"{path} is no slim network; write one with: sparsetune slim DELTA -o FILE.")
            if len(text) > LIMIT:
                raise ValueError(f"its description is longer than {LIMIT} bytes")
            value = json.loads(text)
            digest = value.get("digest") if isinstance(value, dict) else None
            if not isinstance(digest, str) or digest != text_digest(text, digest):
                raise ValueError("its description does not match its checksum")
            return parse_header(value, ()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DeltaError(
            f"{path} is not an intact slim network ({reason}); get a fresh copy of the file."
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
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise DeltaError(
            f"{path} holds layers that do not fit each other ({reason}); get a fresh copy."
        ) from error
