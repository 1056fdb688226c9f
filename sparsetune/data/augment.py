"""Random crop and flip of one picture, driven by one given random integer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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

    def apply(self, pixels: NDArray[np.uint8], draw: int) -> NDArray[np.uint8]:
        """Crop and flip one picture.

        The window's top is ``(draw mod 2^32) mod (2 pad + 1)``, its left edge the same of
        ``floor(draw / 2^32) mod 2^31``, and bit 63 of ``draw`` flips.

        Args:
            pixels: uint8 of shape (height, width, channels).
            draw: A uniform integer of 64 bits.

        Returns:
            uint8 of the same shape; may be a view.
        """
        if self.pad:
            height, width, channels = pixels.shape
            shifts = 2 * self.pad + 1
            top, left = (draw & 0xFFFFFFFF) % shifts, (draw >> 32 & 0x7FFFFFFF) % shifts
            padded = np.zeros((height + shifts - 1, width + shifts - 1, channels), dtype=np.uint8)
            padded[self.pad : self.pad + height, self.pad : self.pad + width] = pixels
            pixels = padded[top : top + height, left : left + width]
        return pixels[:, ::-1] if self.flip and draw >> 63 else pixels
