"""A training's way to its pictures: decoded once, kept on the device where all fit, batches made there."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import torch
from torch import Tensor

from sparsetune.data.augment import Augment
from sparsetune.data.loading import Batch, Recipe, Rows, epoch_rows, pixel_loader
from sparsetune.data.splits import Split
from sparsetune.machine import free_bytes
from sparsetune.preprocessing import Preprocessing

SHARE = 0.25
"""Most of a device's free memory that a split's pixels may take to stay there."""


class Feed:
    """Batches of one split, epoch after epoch; equal, bit for bit, to those of :func:`loader`.

    Pictures are decoded when they are first needed. Where the whole split fits, their pixels then stay on the
    device, as one uint8 tensor, and later epochs decode nothing.

    Args:
        split: The pictures.
        preprocessing: How each becomes a tensor.
        device: Where batches are made.
        batch_size: Pictures a batch.
        augment: What may happen to a training picture.
        workers: Processes that decode; 0 decodes in this one.
        share: As for :func:`loader`.
    """

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        device: torch.device,
        *,
        batch_size: int,
        augment: Augment | None = None,
        workers: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.split, self.preprocessing, self.device = split, preprocessing, device
        self.batch_size, self.augment, self.workers, self.share = batch_size, augment, workers, share
        channels, height, width = preprocessing.size
        shape = (len(split), height, width, channels)
        self._held = np.zeros(len(split), dtype=bool)
        self._pixels = None
        if prod(shape) <= SHARE * free_bytes(device):
            self._pixels = torch.empty(shape, dtype=torch.uint8, device=device)

    def epoch(self, seed: int | None = None, number: int = 0, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch: x on the device, y on the CPU.

        Args:
            seed: Fixes order and augmentation, together with ``number``; ``None`` for the stored order, and
                pictures as they are.
            number: The epoch's number, from 0.
            skip: Batches to leave out at the start, undecoded.

        Raises:
            DataError: When a picture cannot be decoded.
        """
        batches = epoch_rows(len(self.split), self.batch_size, seed, number, self.share)[skip:]
        recipe = Recipe.of_epoch(self.split, self.preprocessing, self.augment, seed, number)
        missing = [rows[~self._held[rows]] for rows in batches]
        decoded = iter(
            pixel_loader(
                self.split, self.preprocessing, [rows for rows in missing if len(rows)], self.workers
            )
        )
        for rows, new in zip(batches, missing, strict=True):
            if len(new):
                pixels = next(decoded)[0].to(self.device, non_blocking=True)
            if self._pixels is not None:
                if len(new):
                    self._pixels.index_copy_(0, self._index(new), pixels)
                    self._held[new] = True
                pixels = self._pixels.index_select(0, self._index(rows))
            yield recipe.make(pixels, rows), self.split.labels[torch.from_numpy(rows)]

    def _index(self, rows: Rows) -> Tensor:
        return torch.from_numpy(rows).to(self.device)
