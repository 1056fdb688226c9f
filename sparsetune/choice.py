"""What a budget is spent on, and the trials that say so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sparsetune.errors import ConfigError
from sparsetune.learn import Learn
from sparsetune.precision import Precision


@dataclass(frozen=True)
class Trial:
    """One candidate, and how it did.

    Attributes:
        name: What it is.
        learn: What it learns.
        learned_parameters: Learned values.
        delta_bytes: Bytes of these and of the running statistics, in the precision in which they are kept.
        steps: Training steps of its last trial; 0 if it was not tried.
        loss: Mean cross-entropy over the held-out pictures after it, in nats; ``None`` if not tried or
            diverged.
        top1: Share of them classified rightly; likewise.
    """

    name: str
    learn: Learn
    learned_parameters: int
    delta_bytes: int
    steps: int = 0
    loss: float | None = None
    top1: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON values."""
        return {**vars(self), "learn": self.learn.to_json()}


@dataclass(frozen=True)
class Choice:
    """What a budget is spent on.

    Attributes:
        name: Of the candidate chosen.
        learn: What to learn.
        why: One sentence.
        budget: Most bytes of the delta.
        steps: Training steps that the comparison took.
        trials: Every candidate.
        dtype: The precision in which the delta is to be saved; ``None`` for all bits.
    """

    name: str
    learn: Learn
    why: str
    budget: int
    steps: int
    trials: tuple[Trial, ...]
    dtype: Precision | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the choice as plain JSON values."""
        trials = [trial.to_json() for trial in self.trials]
        return {**vars(self), "learn": self.learn.to_json(), "trials": trials}

    @classmethod
    def from_json(cls, value: Any) -> Choice:
        """Rebuild from :meth:`to_json`'s result.

        Raises:
            ConfigError: When ``value`` is not such a result.
        """
        try:
            trials = tuple(Trial(**{**t, "learn": Learn.from_json(t["learn"])}) for t in value["trials"])
            return cls(**{**value, "learn": Learn.from_json(value["learn"]), "trials": trials})
        except (KeyError, TypeError) as error:
            raise ConfigError("the recorded choice of a budget cannot be read; choose anew.") from error


Choosing = Callable[["Trial | Choice"], None]
"""Called after each trial, and with the choice."""
