"""What a model was trained on: noted on it by ``fit`` and ``load``, and kept by ``save``."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from sparsetune.data import Preprocessing, Seen

_TAUGHT = "_sparsetune_taught"


@dataclass(frozen=True)
class Taught:
    """What a model was trained on.

    Attributes:
        classes: Class names in the order of the outputs; ``None`` where they are not known.
        preprocessing: What the pictures went through; likewise.
        default: What ``open_data`` gave in its place, where ``fit`` decided for another.
        seen: What is known of the pictures that gave the learned values.
    """

    classes: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    default: Preprocessing | None = None
    seen: Seen | None = None


def taught(net: nn.Module) -> Taught:
    """Return what is noted on a model."""
    found = getattr(net, _TAUGHT, None)
    return found if isinstance(found, Taught) else Taught()


def teach(net: nn.Module, what: Taught) -> None:
    """Note on a model what it was trained on."""
    setattr(net, _TAUGHT, what)
