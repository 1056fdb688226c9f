"""From a picture to the numbers that a model sees, a value that a delta file keeps; and augmentation."""

from __future__ import annotations

import math
import reprlib
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sparsetune.data.images import convert
from sparsetune.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

MAX_SIDE = 4096

_MODES = {1: "L", 3: "RGB"}
_INTERPOLATIONS = {method.name.lower(): method for method in Image.Resampling}


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes a tensor: convert, resize as a whole, scale to [0, 1], normalise.

    Converting turns it upright, as its EXIF data says, and lays transparent pixels on white.

    For a pixel ``v`` in 0..255 of channel ``c`` the tensor holds ``(v / 255 - mean[c]) / std[c]`` in float32.

    Args:
        size: Channels (1 or 3), height and width of the tensor; sides up to 4096 pixels.
        mean: One mean a channel, on the scale from 0 to 1.
        std: One standard deviation a channel, on the same scale.
        interpolation: Pillow's name of the resampling filter, in lower case.

    Raises:
        ConfigError: When a value is out of its range.
    """

    size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        ConfigError.collect(_problems(self.size, self.mean, self.std, self.interpolation))

    def to_json(self) -> dict[str, Any]:
        """Give the value as plain lists, numbers and strings; ``from_json`` is the exact inverse."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }

    def describe(self) -> str:
        """Return a few plain words, such as ``8x8 pictures, mean 0.5, std 0.25, bilinear``."""
        channels, height, width = self.size
        mean, std = (", ".join(f"{v:.4g}" for v in values) for values in (self.mean, self.std))
        grey = "grey " if channels == 1 else ""
        return f"{height}x{width} {grey}pictures, mean {mean}, std {std}, {self.interpolation}"

    @classmethod
    def from_json(cls, value: Any) -> Preprocessing:
        """Read what ``to_json`` gave, trusting nothing.

        Args:
            value: Decoded JSON, perhaps out of a stranger's file.

        Raises:
            ConfigError: When a key is missing or unknown, or a value has the wrong type or range.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(value, dict) or set(value) != set(names):
            found = reprlib.repr(value)
            raise ConfigError(
                f"preprocessing {found} is not valid; expected an object with {', '.join(names)}."
            )
        parts: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        return cls(**parts)

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """Convert and resize one picture.

        Args:
            image: A picture of any mode with 8 bits a channel, and of any size.

        Returns:
            The pixels, uint8 of shape (height, width, channels).

        Raises:
            DataError: When the picture has more than 8 bits a channel.
        """
        channels, height, width = self.size
        image = convert(image, _MODES[channels])
        if image.size != (width, height):
            image = image.resize((width, height), _INTERPOLATIONS[self.interpolation])
        return np.asarray(image).reshape(height, width, channels)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Scale and normalise pixels, one picture or a whole batch.

        Args:
            pixels: uint8 of shape (..., height, width, channels).

        Returns:
            float32 of shape (..., channels, height, width), contiguous.
        """
        import torch  # late: a file is told of without it

        mean, std = (torch.tensor(v, device=pixels.device).view(-1, 1, 1) for v in (self.mean, self.std))
        return pixels.movedim(-1, -3).contiguous().to(torch.float32).div_(255).sub_(mean).div_(std)

    def apply(self, image: Image.Image) -> Tensor:
        """Turn one picture into the model's input.

        Args:
            image: A picture of any mode with 8 bits a channel, and of any size.

        Returns:
            float32 of shape (channels, height, width).

        Raises:
            DataError: When the picture has more than 8 bits a channel.
        """
        import torch

        return self.normalise(torch.from_numpy(self.pixels(image).copy()))


def _problems(size: Any, mean: Any, std: Any, interpolation: Any) -> list[str]:
    """List what is wrong with the four values, one sentence each."""
    found = []
    if not (_is_tuple(size, int) and len(size) == 3 and size[0] in _MODES and _within(size[1:], 1, MAX_SIDE)):
        found.append(
            f"preprocessing size {reprlib.repr(size)} is not valid; "
            f"expected (channels, height, width) with 1 or 3 channels and sides from 1 to {MAX_SIDE}."
        )
    for name, values, low in (("mean", mean, -1e3), ("std", std, 1e-6)):
        if not (_is_tuple(values, int, float) and _within(values, low, 1e3)):
            found.append(
                f"preprocessing {name} {reprlib.repr(values)} is not valid; "
                f"expected one number a channel, each from {low:g} to 1000."
            )
    if not found and not len(mean) == len(std) == size[0]:
        found.append(
            f"preprocessing has {len(mean)} means and {len(std)} standard deviations; "
            f"expected one of each for the {size[0]} channels."
        )
    if not (isinstance(interpolation, str) and interpolation in _INTERPOLATIONS):
        found.append(
            f"preprocessing interpolation {reprlib.repr(interpolation)} is unknown; "
            f"expected {', '.join(sorted(_INTERPOLATIONS))}."
        )
    return found


def _is_tuple(values: Any, *kinds: type) -> bool:
    return isinstance(values, tuple) and all(isinstance(v, kinds) and not isinstance(v, bool) for v in values)


def _within(values: tuple[float, ...], low: float, high: float) -> bool:
    return all(low <= v <= high and not math.isnan(v) for v in values)


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
        import torch

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
        padded = torch.nn.functional.pad(pixels, (0, 0, *[self.pad] * 4))
        _, full_height, full_width, _ = padded.shape
        rows = number[:, None] * full_height + top + down
        columns = left + torch.where(flipped > 0, width - 1 - across, across)
        chosen = rows[:, :, None] * full_width + columns[:, None, :]
        return padded.view(-1, channels).index_select(0, chosen.view(-1)).view(pixels.shape)
