"""How many bytes a delta's file will take, told before anything is learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from sparsetune.backbone import Backbone, origin_of
from sparsetune.delta import write_delta
from sparsetune.plan import Plan
from sparsetune.precision import Precision
from sparsetune.preprocessing import Preprocessing
from sparsetune.saving import header_of
from sparsetune.seen import MOST, Seen


def file_bytes(
    net: nn.Module,
    made: Plan,
    *,
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    training: Mapping[str, Any] | None = None,
    dtype: Precision | None = None,
) -> int:
    """Write a delta with zeros for values and return its size; a real one differs by its index's last bytes.

    Args:
        net: The model, plain or adapted; its tensors are not read.
        made: What is learned of it.
        classes: As for :func:`sparsetune.save`.
        preprocessing: Likewise.
        training: Likewise; its longest.
        dtype: Likewise.

    Raises:
        ConfigError: When ``classes`` or ``training`` cannot stand in a file.
        StorageError: When there is no room for a temporary file.
    """
    origin = origin_of(net)
    backbone = origin.backbone if origin else Backbone.from_module(net)
    header = header_of(
        net,
        made,
        backbone.zeroed() if made.learn.frozen == "zero" else backbone,
        fingerprint="0" * 64,
        dtype="float32",
        classes=classes,
        preprocessing=preprocessing,
        training=dict(training or {}),
    )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "delta.safetensors"
        write_delta(path, header, _zeros(made), dtype)
        return path.stat().st_size


def longest_noted(nbytes: int) -> dict[str, Any]:
    """Stand in for what a file of so many bytes may add to the summary of a training: its pictures."""
    return Seen(tuple(range(MOST)), False, "0" * 16, 10**9).to_json(nbytes)


def _zeros(made: Plan) -> dict[str, Tensor]:
    dtype = {8: torch.float64, 2: torch.float16}.get(made.itemsize, torch.float32)
    zeros = {name: torch.zeros(s, dtype=dtype) for part in made for name, s in part.learned.items()}
    zeros |= {each.name: torch.zeros(each.shape, dtype=each.dtype) for each in made.buffers}
    frozen = {part.frozen_name: part.frozen_shape for part in made if part.stored}
    return zeros | {name: torch.zeros(shape, dtype=dtype) for name, shape in frozen.items()}
