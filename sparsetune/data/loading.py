"""Batches in an order, and with augmentation, that depend only on seed, epoch and sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from sparsetune.data.augment import Augment
from sparsetune.data.draws import draws, shuffled
from sparsetune.data.splits import Split
from sparsetune.errors import ConfigError, DataError
from sparsetune.preprocessing import Preprocessing

Sample = tuple[NDArray[np.uint8], int]
Batch = tuple[Tensor, Tensor]


def loader(
    split: Split,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    train: bool = False,
    augment: Augment | None = None,
    seed: int = 0,
    epoch: int = 0,
    skip: int = 0,
    workers: int = 0,
    share: tuple[int, int] = (0, 1),
) -> DataLoader[Batch]:
    """Make the loader of one epoch.

    The order depends on (seed, epoch) and the augmentation of sample ``i`` on (seed, epoch, i), whatever the
    number of workers. No global random state is read or changed. The last batch may be smaller; a training
    batch that leaves a process less than two pictures, from which batch normalisation cannot learn, joins the
    one before.

    Args:
        split: The pictures.
        preprocessing: How each becomes a tensor.
        batch_size: Pictures a batch.
        train: Whether to shuffle and augment; otherwise pictures come in their stored order, as they are.
        augment: What may happen to a training picture; None for nothing.
        seed: Fixes order and augmentation, together with ``epoch``.
        epoch: The epoch's number, from 0.
        skip: Batches to leave out at the start, undecoded: what comes is the tail of the full epoch.
        workers: Processes that decode; 0 decodes in this one.
        share: ``(i, n)`` gives every ``n``-th picture of each batch, from the ``i``-th on: a process' share
            where ``n`` train together.

    Returns:
        A loader of (x, y): float32 of shape (batch, channels, height, width), and int64 of shape (batch,).

    Raises:
        ConfigError: When ``batch_size`` is below 1, or ``skip`` or ``workers`` is negative.
        DataError: While iterating, when a picture cannot be decoded.
    """
    for name, value, low in (("batch_size", batch_size, 1), ("skip", skip, 0), ("workers", workers, 0)):
        if value < low:
            raise ConfigError(f"{name} {value} is too small; expected {low} or more.")
    samples: _Samples
    if train:
        order = shuffled(len(split), "order", seed, epoch)
        samples = _Samples(split, preprocessing, augment, draws(len(split), "augment", seed, epoch))
    else:
        order = np.arange(len(split))
        samples = _Samples(split, preprocessing)
    starts = [*range(0, len(order), batch_size)]
    if train:
        del starts[count_steps(len(order), batch_size, share[1]) :]
    index, processes = share
    batches = [own for part in np.split(order, starts[1:]) if (own := part[index::processes].tolist())]
    return _Loader(
        samples,
        batch_sampler=batches[skip:],
        collate_fn=_Collate(preprocessing),
        num_workers=workers,
        generator=torch.Generator().manual_seed(0),
    )


def count_steps(count: int, batch_size: int, processes: int = 1) -> int:
    """Return the number of training batches that ``count`` pictures make."""
    small_last = 0 < count % batch_size < 2 * processes and count > batch_size
    return -(-count // batch_size) - small_last


@dataclass(frozen=True, eq=False)
class _Samples(Dataset[Any]):
    """A split as augmented uint8 pixels."""

    split: Split
    preprocessing: Preprocessing
    augment: Augment | None = None
    draws: NDArray[np.uint64] | None = None

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Sample:
        image, label = self.split[index]
        pixels = self.preprocessing.pixels(image)
        if self.augment is not None and self.draws is not None:
            pixels = self.augment.apply(pixels, int(self.draws[index]))
        return pixels, label


@dataclass(frozen=True)
class _Collate:
    """Stack pixels, then normalise the whole batch at once."""

    preprocessing: Preprocessing

    def __call__(self, samples: list[Sample]) -> Batch:
        pixels = torch.from_numpy(np.stack([pixels for pixels, _ in samples]))
        return self.preprocessing.normalise(pixels), torch.tensor([label for _, label in samples])


class _Workers(_MultiProcessingDataLoaderIter):
    """torch's iterator, without its traceback when Ctrl-C comes before it is made whole."""

    _shutdown = True


class _Loader(DataLoader[Batch]):
    """A loader that gives a worker's DataError its own sentence back, without the worker's traceback."""

    def _get_iterator(self) -> Any:
        return _Workers(self) if self.num_workers else super()._get_iterator()

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except DataError as error:
            sentence = str(error).strip().rpartition(f"{DataError.__name__}: ")[2]
            error.__traceback__ = None  # a cycle that holds the workers, and delays their end by seconds
        else:
            return
        raise DataError(sentence)
