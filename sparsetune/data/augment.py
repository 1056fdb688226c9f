"""Random crop and flip of whole batches, each picture driven by one given random integer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from sparsetune.errors import ConfigError


@dataclass(frozen=True)
class Augment:
    """What may happen to a training picture.

    Args:
        pad: Black pixels put around the picture before a window of its old size is cut at random.
        flip: Whether to mirror every second picture, left to right.

    Raises:
        ConfigError: When ``pad`` is negative.
    """

    pad: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise ConfigError(f"pad {self.pad} is negative; give the pixels to pad with, or 0 for none.")

    def apply(self, pixels: Tensor, draws: NDArray[np.uint64]) -> Tensor:
        """Crop and flip pictures, on the device where they are.

        The window's top is ``(draw mod 2^32) mod (2 pad + 1)``, its left edge the same of
        ``floor(draw / 2^32) mod 2^31``, and bit 63 of ``draw`` flips.

        Args:
            pixels: uint8 of shape (batch, height, width, channels).
            draws: A uniform integer of 64 bits for each picture, of shape (batch,).

        Returns:
            uint8 of the same shape.
        """
        if not (self.pad or self.flip):
            return pixels
        count, height, width, channels = pixels.shape
        shifts = np.uint64(2 * self.pad + 1)
        low, high = draws & np.uint64(0xFFFFFFFF), draws >> np.uint64(32) & np.uint64(0x7FFFFFFF)
        flips = draws >> np.uint64(63) if self.flip else np.zeros_like(draws)
        top, left, flipped = (
            torch.from_numpy(each.astype(np.int64)).to(pixels.device).view(-1, 1)
            for each in (low % shifts, high % shifts, flips)
        )
        number, down, across = (torch.arange(n, device=pixels.device) for n in (count, height, width))
        padded = F.pad(pixels, (0, 0, *[self.pad] * 4))
        _, full_height, full_width, _ = padded.shape
        rows = number[:, None] * full_height + top + down
        columns = left + torch.where(flipped > 0, width - 1 - across, across)
        chosen = rows[:, :, None] * full_width + columns[:, None, :]
        return padded.view(-1, channels).index_select(0, chosen.view(-1)).view(pixels.shape)
