"""Delta files as values: compared, averaged, put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsetune.data import seen_by_all
from sparsetune.delta.container import read_delta, read_header, write_delta
from sparsetune.delta.header import Header
from sparsetune.delta.saving import load, save
from sparsetune.errors import ConfigError, DeltaError
from sparsetune.parts import FROZEN
from sparsetune.sliced import adapt_, merge_, taught, teach
from sparsetune.spec import Learn


@dataclass(frozen=True)
class Change:
    """How one tensor of a delta differs from that of another.

    Attributes:
        name: The tensor.
        values: How many values it has.
        differing: How many of them differ.
        largest: Largest absolute difference.
        relative: Norm of the difference over the norm of the first; infinite where that is zero.
    """

    name: str
    values: int
    differing: int
    largest: float
    relative: float

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain JSON values."""
        return {**asdict(self), "relative": self.relative if isfinite(self.relative) else None}


def diff(first: str | Path, second: str | Path) -> list[Change]:
    """Compare the values of two deltas, tensor by tensor.

    Raises:
        DeltaError: When one is damaged, or they do not learn the same slices of the same model.
    """
    headers = [read_header(path) for path in (first, second)]
    forms = [_form(header) for header in headers]
    if forms[0] != forms[1]:
        differing = {*forms[0]} ^ {*forms[1]}
        name = next((entry[0] for form in forms for entry in form if entry in differing), "their order")
        raise DeltaError(
            f"{first} and {second} do not hold the same tensors ('{name}' is one that differs); "
            "compare deltas of one model with one learn spec."
        )
    one, other = (read_delta(path, header) for path, header in zip((first, second), headers, strict=True))
    return [_change(name, value.double(), other[name].double()) for name, value in one.items()]


def soup(paths: Sequence[str | Path], out: str | Path, weights: Sequence[float] | None = None) -> None:
    """Average deltas over one backbone into one delta, statistics included (Wortsman et al., 2022).

    Args:
        paths: At least two deltas with the same backbone, learn spec and classes.
        out: The file to write.
        weights: One a delta, scaled to sum to 1; equal ones if left out.

    Raises:
        ConfigError: When there are fewer than two deltas, or ``weights`` are not one positive sum.
        DeltaError: When a delta is damaged, not of the same kind as the first, or of low-rank sums.
        StorageError: When ``out`` cannot be written.
    """
    shares = _shares(len(paths), weights)
    headers = [read_header(path) for path in paths]
    if headers[0].learn.rank is not None:
        raise DeltaError(
            f"{paths[0]} holds low-rank sums, and the average of factors is not the factors of the average; "
            "average checkpoints, as sparsetune.merge_ gives them."
        )
    for path, header in zip(paths, headers, strict=True):
        if _kind(header) != _kind(headers[0]):
            raise DeltaError(
                f"{path} does not stand on the backbone of {paths[0]} with the same learn spec and classes; "
                "average deltas of one kind."
            )
    sums: dict[str, Tensor] = {}
    for path, header, share in zip(paths, headers, shares, strict=True):
        for name, value in read_delta(path, header).items():
            if name.endswith(FROZEN):
                sums[name] = value
            elif not value.is_floating_point():
                sums[name] = value if name not in sums else torch.maximum(sums[name], value)
            else:
                sums[name] = share * value.double() + sums.get(name, 0.0)
    made = {
        name: value.to(entry.type)
        for (name, value), entry in zip(sums.items(), headers[0].entries, strict=True)
    }
    seen = seen_by_all(header.training for header in headers)
    training = {"soup": [Path(path).name for path in paths], "weights": shares}
    training |= seen.to_json(headers[0].learned_bytes) if seen else {}
    write_delta(out, replace(headers[0], training=training), made)


def _shares(count: int, weights: Sequence[float] | None) -> list[float]:
    if count < 2:
        raise ConfigError(f"{count} delta makes no average; give two or more.")
    given = [1.0] * count if weights is None else list(weights)
    if len(given) != count or not all(isfinite(w) and w >= 0 for w in given) or not sum(given):
        raise ConfigError(
            f"weights {given} are not {count} numbers of 0 or more with a positive sum; give one a delta."
        )
    return [weight / sum(given) for weight in given]


def _kind(header: Header) -> tuple[Any, ...]:
    return header.fingerprint, header.learn, header.num_classes, header.classes, _form(header)


def _form(header: Header) -> tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]:
    return tuple((entry.name, entry.type, entry.shape) for entry in header.entries)


def _change(name: str, one: Tensor, other: Tensor) -> Change:
    gap = one - other
    size, norm = one.norm().item(), gap.norm().item()
    relative = norm / size if size else float("inf") if norm else 0.0
    largest = gap.abs().amax().item() if gap.numel() else 0.0
    return Change(name, gap.numel(), int((one != other).sum()), largest, relative)


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
        if _stackable(header) != _stackable(first):
            raise DeltaError(
                f"{path} ({header.model}, {header.backbone.describe()}, {header.learn.describe()}) does not "
                f"stack on {paths[0]} ({first.model}, {first.backbone.describe()}, "
                f"{first.learn.describe()}); stack deltas of one model, backbone, classes and size of slice."
            )
    specs = [header.learn for header in headers]
    for name, held in (("rank", "low-rank sums"), ("dimensions", "spread vectors")):
        if getattr(specs[0], name) is not None:
            raise DeltaError(
                f"{paths[0]} holds {held}, which do not stack; merge it and fit --init-from that."
            )
    named = [spec.layers for spec in specs]
    layers = None if None in named else tuple(dict.fromkeys(name for some in named for name in some or ()))
    return replace(
        specs[0],
        layers=layers,
        norm=any(spec.norm for spec in specs),
        head=any(spec.head for spec in specs),
    )


def _stackable(header: Header) -> tuple[Any, ...]:
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
