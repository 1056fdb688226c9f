"""Every exception that sparsetune raises on purpose.

A message is one sentence that names the offending value, what was expected, and the remedy. The command
line prints it as it stands and exits with code 2.
"""

from __future__ import annotations

import reprlib
import warnings
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

LONGEST = 200
"""Most characters of a name in a message."""


class SparsetuneError(Exception):
    """Base of all errors that a user can cause and mend."""


class ConfigError(SparsetuneError, ValueError):
    """A setting, or several settings together, that cannot be used."""

    @classmethod
    def collect(cls, problems: Iterable[str]) -> None:
        """Raise one error that lists all ``problems``; do nothing when there are none.

        Args:
            problems: One sentence for each problem.

        Raises:
            ConfigError: When there is at least one problem.
        """
        found = list(problems)
        if found:
            raise cls("\n".join(found))


class DivergedError(ConfigError):
    """A training whose loss is no longer finite."""


class UnknownNameError(SparsetuneError, ValueError):
    """A name (of a model, a layer, a data set …) that does not exist."""

    def __init__(self, kind: str, name: str, known: Iterable[str], remedy: str = "") -> None:
        names = sorted(known)
        near = get_close_matches(name[:LONGEST], names, n=3, cutoff=0.5)
        if near:
            hint = f"did you mean {' or '.join(near)}?"
        elif len(names) <= 20:
            hint = f"known: {', '.join(names) or 'none'}."
        else:
            hint = f"{len(names)} names are known."
        said = name if name.isprintable() and len(name) <= LONGEST else reprlib.repr(name)
        super().__init__(f"{kind} '{said}' is unknown; {hint}{' ' + remedy if remedy else ''}")


class BackboneError(SparsetuneError):
    """A backbone that cannot be built, or is not the one expected."""


class DeltaError(SparsetuneError):
    """A delta file that is damaged, unreadable, or does not fit."""


class DataError(SparsetuneError):
    """Images or labels that are missing or cannot be read."""


class HubError(SparsetuneError, OSError):
    """What the Hugging Face Hub refuses, or cannot be asked."""


class StorageError(SparsetuneError, OSError):
    """A file that cannot be written, for lack of space or permission."""


class OutOfMemoryError(SparsetuneError):
    """Work that takes more memory than there is."""


class Terminated(KeyboardInterrupt):
    """The system's wish that the process end (SIGTERM), which is met as Ctrl-C is."""


class Interrupted(KeyboardInterrupt):
    """A run that was interrupted, and in which folder it can be gone on with."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        self.folder = folder


class Notice(UserWarning):
    """What a user should know of a call that does its work all the same."""


def notify(text: str) -> None:
    """Warn of something in one sentence; the command line prints it on stderr as it stands."""
    warnings.warn(text, Notice, stacklevel=3)
