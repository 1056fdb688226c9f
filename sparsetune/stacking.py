"""Deltas that learn different layers of one backbone, put into one delta."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sparsetune.adapt import adapt_, merge_
from sparsetune.delta import read_delta, read_header
from sparsetune.errors import ConfigError, DeltaError
from sparsetune.header import Header
from sparsetune.learn import Learn
from sparsetune.saving import load, save
from sparsetune.seen import seen_by_all
from sparsetune.taught import taught, teach


def stack(paths: Sequence[str | Path], out: str | Path, **options: Any) -> None:
    """Write one delta that does what several do that have no learned value in common.

    Replacement values cannot be added up, so deltas that learned the same slices do not stack; nor do those
    whose running statistics differ, for these travel in each.

    Args:
        paths: At least two deltas over one backbone, with slices of one size in different layers.
        out: The file to write.
        **options: ``backbone``, ``allow_network``: as for :func:`sparsetune.load`.

    Raises:
        ConfigError: When there are fewer than two deltas.
        DeltaError: When a file is damaged, they stand on different backbones, or have a value in common.
        BackboneError: When the backbone cannot be rebuilt.
        StorageError: When ``out`` cannot be written.
    """
    if len(paths) < 2:
        raise ConfigError(f"{len(paths)} delta makes no stack; give two or more.")
    headers = [read_header(path) for path in paths]
    learn = _together(paths, headers)
    _check_disjoint(paths, headers)
    net = merge_(load(paths[0], **options))
    for path, header in zip(paths[1:], headers[1:], strict=True):
        other, own = merge_(load(path, **options)).state_dict(), {entry.name for entry in header.entries}
        net.load_state_dict({name: value for name, value in other.items() if name in own}, strict=False)
    adapt_(net, learn, headers[0].backbone.root)
    teach(net, replace(taught(net), seen=seen_by_all(header.training for header in headers)))
    save(
        net,
        out,
        classes=next((header.classes for header in headers if header.classes), None),
        preprocessing=next((header.preprocessing for header in headers if header.preprocessing), None),
        training={"stack": [Path(path).name for path in paths]},
    )


def _together(paths: Sequence[str | Path], headers: Sequence[Header]) -> Learn:
    """The learn spec of all, if they may stand on one backbone."""
    first = headers[0]
    for path, header in zip(paths[1:], headers[1:], strict=True):
        if _kind(header) != _kind(first):
            raise DeltaError(
                f"{path} ({header.model}, {header.backbone.describe()}, {header.learn.describe()}) does not "
                f"stack on {paths[0]} ({first.model}, {first.backbone.describe()}, "
                f"{first.learn.describe()}); stack deltas of one model, backbone, classes and size of slice."
            )
    specs = [header.learn for header in headers]
    if specs[0].rank is not None:
        raise DeltaError(
            f"{paths[0]} holds low-rank sums, which do not stack; merge it and fit --init-from that."
        )
    named = [spec.layers for spec in specs]
    layers = None if None in named else tuple(dict.fromkeys(name for some in named for name in some or ()))
    return replace(
        specs[0],
        layers=layers,
        norm=any(spec.norm for spec in specs),
        head=any(spec.head for spec in specs),
    )


def _kind(header: Header) -> tuple[Any, ...]:
    """What deltas must have in common: all but which layers they learn."""
    size = replace(header.learn, layers=None, norm=True, head=True)
    return (
        header.library,
        header.model,
        header.kwargs,
        header.num_classes,
        header.backbone,
        header.dtype,
        size,
    )


def _check_disjoint(paths: Sequence[str | Path], headers: Sequence[Header]) -> None:
    """Refuse deltas with a value in common, unless it is the same in both, as statistics may be."""
    seen: dict[str, tuple[str | Path, torch.Tensor]] = {}
    for path, header in zip(paths, headers, strict=True):
        for name, value in read_delta(path, header).items():
            owner, before = seen.setdefault(name, (path, value))
            if owner is not path and not torch.equal(before, value):
                raise DeltaError(
                    f"{owner} and {path} both hold '{name}', with other values, so they do not stack; train "
                    "one on top of the other instead (merge it, then fit --init-from the checkpoint)."
                )
