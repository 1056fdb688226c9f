"""A bundle: several delta files, and the checkpoint that they stand on if it is a file, in one file.

A safetensors file too: each file that it holds is a ``U8`` tensor of its bytes, ``delta/0`` and so on, and
``backbone``. Its metadata has the key ``sparsetune.bundle``, whose value is JSON: the format and the names;
and a checksum over that and the files.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from sparsetune.backbone import file_digest
from sparsetune.delta.container import read_delta, read_header
from sparsetune.errors import ConfigError, DeltaError
from sparsetune.host import UNSHOWN, json_from, metadata, read_sealed, reason, sealed_bytes, write_bytes

KEY, FORMAT = "sparsetune.bundle", 1
MOST, LONGEST = 10_000, 1000
"""Most deltas in a bundle, and most characters of the name of one."""


@dataclass(frozen=True)
class Unpacked:
    """A bundle's files, for as long as its context lasts.

    Attributes:
        deltas: Name -> file, in the bundle's order.
        backbone: The checkpoint that they stand on, if it is inside.
    """

    deltas: dict[str, Path]
    backbone: Path | None


def bundle(deltas: Mapping[str, str | Path], out: str | Path, backbone: str | Path | None = None) -> None:
    """Write delta files, and the checkpoint that they stand on, into one file.

    Args:
        deltas: Name -> delta file; all over one backbone.
        out: The file to write.
        backbone: The checkpoint, for deltas over a file; without it whoever loads must bring it.

    Raises:
        ConfigError: When there is no delta, or ``backbone`` is not the one that they stand on.
        DeltaError: When a delta is damaged, or they stand on several backbones.
        StorageError: When ``out`` cannot be written.
    """
    if not deltas:
        raise ConfigError("no deltas were given; pass a mapping such as {'cats': 'cats.safetensors'}.")
    headers = {name: read_header(path) for name, path in deltas.items()}
    first = next(iter(headers.values()))
    for name, path in deltas.items():
        read_delta(path, headers[name])
        if headers[name].fingerprint != first.fingerprint:
            raise DeltaError(f"{path} stands on another backbone than the first; bundle deltas of one.")
    files = {f"delta/{number}": Path(path) for number, path in enumerate(deltas.values())}
    if backbone is not None:
        if file_digest(backbone) != first.backbone.root.sha256:
            raise ConfigError(
                f"{backbone} is not what the deltas stand on ({first.backbone.describe()}); leave it out, or "
                "pass that file."
            )
        files["backbone"] = Path(backbone)
    tensors = {name: torch.from_numpy(np.fromfile(path, dtype=np.uint8)) for name, path in files.items()}
    about = json.dumps({"format": FORMAT, "names": list(deltas)})
    try:
        _names(about)
    except ValueError as error:
        raise ConfigError(f"the deltas cannot be bundled ({error}); name each by a short text.") from error
    write_bytes(out, sealed_bytes(tensors, {KEY: about}, KEY))


def is_bundle(path: str | Path) -> bool:
    """Whether ``path`` is a safetensors file that says it is a bundle; it may still be damaged."""
    return KEY in metadata(path)


@contextmanager
def unpacked(path: str | Path) -> Iterator[Unpacked]:
    """Lay a bundle's files into a temporary folder.

    Raises:
        DeltaError: When it is damaged; its deltas are checked when they are read.
    """
    with TemporaryDirectory(prefix="sparsetune-") as place:
        yield _unpack(Path(path), Path(place))


def _unpack(path: Path, folder: Path) -> Unpacked:
    try:
        texts, files = read_sealed(path, KEY)
        names = _names(texts.get(KEY, ""))
        if files.keys() - {"backbone"} != {f"delta/{number}" for number in range(len(names))}:
            raise ValueError("its files are not those that it names")
        deltas = {}
        for number, name in enumerate(names):
            deltas[name] = folder / f"{number}.safetensors"
            _lay(files[f"delta/{number}"], deltas[name])
        backbone = folder / "backbone.safetensors" if "backbone" in files else None
        if backbone:
            _lay(files["backbone"], backbone)
    except (SafetensorError, OSError, ValueError) as error:
        raise DeltaError(
            f"{path} is not an intact bundle ({reason(error)}); get a fresh copy of the file."
        ) from error
    return Unpacked(deltas, backbone)


def _names(text: str) -> list[str]:
    value: Any = json_from(text)
    names = value.get("names") if isinstance(value, dict) and value.get("format") == FORMAT else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"its description is not one of format {FORMAT}")
    if not 0 < len(names) <= MOST:
        raise ValueError(f"it has {len(names):,} names; from 1 to {MOST:,} are expected")
    for name in names:
        if len(name) > LONGEST or UNSHOWN.search(name):
            raise ValueError(f"its name {reprlib.repr(name)} is too long, or does not print on one line")
    if len(set(names)) < len(names):
        raise ValueError("it has a name twice")
    return names


def _lay(value: Tensor, path: Path) -> None:
    if value.dtype != torch.uint8 or value.dim() != 1:
        raise ValueError("it holds a tensor that is no file")
    value.numpy().tofile(path)
