"""Where a model's frozen values come from, as values; nothing here imports torch."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sparsetune.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

Kind = Literal["seed", "zero", "pretrained", "file", "module"]
KINDS: tuple[Kind, ...] = ("seed", "zero", "pretrained", "file", "module")

GENERATOR_VERSION = 1
"""Of the generator of seeded values, part of every key: it changes whenever any value would."""


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
            raise ConfigError(f"backbone {reprlib.repr(value)} has no kind among {', '.join(KINDS)}.")
        fields = {name: item for name, item in value.items() if name != "base"}
        base = value.get("base")
        over = isinstance(base, dict) and base.get("kind") != "zero" and "base" not in base
        if not all(_valid(name, item) for name, item in fields.items()) or not over == ("base" in value) == (
            value["kind"] == "zero"
        ):
            raise ConfigError(f"backbone {reprlib.repr(value)} is not one that sparsetune writes.")
        if value["kind"] == "file" and not {"source", "sha256"} <= set(value):
            raise ConfigError(f"backbone {reprlib.repr(value)} names no file with its SHA-256.")
        return cls(**fields, base=cls.from_json(base) if over else None)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """How ``create`` made a model: enough to make it again.

    Attributes:
        library: ``timm`` or ``torchvision``.
        name: The model's name in that library.
        kwargs: Arguments of its constructor beside the class count.
        num_classes: Class count; 0 for none.
        backbone: Where its values come from.
    """

    library: str
    name: str
    kwargs: dict[str, Any]
    num_classes: int
    backbone: Backbone


def _valid(name: str, value: Any) -> bool:
    if name in ("seed", "generator"):
        return type(value) is int and value >= 0
    return name in ("kind", "source", "revision", "sha256") and isinstance(value, str)
