"""``Header``: all that a delta file says of itself, as a value and as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch

from sparsetune.backbone import Backbone
from sparsetune.learn import Learn
from sparsetune.preprocessing import Preprocessing

FORMAT = 1
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.bool,
    )
}


@dataclass(frozen=True)
class Entry:
    """One tensor of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of values."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True, kw_only=True)
class Header:
    """All that a delta file says of itself, its tensors aside.

    Attributes:
        library: ``timm``, ``torchvision`` or ``module`` (the user's own).
        model: The model's name in that library.
        kwargs: Arguments of its constructor.
        num_classes: Class count.
        backbone: Where the frozen values come from.
        fingerprint: SHA-256 over the frozen values.
        dtype: Floating dtype of the frozen values.
        learn: Which slices are learned.
        classes: Class names, or ``None``.
        preprocessing: What the pictures went through, or ``None``.
        training: A summary of the training that gave the values.
        versions: Versions of the libraries that wrote the file.
        entries: Name, dtype and shape of each tensor.
        payload: SHA-256 over the tensors.
        format: Version of the file format.
    """

    library: str
    model: str
    kwargs: dict[str, Any]
    num_classes: int
    backbone: Backbone
    fingerprint: str
    dtype: str
    learn: Learn
    classes: tuple[str, ...] | None
    preprocessing: Preprocessing | None
    training: dict[str, Any]
    versions: dict[str, str]
    entries: tuple[Entry, ...] = ()
    payload: str = ""
    format: int = FORMAT

    @property
    def learned_bytes(self) -> int:
        """Bytes of the tensors, in their dtype."""
        return sum(entry.numel * DTYPES[entry.dtype].itemsize for entry in self.entries)

    def to_json(self) -> dict[str, Any]:
        """Return everything but the index as plain JSON values."""
        return {
            "format": self.format,
            "model": {
                "library": self.library,
                "name": self.model,
                "kwargs": self.kwargs,
                "num_classes": self.num_classes,
            },
            "backbone": self.backbone.to_json(),
            "fingerprint": self.fingerprint,
            "dtype": self.dtype,
            "learn": self.learn.to_json(),
            "classes": None if self.classes is None else list(self.classes),
            "preprocessing": None if self.preprocessing is None else self.preprocessing.to_json(),
            "training": self.training,
            "versions": self.versions,
            "payload": self.payload,
        }


def parse_entry(item: Any) -> Entry:
    """Read one item of the index, ``[name, dtype, shape]``, trusting nothing.

    Raises:
        ValueError: When it is not one.
    """
    name, dtype, shape = item
    if not isinstance(name, str) or dtype not in DTYPES or not isinstance(shape, list):
        raise ValueError(f"its index has an entry {item!r}")
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"its index has a shape {shape!r}")
    return Entry(name, dtype, tuple(shape))


def parse_header(value: dict[str, Any], entries: tuple[Entry, ...]) -> Header:
    """Rebuild a header from :meth:`Header.to_json`'s result, trusting nothing.

    Raises:
        KeyError, TypeError, ValueError, ConfigError: When it is not one.
    """
    model, classes, preprocessing = value["model"], value["classes"], value["preprocessing"]
    texts = [model["library"], model["name"], value["fingerprint"], value["payload"], *(classes or [])]
    mappings = [model["kwargs"], value["training"], value["versions"]]
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(m, dict) for m in mappings):
        raise ValueError("a field has the wrong type")
    if type(model["num_classes"]) is not int or value["dtype"] not in DTYPES:
        raise ValueError("a field has the wrong type")
    return Header(
        library=model["library"],
        model=model["name"],
        kwargs=model["kwargs"],
        num_classes=model["num_classes"],
        backbone=Backbone.from_json(value["backbone"]),
        fingerprint=value["fingerprint"],
        dtype=value["dtype"],
        learn=Learn.from_json(value["learn"]),
        classes=None if classes is None else tuple(classes),
        preprocessing=None if preprocessing is None else Preprocessing.from_json(preprocessing),
        training=value["training"],
        versions=value["versions"],
        entries=entries,
        payload=value["payload"],
        format=value["format"],
    )


def canonical(value: Any) -> str:
    """Return the one JSON text of ``value`` that digests are taken over."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def header_digest(value: dict[str, Any]) -> str:
    """Return the SHA-256 over the header's JSON text, in hexadecimal."""
    return sha256(canonical(value).encode()).hexdigest()
