"""Where a model's frozen values come from, and the fingerprint that tells one backbone from another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparsetune.errors import ConfigError
from sparsetune.seeding import GENERATOR_VERSION

Kind = Literal["seed", "zero", "pretrained", "file", "module"]
KINDS: tuple[Kind, ...] = ("seed", "zero", "pretrained", "file", "module")

ORIGIN = "_sparsetune_origin"
"""Attribute of a model that ``create`` made."""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """Where frozen values come from.

    Attributes:
        kind: ``seed``: our generator; ``pretrained``: a published checkpoint; ``file``: a checkpoint file;
            ``module``: values that the user's module held; ``zero``: sliced layers are zero and
            all else comes from ``base``.
        seed: For every kind, the seed of values that nothing else gives.
        source: Published name, or file name without folder.
        revision: Revision of a published checkpoint.
        sha256: Digest of a checkpoint file.
        generator: Version of the generator of seeded values.
        base: For ``zero``.
    """

    kind: Kind
    seed: int = 0
    source: str | None = None
    revision: str | None = None
    sha256: str | None = None
    generator: int = GENERATOR_VERSION
    base: Backbone | None = None

    @classmethod
    def from_module(cls, module: nn.Module) -> Backbone:
        """The backbone of a model whose values no file or seed gives: whoever loads must bring them."""
        return cls(kind="module", source=type(module).__name__)

    def zeroed(self) -> Backbone:
        """The backbone whose sliced layers are zero and the rest as here."""
        return self if self.kind == "zero" else Backbone(kind="zero", seed=self.seed, base=self)

    @property
    def root(self) -> Backbone:
        """The backbone that gives values: ``base`` for ``zero``, else itself."""
        return self.base or self

    def describe(self) -> str:
        """Return a few plain words, such as ``seed 0``."""
        words = {
            "seed": f"seed {self.seed}",
            "zero": f"zero, the rest from {self.base.describe() if self.base else 'nothing'}",
            "pretrained": f"pretrained {self.source}" + (f"@{self.revision}" if self.revision else ""),
            "file": f"file {self.source}",
            "module": f"the user's own {self.source}",
        }
        return words[self.kind]

    def to_json(self) -> dict[str, Any]:
        """Return the fields that are set, as plain JSON values."""
        value: dict[str, Any] = {"kind": self.kind, "seed": self.seed, "generator": self.generator}
        for name in ("source", "revision", "sha256"):
            if getattr(self, name) is not None:
                value[name] = getattr(self, name)
        if self.base is not None:
            value["base"] = self.base.to_json()
        return value

    @classmethod
    def from_json(cls, value: Any) -> Backbone:
        """Rebuild from :meth:`to_json`'s result.

        Raises:
            ConfigError: When ``value`` is not such a result.
        """
        if not isinstance(value, dict) or value.get("kind") not in KINDS:
            raise ConfigError(f"backbone {value!r} has no kind among {', '.join(KINDS)}.")
        texts = {name: value[name] for name in ("source", "revision", "sha256") if name in value}
        numbers = {name: value[name] for name in ("seed", "generator") if name in value}
        unknown = set(value) - {"kind", "base", *texts, *numbers}
        valid_texts = all(isinstance(text, str) for text in texts.values())
        if unknown or not valid_texts or not all(type(n) is int and n >= 0 for n in numbers.values()):
            raise ConfigError(f"backbone {value!r} is not one that sparsetune writes.")
        base = cls.from_json(value["base"]) if value["kind"] == "zero" else None
        if base is not None and base.kind == "zero":
            raise ConfigError(f"backbone {value!r} is zero over zero.")
        return cls(kind=value["kind"], base=base, **texts, **numbers)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """How ``create`` made a model: enough to make it again.

    Attributes:
        library: ``timm`` or ``torchvision``.
        name: The model's name in that library.
        kwargs: Arguments of its constructor beside the class count.
        num_classes: Class count.
        backbone: Where its values come from.
    """

    library: str
    name: str
    kwargs: dict[str, Any]
    num_classes: int
    backbone: Backbone


def origin_of(net: nn.Module) -> Origin | None:
    """Return how ``create`` made ``net``; ``None`` for other models."""
    found = getattr(net, ORIGIN, None)
    return found if isinstance(found, Origin) else None


def fingerprint(frozen: Iterable[tuple[str, Tensor]]) -> str:
    """Return the SHA-256 over frozen values, in hexadecimal.

    Args:
        frozen: Name and frozen values of each parameter, in the model's order. Values are read row by row in
            little-endian order; name, dtype and shape are part of the digest.
    """
    digest = sha256()
    for name, values in frozen:
        dtype = str(values.dtype).removeprefix("torch.")
        digest.update(f"{name}\0{dtype}\0{tuple(values.shape)}\0".encode())
        flat = values.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
