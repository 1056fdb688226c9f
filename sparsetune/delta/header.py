"""``Header``: all that a delta file says of itself, as a value and as JSON."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from typing import TYPE_CHECKING, Any

from sparsetune.backbone import Backbone, Origin
from sparsetune.data import Preprocessing
from sparsetune.errors import ConfigError
from sparsetune.host import UNSHOWN
from sparsetune.spec import BITS, Learn, coded_bytes

if TYPE_CHECKING:
    import torch

FORMATS = (1, 2, 3, 4, 5, 6, 7)
"""Versions of the file format: 2 adds values in fewer bits, 3 low-rank sums, 4 amounts by layer, 5 frozen
running statistics, 6 spread vectors and files of few bytes, 7 these in fewer bytes."""
DTYPES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "bool": 1}
"""torch's name of a type of tensors as they are -> bytes of each value."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"[0-9A-Za-z.+!_-]{1,64}")
_LONGEST = 1000
_DEEPEST = 32
_MOST_SIZES, _MOST_VALUES = 16, 2**40
_MOST_VERSIONS = 64
_MOST_CLASSES = 2**24


@dataclass(frozen=True)
class Entry:
    """One tensor of the file; ``dtype`` is its type, or the name of the code that holds its values."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def type(self) -> torch.dtype:
        """The tensor's type once it is read."""
        import torch

        found: torch.dtype = getattr(torch, "float32" if self.dtype in BITS else self.dtype)
        return found

    @property
    def nbytes(self) -> int:
        """Most bytes in the file."""
        if self.dtype in BITS:
            return coded_bytes(self.dtype, self.shape)
        return self.numel * DTYPES[self.dtype]

    @property
    def numel(self) -> int:
        """Number of values."""
        return prod(self.shape)


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

    Raises:
        ConfigError: When class names are not texts or not as many as classes, backbone and learn spec
            contradict each other, a value is nested too deep, or a text cannot be shown on one line.
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
    format: int = 1

    def __post_init__(self) -> None:
        if self.classes is not None and self.num_classes and len(self.classes) != self.num_classes:
            raise ConfigError(
                f"{len(self.classes)} class names were given for {self.num_classes} classes; "
                "name each class once."
            )
        if not all(isinstance(name, str) for name in self.classes or ()):
            raise ConfigError(
                f"class names {reprlib.repr(self.classes)} are not all texts; write them as texts."
            )
        if (self.backbone.kind == "zero") != (self.learn.frozen == "zero"):
            raise ConfigError(
                f"backbone {self.backbone.describe()} and frozen='{self.learn.frozen}' contradict each "
                "other; zero goes with zero."
            )
        for text in _texts(self.to_json()):
            if len(text) > _LONGEST or UNSHOWN.search(text):
                raise ConfigError(
                    f"the text {reprlib.repr(text)} is longer than {_LONGEST} characters or does not print "
                    "on one line; use printable characters."
                )

    @property
    def origin(self) -> Origin:
        """How to make the model that the file is for."""
        return Origin(
            library=self.library,
            name=self.model,
            kwargs=self.kwargs,
            num_classes=self.num_classes,
            backbone=self.backbone,
        )

    @property
    def learned_bytes(self) -> int:
        """Bytes of the tensors, as they stand in the file."""
        return sum(entry.nbytes for entry in self.entries)

    @property
    def accuracy(self) -> tuple[str, float] | None:
        """Which pictures the training tells its accuracy on, ``test`` or ``validation``, and that share."""
        result = self.training.get("result")
        if isinstance(result, dict):
            for split in ("test", "validation"):
                if isinstance(found := result.get(f"{split}_top1"), float):
                    return split, found
        return None

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


def parse_entries(value: Any) -> tuple[Entry, ...]:
    """Read the index, a list of ``[name, dtype, shape]``, trusting nothing.

    Raises:
        ValueError: When it is not one.
    """
    if not isinstance(value, list):
        raise ValueError("its index is not a list")
    entries = tuple(_entry(item) for item in value)
    if len({entry.name for entry in entries}) < len(entries):
        raise ValueError("its index has a name twice")
    return entries


def parse_header(value: dict[str, Any], entries: tuple[Entry, ...]) -> Header:
    """Rebuild a header from :meth:`Header.to_json`'s result, trusting nothing.

    Raises:
        ValueError, ConfigError: When it is not one.
    """
    model, versions = _field(value, "model", dict), _field(value, "versions", dict)
    classes = _field(value, "classes", list, type(None))
    many = len(versions) > _MOST_VERSIONS
    if many or not all(isinstance(text, str) and _VERSION.fullmatch(text) for text in versions.values()):
        raise ValueError(f"its versions are {reprlib.repr(versions)}")
    digests = {name: _field(value, name, str) for name in ("fingerprint", "payload")}
    for name, digest in digests.items():
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"its {name} {reprlib.repr(digest)} is not a SHA-256")
    dtype = _field(value, "dtype", str)
    if dtype not in DTYPES or "float" not in dtype:
        raise ValueError(f"its dtype is {reprlib.repr(dtype)}")
    num_classes = _field(model, "num_classes", int)
    if not 0 <= num_classes <= _MOST_CLASSES:
        raise ValueError(f"its num_classes is {reprlib.repr(num_classes)}")
    preprocessing = _field(value, "preprocessing", dict, type(None))
    return Header(
        library=_field(model, "library", str),
        model=_field(model, "name", str),
        kwargs=_field(model, "kwargs", dict),
        num_classes=num_classes,
        backbone=Backbone.from_json(_field(value, "backbone", dict)),
        dtype=dtype,
        learn=Learn.from_json(_field(value, "learn", dict)),
        classes=None if classes is None else tuple(classes),
        preprocessing=None if preprocessing is None else Preprocessing.from_json(preprocessing),
        training=_field(value, "training", dict),
        versions=versions,
        entries=entries,
        format=_field(value, "format", int),
        **digests,
    )


def header_text(header: Header) -> str:
    """Return the JSON text of ``header``: keys sorted, no spaces, ASCII, its own digest inside.

    Raises:
        TypeError, ValueError: When a value is not plain JSON.
    """
    fields = {**header.to_json(), "digest": ""}
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.replace(_digest_field(), _digest_field(text_digest(text)), 1)


def text_digest(text: str, digest: str = "") -> str:
    """Return the SHA-256, in hexadecimal, over a header's text with its ``digest`` made empty."""
    return sha256(text.replace(_digest_field(digest), _digest_field(), 1).encode()).hexdigest()


def _digest_field(digest: str = "") -> str:
    return f'"digest":"{digest}"'


def _entry(item: Any) -> Entry:
    if not isinstance(item, list) or len(item) != 3:
        raise ValueError(f"its index has an entry {reprlib.repr(item)}")
    name, dtype, shape = item
    if not isinstance(name, str) or len(name) > _LONGEST or UNSHOWN.search(name):
        raise ValueError(f"its index has a name {reprlib.repr(name)}")
    if not isinstance(dtype, str) or dtype not in {**DTYPES, **BITS}:
        raise ValueError(f"its index has a dtype {reprlib.repr(dtype)}")
    sizes = isinstance(shape, list) and len(shape) <= _MOST_SIZES and all(type(n) is int for n in shape)
    if not sizes or min(shape, default=0) < 0 or prod(filter(None, shape)) > _MOST_VALUES:
        raise ValueError(f"its index has a shape {reprlib.repr(shape)}")
    return Entry(name, dtype, tuple(shape))


def _field(value: dict[str, Any], name: str, *kinds: type) -> Any:
    if name not in value:
        raise ValueError(f"it lacks '{name}'")
    if type(value[name]) not in kinds:
        raise ValueError(f"its {name} is {reprlib.repr(value[name])}")
    return value[name]


def _texts(value: Any, depth: int = 0) -> Iterator[str]:
    """Yield every text inside a plain JSON value, keys included."""
    if depth > _DEEPEST:
        raise ConfigError(f"a value is nested more than {_DEEPEST} deep; make it flatter.")
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(key, depth)
            yield from _texts(item, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item, depth + 1)
