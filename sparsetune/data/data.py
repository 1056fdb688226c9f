"""A name or a path becomes pictures, labels and the way from one to the other.

Sources: ``digits`` (inside scikit-learn, always there), ``cifar10`` and ``cifar100`` (downloaded on first
use), ``tiny-imagenet`` (Parquet files in the cache folder), ``hf://datasets/NAME``, or a folder: an
ImageFolder tree, or Parquet files in the Hugging Face image layout.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import numpy as np

from sparsetune.data import named
from sparsetune.data.folder import read
from sparsetune.data.named import NAMES, address, mirrors
from sparsetune.data.preprocessing import Augment, Preprocessing
from sparsetune.data.splits import Split, Splits, balanced
from sparsetune.errors import ConfigError, DataError, UnknownNameError

LARGEST_SIDE = 224
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_SIZE_SAMPLE = 64


@dataclass(frozen=True)
class Data:
    """A data set, ready to be loaded.

    Args:
        name: What to call it in a record or a file.
        train: The training split; None when the source has none.
        test: The test split; None when none was given, as of a folder with classes alone.
        classes: Class names; labels index them.
        preprocessing: The way from a picture to the model's input.
        augment: What may happen to a training picture.
        validation: Pictures to look at during training; without ``test`` they are all that is held out.
        source: What ``open_data`` finds it again by: a built-in name, an address, or a folder's whole path.
        found: One line for the user: what was read as what, and what was left out and why.
        default: The preprocessing that ``open_data`` gave; ``fit`` puts a model's in its place where it must.
        sized: Whether ``open_data`` was given the size.
        native: Height and width that the pictures have, where they agree on some up to 224 pixels.
        decided: Whose the preprocessing is, once that is decided for a model.
    """

    name: str
    train: Split | None
    test: Split | None
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    augment: Augment
    validation: Split | None = None
    source: str = ""
    found: str = ""
    default: Preprocessing | None = None
    sized: bool = False
    native: tuple[int, int] | None = None
    decided: str = ""

    @property
    def watched(self) -> Split:
        """The pictures to look at during training: ``validation``, or ``test`` where there is no such."""
        return self.judged if self.validation is None else self.validation

    @property
    def judged(self) -> Split:
        """The pictures that tell what a model is worth: ``test``, or ``validation`` where there is no such.

        Raises:
            DataError: When nothing is held out.
        """
        found = self.validation if self.test is None else self.test
        if found is None:
            raise DataError(f"{self.name} has neither test nor validation pictures; give it some.")
        return found

    @property
    def judged_by(self) -> Literal["test", "validation"]:
        """What these are, to be said beside every accuracy on them."""
        return "validation" if self.test is None else "test"

    def judging(self, split: Split) -> Data:
        """Return the data with other pictures in the place of those that tell what a model is worth."""
        return replace(self, validation=split) if self.test is None else replace(self, test=split)

    def digest(self) -> str:
        """Return 16 hexadecimal digits that classes, names, sizes, labels and order of all pictures fix.

        It is cheap: their content, which it is fixed by too, is read of a few pictures of each split that has
        more than 64 MiB, and of all elsewhere; and it is read once.

        Raises:
            DataError: When one cannot be read.
        """
        found = blake2b("\0".join(self.classes).encode(), digest_size=8)
        for split in (self.train, None if self.test is None else self.validation, self.judged):
            found.update(split.mark if split else b"-")
        return found.hexdigest()

    def regroup(self, name: str, groups: Mapping[str, Sequence[str]]) -> Data:
        """Make another task of these pictures, whose classes are groups of the classes here.

        Args:
            name: What to call it.
            groups: New class -> the classes that it takes in. Pictures of all others are left out.

        Raises:
            UnknownNameError: When there is no such class to take in.
            ConfigError: When a class is taken in twice, or a split has none of the pictures.
        """
        taken: dict[str, int] = {}
        for number, group in enumerate(groups.values()):
            for old in group:
                if old not in self.classes:
                    raise UnknownNameError("class", old, self.classes)
                if taken.setdefault(old, number) != number:
                    raise ConfigError(f"class '{old}' is in two groups of {name}; leave it in one.")
        new = np.array([taken.get(old, -1) for old in self.classes])
        train = None if self.train is None else self.train.relabel(new)
        test = None if self.test is None else self.test.relabel(new)
        validation = None if self.validation is None else self.validation.relabel(new)
        judged = validation if test is None else test
        for split, kind in ((train, "training"), (judged, self.judged_by)):
            if split is not None and not len(split):
                raise ConfigError(f"the groups of {name} leave no {kind} pictures; take in more classes.")
        return replace(self, name=name, train=train, test=test, validation=validation, classes=tuple(groups))


def open_data(
    source: str,
    *,
    size: int | None = None,
    classes: int | None = None,
    train_limit: int | None = None,
    test_limit: int | None = None,
    split_seed: int = 0,
) -> Data:
    """Open a data set; pictures are decoded later, on access.

    Size: the pictures' own if a fixed sample of 64 agrees on one up to 224 pixels, else 224x224. Mean and
    standard deviation: the digits' own, CIFAR's for pictures of 32x32, else ImageNet's. Augmentation: a crop
    padded by an eighth of the shorter side, and flips except for the digits.

    Args:
        source: A name out of ``NAMES``, ``hf://datasets/NAME``, or the path of a folder.
        size: Height and width to resize to, instead of the pictures' own.
        classes: Keep only the first so many classes.
        train_limit: Keep only so many training pictures, balanced over the classes.
        test_limit: The same for the test split, or the validation split of a source without.
        split_seed: Fixes which rows a limit keeps, and which ones are held out of a source without splits.

    Raises:
        UnknownNameError: When ``source`` is neither a known name nor a folder.
        ConfigError: When a limit is larger than the split, or ``size`` or ``classes`` is out of range.
        DataError: When the data is missing, damaged or inconsistent.
    """
    name, splits = _read(source, split_seed)
    there = [split for split in (splits.train, splits.test, splits.validation) if split is not None]
    native = _native_size(there[0])
    height, width = native or (LARGEST_SIDE, LARGEST_SIDE)
    mean, std = _statistics(source, (height, width))
    if size is not None:
        height = width = size
    form = Preprocessing((3, height, width), mean, std)
    data = Data(
        name=name,
        train=splits.train,
        test=splits.test,
        classes=splits.classes,
        preprocessing=form,
        augment=Augment(pad=min(height, width) // 8, flip=mirrors(source)),
        validation=splits.validation,
        source=address(source),
        found=splits.found,
        default=form,
        sized=size is not None,
        native=native,
    )
    if classes is not None:
        if not 1 <= classes <= len(data.classes):
            raise ConfigError(f"classes {classes} cannot be met; {name} has {len(data.classes)}.")
        data = data.regroup(name, {each: [each] for each in data.classes[:classes]})
    if train_limit is not None:
        if data.train is None:
            raise ConfigError(
                f"train_limit {train_limit} cannot be met: {name} has no training images; leave it out."
            )
        data = replace(data, train=balanced(data.train, train_limit, split_seed, "train_limit"))
    if test_limit is not None:
        data = data.judging(balanced(data.judged, test_limit, split_seed, "test_limit"))
    return data


def cache_folder() -> Path:
    """Give the folder that keeps downloads: $SPARSETUNE_DATA if set, else ~/.cache/sparsetune."""
    return Path(os.environ.get("SPARSETUNE_DATA") or "~/.cache/sparsetune").expanduser()


def _read(source: str, split_seed: int) -> tuple[str, Splits]:
    if source == "digits":
        return source, named.read_digits()
    if source in named.CIFAR:
        return source, named.read_cifar(source, cache_folder())
    if source == "tiny-imagenet":
        return source, read(_tiny_imagenet(), split_seed, published=True)
    if "://" in source:
        return source.removeprefix(named.PREFIX), read(named.download(source), split_seed)
    folder = Path(source).expanduser()
    if not folder.exists() and Path(source).name == source:
        raise UnknownNameError("data set", source, NAMES, "Or give the path of a folder.")
    return folder.resolve().name, read(folder, split_seed)


def _tiny_imagenet() -> Path:
    homes = [cache_folder() / name for name in ("tiny-imagenet", "tiny-imagenet-200")]
    for home in homes:
        if home.is_dir():
            return home
    raise DataError(
        f"tiny-imagenet is not in {str(homes[0])!r}; put its Parquet files there "
        "(train-*.parquet, val-*.parquet), or use hf://datasets/zh-plus/tiny-imagenet."
    )


def _native_size(split: Split) -> tuple[int, int] | None:
    """Give (height, width) that a fixed sample agrees on, if not too large."""
    sample = split.sample(_SIZE_SAMPLE)
    sizes = {sample[index][0].size for index in range(len(sample))}
    width, height = sizes.pop()
    return None if sizes or max(width, height) > LARGEST_SIDE else (height, width)


def _statistics(source: str, size: tuple[int, int]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if source == "digits":
        return named.DIGITS_MEAN, named.DIGITS_STD
    return (CIFAR_MEAN, CIFAR_STD) if size == (32, 32) else (IMAGENET_MEAN, IMAGENET_STD)
