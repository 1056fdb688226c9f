"""What tells one source of pictures from all others: a built-in name, an address, or a folder's path."""

from __future__ import annotations

from pathlib import Path

NAMES = ("digits", "cifar10", "cifar100", "tiny-imagenet")


def is_folder(source: str) -> bool:
    """Whether ``source`` is the path of a folder, not a built-in name or an address."""
    return source not in NAMES and "://" not in source


def address(source: str) -> str:
    """Return what tells a source from all others here: a folder's whole path, all else as it is."""
    return str(Path(source).expanduser().resolve()) if is_folder(source) else source.rstrip("/")


def told(source: str) -> str:
    """Return how a file for others names a source: a folder as ``NAME/``, which no built-in name equals.

    Where a folder lies is nobody else's concern.
    """
    return f"{Path(address(source)).name}/" if is_folder(source) else address(source)


def namesake(source: str) -> str | None:
    """Return one line for the user where a local folder has the built-in name that was given."""
    if source in NAMES and Path(source).is_dir():
        return f"--data {source} is the built-in data set; write ./{source} for the folder of that name here."
    return None
