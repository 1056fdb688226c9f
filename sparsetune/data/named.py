"""Pictures by a name: digits, CIFAR, a data set of the Hub; and what tells one source from all others."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from sparsetune.data.images import ArrayImages
from sparsetune.data.splits import Split, Splits, split_in_two
from sparsetune.errors import ConfigError, DataError
from sparsetune.host import explain, reason

NAMES = ("digits", "cifar10", "cifar100", "tiny-imagenet")
PREFIX = "hf://datasets/"
"""What the addresses of data sets on the Hub start with."""
CIFAR = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}
"""Our name -> torchvision's class."""
DIGITS_MEAN, DIGITS_STD = (0.3057,) * 3, (0.3760,) * 3


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


def mirrors(source: str) -> bool:
    """Whether the mirror image of a picture is of the same class, which is so but for the digits."""
    return source != "digits"


def read_cifar(name: str, cache: Path) -> Splits:
    """Read one of the two sets, downloaded into ``cache`` on first use; torchvision checks each file's MD5.

    Raises:
        DataError: When it is not there and cannot be downloaded.
    """
    from torchvision import datasets

    kind = getattr(datasets, CIFAR[name])
    try:
        with redirect_stdout(sys.stderr):
            parts = [kind(cache, train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{name} is not in {str(cache)!r} and cannot be downloaded ({reason(error, None)}); "
            f"connect to the network, or put {kind.filename} there."
        ) from error
    train, test = (_split(part) for part in parts)
    return Splits(train, test, tuple(parts[0].classes))


def _split(part: Any) -> Split:
    return Split.whole(ArrayImages(np.ascontiguousarray(part.data)), np.asarray(part.targets))


def read_digits() -> Splits:
    """Read the digits, with a fixed fifth of each class as the test split."""
    from sklearn.datasets import load_digits

    pictures, labels = load_digits(return_X_y=True)
    grey = np.rint(pictures.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    images = ArrayImages(np.repeat(grey, 3, axis=3))
    train, test = split_in_two(Split.whole(images, labels), share=0.2, seed=0)
    return Splits(train, test, tuple("0123456789"))


def download(source: str) -> Path:
    """Bring the Parquet files of ``hf://datasets/OWNER/NAME[/FOLDER]`` into the Hub's cache; return where.

    Raises:
        ConfigError: When ``source`` is not of that form.
        DataError: When there are no such files, or they are neither in the cache nor to be had.
    """
    import huggingface_hub

    words = source.removeprefix(PREFIX).rstrip("/").split("/")
    if not source.startswith(PREFIX) or {"", ".", ".."} & set(words):
        raise ConfigError(f"data source {source!r} is not valid; expected {PREFIX}OWNER/NAME[/FOLDER].")
    name, inside = "/".join(words[:2]), "/".join(words[2:])
    try:
        root = huggingface_hub.snapshot_download(
            name, repo_type="dataset", allow_patterns=f"{inside}/*.parquet".lstrip("/")
        )
    except Exception as error:  # the Hub client's own classes differ between its releases
        raise DataError(f"{source} cannot be downloaded {explain(error)}") from error
    folder = Path(root, inside)
    if not any(folder.glob("**/*.parquet")):
        raise DataError(
            f"{source} holds no Parquet files; choose a data set, or a folder of it, that has some."
        )
    return folder
