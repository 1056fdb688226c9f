"""Batches in an order, and with augmentation, that depend only on seed, epoch and sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from sparsetune.data.preprocessing import Augment, Preprocessing
from sparsetune.data.splits import Split, draws, shuffled
from sparsetune.errors import ConfigError, DataError
from sparsetune.host import free_bytes, size, usable_bytes

Sample = tuple[NDArray[np.uint8], int, int, float]
Batch = tuple[Tensor, Tensor]
Rows = NDArray[np.int64]

SHARE = 0.25
"""Most of a device's free memory that a split's pixels may take to stay there."""
PIXEL = 5
"""Bytes of a pixel's channel in a batch: as it is decoded, and in float32."""


def loader(
    split: Split,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    train: bool = False,
    augment: Augment | None = None,
    seed: int = 0,
    epoch: int = 0,
    workers: int = 0,
) -> DataLoader[Batch]:
    """Make the loader of one epoch; :class:`Feed` makes those of many.

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
        workers: Processes that decode; 0 decodes in this one.

    Returns:
        A loader of (x, y): float32 of shape (batch, channels, height, width), and int64 of shape (batch,).

    Raises:
        ConfigError: When ``batch_size`` is below 1, ``workers`` is negative, or a batch does not fit into
            memory.
        DataError: While iterating, when a picture cannot be decoded.
    """
    for name, value, low in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if value < low:
            raise ConfigError(f"{name} {value} is too small; expected {low} or more.")
    check_batch(preprocessing, min(batch_size, len(split)))
    order = seed if train else None
    rows = epoch_rows(len(split), batch_size, order, epoch)
    view = View.of_epoch(split, preprocessing, augment, order, epoch)
    return pixel_loader(split, view.stored, rows, workers, view)


def check_batch(preprocessing: Preprocessing, pictures: int) -> None:
    """Refuse batches that would not fit into memory: a stranger's delta says how large pictures are made.

    Raises:
        ConfigError: When their pixels and values would take more than a process may take here.
    """
    channels, height, width = preprocessing.size
    limit, each = usable_bytes(), channels * height * width * PIXEL
    if limit is not None and pictures * each > limit:
        few = max(1, limit // each)
        raise ConfigError(
            f"a batch of {pictures} pictures of {height}x{width} takes {size(pictures * each)}, more than "
            f"the {size(limit)} that it may take here; give batches of {few} (--batch-size {few})."
        )


def count_steps(count: int, batch_size: int, processes: int = 1) -> int:
    """Return the number of training batches that ``count`` pictures make."""
    small_last = 0 < count % batch_size < 2 * processes and count > batch_size
    return -(-count // batch_size) - small_last


def epoch_rows(
    count: int, batch_size: int, seed: int | None, epoch: int, share: tuple[int, int] = (0, 1)
) -> list[Rows]:
    """Return which of ``count`` pictures make up each batch of an epoch, and of these a process' share.

    ``seed`` and ``epoch`` fix the order; without ``seed`` it is the stored one.
    """
    starts = [*range(0, count, batch_size)]
    if seed is None:
        order = np.arange(count)
    else:
        order = shuffled(count, "order", seed, epoch)
        del starts[count_steps(count, batch_size, share[1]) :]
    index, processes = share
    return [own for part in np.split(order, starts[1:]) if len(own := part[index::processes])]


@dataclass(frozen=True, eq=False)
class View:
    """What makes a batch of pixels the model's input in one epoch: augmentation, then normalisation.

    Args:
        preprocessing: Of pictures that nothing happens to.
        augment: What may happen to a picture.
        draws: uint64 of shape (count,): the random integer of each picture.
    """

    preprocessing: Preprocessing
    augment: Augment
    draws: NDArray[np.uint64]

    @classmethod
    def of_epoch(
        cls,
        split: Split,
        preprocessing: Preprocessing,
        augment: Augment | None,
        seed: int | None,
        epoch: int,
    ) -> View:
        """Make the view of one epoch; without ``seed`` or ``augment`` pictures stay as they are."""
        if seed is None or augment is None:
            return cls(preprocessing, Augment(), np.zeros(len(split), np.uint64))
        return cls(preprocessing, augment, draws(len(split), "augment", seed, epoch))

    @property
    def stored(self) -> Preprocessing:
        """What gives the pixels to make a view of: whole pictures where windows of them are resized."""
        return stored_as(self.preprocessing, self.augment)

    def make(self, pixels: Tensor, rows: Rows, aspects: NDArray[np.float64]) -> Tensor:
        """Return float32 ``(batch, channels, height, width)``, on the device of ``pixels``.

        Args:
            pixels: As ``stored`` gives them, uint8 of shape (batch, height, width, channels).
            rows: The pictures' numbers.
            aspects: Width over height of each picture as it was.
        """
        draws, (_, height, width) = self.draws[rows], self.preprocessing.size
        if self.augment.scale is None:
            seen = self.augment.apply(pixels, draws)
        else:
            seen = self.augment.resized_crop(pixels, draws, aspects, (height, width))
        seen = self.augment.recolour(seen, draws, self.preprocessing.mean)
        return self.augment.erase_(self.preprocessing.normalise(seen), draws)


def stored_as(preprocessing: Preprocessing, augment: Augment | None) -> Preprocessing:
    """Return what gives the pixels that an augmentation starts from."""
    return preprocessing.uncropped if augment and augment.scale is not None else preprocessing


def pixel_loader(
    split: Split,
    preprocessing: Preprocessing,
    rows: Sequence[Rows],
    workers: int,
    view: View | None = None,
) -> DataLoader[Any]:
    """Make a loader that decodes given pictures, batch by batch.

    It gives (x, y), where x is what ``view`` makes; without one x is uint8 of shape (batch, height, width,
    channels), and behind y comes each picture's width over height.
    """
    return _Loader(
        _Samples(split, preprocessing),
        batch_sampler=[each.tolist() for each in rows],
        collate_fn=_Collate(view),
        num_workers=workers,
        generator=torch.Generator().manual_seed(0),
    )


@dataclass(frozen=True, eq=False)
class _Samples(Dataset[Any]):
    """A split as uint8 pixels, with label, number, and width over height."""

    split: Split
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Sample:
        image, label = self.split[index]
        return self.preprocessing.pixels(image), label, index, image.width / image.height


@dataclass(frozen=True, eq=False)
class _Collate:
    """Stack pixels, then make the whole batch at once."""

    view: View | None

    def __call__(self, samples: list[Sample]) -> tuple[Any, ...]:
        stacked, labels, rows, shapes = zip(*samples, strict=True)
        pixels, aspects = torch.from_numpy(np.stack(stacked)), np.array(shapes)
        if self.view is None:
            return pixels, torch.tensor(labels), aspects
        return self.view.make(pixels, np.array(rows), aspects), torch.tensor(labels)


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


@dataclass(eq=False)
class Feed:
    """Batches of one split, epoch after epoch; equal, bit for bit, to those of :func:`loader`.

    Pictures are decoded when they are first needed. Where the whole split fits, their pixels then stay on the
    device, as one uint8 tensor, and later epochs decode nothing. A policy of timm's takes more than decoding:
    where there are workers, they do both, in each epoch.

    Args:
        split: The pictures.
        preprocessing: How each becomes a tensor.
        device: Where batches are made.
        batch_size: Pictures a batch.
        augment: What may happen to a training picture.
        workers: Processes that decode; 0 decodes in this one.
        share: ``(i, n)`` gives every ``n``-th picture of each batch, from the ``i``-th on: a process' share
            where ``n`` train together.
        channels_last: Whether the channels of a pixel lie side by side in memory.
    """

    split: Split
    preprocessing: Preprocessing
    device: torch.device
    _: KW_ONLY
    batch_size: int
    augment: Augment | None = None
    workers: int = 0
    share: tuple[int, int] = (0, 1)
    channels_last: bool = False

    def __post_init__(self) -> None:
        check_batch(self.preprocessing, min(self.batch_size, len(self.split)))
        self._stored = stored_as(self.preprocessing, self.augment)
        channels, height, width = self._stored.size
        shape = (len(self.split), height, width, channels)
        self._held = np.zeros(len(self.split), dtype=bool)
        self._aspects = np.ones(len(self.split))
        self._pixels = None
        busy = self.workers and self.augment is not None and self.augment.aa is not None
        if not busy and prod(shape) <= SHARE * free_bytes(self.device):
            self._pixels = torch.empty(shape, dtype=torch.uint8, device=self.device)

    def epoch(
        self, seed: int | None = None, number: int = 0, skip: int = 0, view: int | None = None
    ) -> Iterator[Batch]:
        """Yield the batches of one epoch: x on the device, y on the CPU.

        Args:
            seed: Fixes order and augmentation, together with ``number``; ``None`` for the stored order, and
                pictures as they are.
            number: The epoch's number, from 0.
            skip: Batches to leave out at the start, undecoded: what comes is the tail of the full epoch.
            view: Number of the epoch whose augmentation the pictures have; ``number`` if left out.

        Raises:
            DataError: When a picture cannot be decoded.
        """
        return self._made(self.rows(seed, number)[skip:], seed, number if view is None else view)

    def rows(self, seed: int | None = None, number: int = 0) -> list[Rows]:
        """Return which pictures make up each batch of an epoch."""
        return epoch_rows(len(self.split), self.batch_size, seed, number, self.share)

    def in_order(self, seed: int, number: int, batch_size: int) -> Iterator[Tensor]:
        """Yield the pictures of an epoch in their stored order, as they are augmented in it."""
        for x, _ in self._made(epoch_rows(len(self.split), batch_size, None, 0), seed, number):
            yield x

    def _made(self, batches: list[Rows], seed: int | None, number: int) -> Iterator[Batch]:
        view = View.of_epoch(self.split, self.preprocessing, self.augment, seed, number)
        form = torch.channels_last if self.channels_last else torch.contiguous_format
        if self.workers and view.augment.aa is not None:
            for x, y in pixel_loader(self.split, self._stored, batches, self.workers, view):
                yield x.to(self.device, non_blocking=True).contiguous(memory_format=form), y
            return
        missing = [rows[~self._held[rows]] for rows in batches]
        decoded = iter(
            pixel_loader(self.split, self._stored, [rows for rows in missing if len(rows)], self.workers)
        )
        for rows, new in zip(batches, missing, strict=True):
            if len(new):
                pixels, _, self._aspects[new] = next(decoded)
                pixels = pixels.to(self.device, non_blocking=True)
            if self._pixels is not None:
                if len(new):
                    self._pixels.index_copy_(0, self._index(new), pixels)
                    self._held[new] = True
                pixels = self._pixels.index_select(0, self._index(rows))
            x = view.make(pixels, rows, self._aspects[rows])
            yield x.contiguous(memory_format=form), self.split.labels[torch.from_numpy(rows)]

    def _index(self, rows: Rows) -> Tensor:
        return torch.from_numpy(rows).to(self.device)
