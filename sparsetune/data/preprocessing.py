"""From a picture to the numbers that a model sees, a value that a delta file keeps; and augmentation."""

from __future__ import annotations

import math
import random
import reprlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image, ImageOps

from sparsetune.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

MAX_SIDE = 4096

CropMode = Literal["squash", "center", "border"]
CROP_MODES: tuple[CropMode, ...] = ("squash", "center", "border")

_MODES = {1: "L", 3: "RGB"}
_CROP = {"crop_pct", "crop_mode"}
_INTERPOLATIONS = {method.name.lower(): method for method in Image.Resampling}


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes a tensor: convert, resize, cut out the middle, scale to [0, 1], normalise.

    Converting turns it upright, as its EXIF data says, and lays transparent pixels on white.

    For a pixel ``v`` in 0..255 of channel ``c`` the tensor holds ``(v / 255 - mean[c]) / std[c]`` in float32.

    Args:
        size: Channels (1 or 3), height and width of the tensor; sides up to 4096 pixels.
        mean: One mean a channel, on the scale from 0 to 1.
        std: One standard deviation a channel, on the same scale.
        interpolation: Pillow's name of the resampling filter, in lower case.
        crop_pct: Share of the resized picture's side that is kept, from .1 to 1; 1 cuts nothing off.
        crop_mode: timm's name of what is done to pictures of another shape. ``squash`` resizes as a whole.
            ``center`` keeps the aspect ratio, so that the shorter side fits, and cuts off the rest;
            ``border`` lets the longer side fit, and fills up with the mean.

    Raises:
        ConfigError: When a value is out of its range.
    """

    size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    crop_pct: float = 1.0
    crop_mode: CropMode = "squash"

    def __post_init__(self) -> None:
        ConfigError.collect(_problems(self.size, self.mean, self.std, self.interpolation))
        ConfigError.collect(_crop_problems(self.crop_pct, self.crop_mode))

    @property
    def crops(self) -> bool:
        """Whether a picture is more than resized as a whole."""
        return (self.crop_pct, self.crop_mode) != (1.0, "squash")

    @property
    def uncropped(self) -> Preprocessing:
        """What gives a picture whole, and so large that the middle of it has the size here."""
        channels, *sides = self.size
        height, width = (max(side, min(MAX_SIDE, math.floor(side / self.crop_pct))) for side in sides)
        return replace(self, size=(channels, height, width), crop_pct=1.0, crop_mode="squash")

    def to_json(self) -> dict[str, Any]:
        """Give the value as plain lists, numbers and strings; ``from_json`` is the exact inverse.

        The crop is there where there is one.
        """
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return values if self.crops else {k: v for k, v in values.items() if k not in _CROP}

    def describe(self) -> str:
        """Return a few plain words, such as ``8x8 pictures, mean 0.5, std 0.25, bilinear``."""
        channels, height, width = self.size
        mean, std = (", ".join(f"{v:.4g}" for v in values) for values in (self.mean, self.std))
        grey = "grey " if channels == 1 else ""
        crop = f", {self.crop_mode} crop of {self.crop_pct:g}" if self.crops else ""
        return f"{height}x{width} {grey}pictures, mean {mean}, std {std}, {self.interpolation}{crop}"

    @classmethod
    def from_json(cls, value: Any) -> Preprocessing:
        """Read what ``to_json`` gave, trusting nothing.

        Args:
            value: Decoded JSON, perhaps out of a stranger's file.

        Raises:
            ConfigError: When a key is missing or unknown, or a value has the wrong type or range.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(value, dict) or set(value) not in (set(names), set(names) - _CROP):
            found = reprlib.repr(value)
            raise ConfigError(
                f"preprocessing {found} is not valid; expected an object with {', '.join(names)}."
            )
        parts: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        return cls(**parts)

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """Convert and resize one picture, and cut out its middle, as timm's and torchvision's transforms do.

        Args:
            image: A picture of any mode with 8 bits a channel, and of any size.

        Returns:
            The pixels, uint8 of shape (height, width, channels).

        Raises:
            DataError: When the picture has more than 8 bits a channel.
        """
        import numpy as np  # late, as everywhere here: a delta's header is told without it

        from sparsetune.data.images import convert

        channels, height, width = self.size
        image = convert(image, _MODES[channels])
        resized = self._resized(image.size)
        if image.size != resized:
            image = image.resize(resized, _INTERPOLATIONS[self.interpolation])
        if resized != (width, height):
            image = self._middle(image)
        return np.asarray(image).reshape(height, width, channels)

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of a picture of such, once it is resized."""
        _, height, width = self.uncropped.size
        if self.crop_mode == "squash":
            return width, height
        if self.crop_mode == "center" and height == width:  # as torchvision's Resize rounds
            short, long = sorted(size)
            long = int(height * long / short)
            return (long, height) if size[0] > size[1] else (width, long)
        ratios = size[1] / height, size[0] / width
        ratio = min(ratios) if self.crop_mode == "center" else max(ratios)
        return max(1, round(size[0] / ratio)), max(1, round(size[1] / ratio))

    def _middle(self, image: Image.Image) -> Image.Image:
        """Cut out the middle of the size, or fill up to it with the mean."""
        _, height, width = self.size
        if image.width < width or image.height < height:
            fill = tuple(min(255, max(0, round(255 * mean))) for mean in self.mean)
            framed = Image.new(image.mode, (max(width, image.width), max(height, image.height)), fill)
            framed.paste(image, ((framed.width - image.width) // 2, (framed.height - image.height) // 2))
            image = framed
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return image.crop((left, top, left + width, top + height))

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


def _crop_problems(share: Any, mode: Any) -> list[str]:
    found = []
    if not (_is_tuple((share,), int, float) and 0.1 <= share <= 1):
        found.append(f"preprocessing crop_pct {reprlib.repr(share)} is not valid; expected .1 to 1.")
    if mode not in CROP_MODES:
        found.append(
            f"preprocessing crop_mode {reprlib.repr(mode)} is unknown; expected {', '.join(CROP_MODES)}."
        )
    return found


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
        scale: Least share of a picture's area that a random crop, which is then resized, has; ``None`` for no
            such crop. Its aspect ratio, of the picture as it was, is between 3/4 and 4/3 (Szegedy et al.,
            2015).
        aa: One of timm's policies of augmentation, after crop and flip.
        reprob: Share of pictures of which a rectangle becomes noise, once they are normalised.

    Raises:
        ConfigError: When ``pad`` is negative, or ``scale`` no share.
    """

    pad: int = 0
    flip: bool = False
    scale: float | None = None
    aa: str | None = None
    reprob: float = 0.0

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise ConfigError(f"pad {self.pad} is negative; give the pixels to pad with, or 0 for none.")
        if self.scale is not None and not 0 < self.scale <= 1:
            raise ConfigError(f"scale {self.scale} is not between 0 and 1; 0.35 crops at least 35 %.")

    def resized_crop(
        self, pixels: Tensor, draws: NDArray[np.uint64], aspects: NDArray[np.float64], size: tuple[int, int]
    ) -> Tensor:
        """Cut a window out of each picture at random, resize it, and flip every second one.

        The draw's bits decide, from the lowest on: 16 of them the area, 15 the aspect ratio, 16 the left
        edge, 16 the top, and the last one the flip. Sampling is bilinear.

        Args:
            pixels: Whole pictures, uint8 of shape (batch, height, width, channels).
            draws: A uniform integer of 64 bits for each picture, of shape (batch,).
            aspects: Each picture's width over its height before it was resized, of shape (batch,).
            size: Height and width to resize the windows to.

        Returns:
            uint8 of shape (batch, *size, channels).
        """
        import numpy as np
        import torch
        from torch.nn import functional as F

        area, ratio, left, top = (
            (draws >> np.uint64(start) & np.uint64(2**bits - 1)).astype(np.float64) / (2**bits - 1)
            for start, bits in ((0, 16), (16, 15), (31, 16), (47, 16))
        )
        area = (self.scale or 1.0) + area * (1 - (self.scale or 1.0))
        shape = np.exp(math.log(3 / 4) * (1 - 2 * ratio)) / aspects  # width over height, both as shares
        wide = np.minimum(np.sqrt(area * shape), 1.0)
        high = np.minimum(np.sqrt(area / shape), 1.0)
        flips = np.where(self.flip & (draws >> np.uint64(63) > 0), -1.0, 1.0)
        zeros = np.zeros_like(wide)
        right, down = (2 * left - 1) * (1 - wide), (2 * top - 1) * (1 - high)
        rows = np.stack([wide * flips, zeros, right, zeros, high, down], 1).reshape(-1, 2, 3)
        window = torch.from_numpy(rows.astype(np.float32)).to(pixels.device)
        shape_out = [len(pixels), pixels.shape[-1], *size]
        grid = F.affine_grid(window, shape_out, align_corners=False)
        whole = pixels.movedim(-1, 1).to(torch.float32)
        seen = F.grid_sample(whole, grid, padding_mode="border", align_corners=False)
        return seen.round_().to(torch.uint8).movedim(1, -1)

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
        import numpy as np
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

    def recolour(self, pixels: Tensor, draws: NDArray[np.uint64], mean: tuple[float, ...]) -> Tensor:
        """Do to pictures what the policy says, one by one, on the CPU; the draw seeds what timm draws.

        Args:
            pixels: uint8 of shape (batch, height, width, channels).
            draws: A uniform integer of 64 bits for each picture, of shape (batch,).
            mean: Of each channel, from 0 to 1; what is moved in from outside has it.

        Returns:
            uint8 of the same shape.
        """
        import numpy as np
        import torch

        if self.aa is None:
            return pixels
        *_, height, width, channels = pixels.shape
        changed, made = _policy(self.aa, min(height, width), mean), []
        with _lent_chance() as seed:
            for picture, draw in zip(pixels.cpu().numpy(), draws.tolist(), strict=True):
                seed(draw)
                image = Image.fromarray(np.broadcast_to(picture, (height, width, 3)))
                made.append(np.asarray(changed(image))[..., :channels])
        return torch.from_numpy(np.stack(made)).to(pixels.device)

    def erase_(self, x: Tensor, draws: NDArray[np.uint64]) -> Tensor:
        """Overwrite a rectangle of some pictures by noise; the draw, each bit turned over, seeds it.

        Args:
            x: Normalised pictures, float32 of shape (batch, channels, height, width).
            draws: A uniform integer of 64 bits for each picture, of shape (batch,).
        """
        if not self.reprob:
            return x
        from timm.data.random_erasing import RandomErasing

        erase = RandomErasing(self.reprob, mode="pixel", device="cpu")
        with _lent_chance() as seed:
            for picture, draw in zip(x, (~draws).tolist(), strict=True):
                seed(draw)
                erase(picture)
        return x


def _policy(name: str, side: int, mean: tuple[float, ...]) -> Callable[[Image.Image], Image.Image]:
    """Make timm's transform of RGB pictures with a shorter side of ``side``, as its own loader does."""
    from timm.data import auto_augment as timm

    grey = [min(255, max(0, round(255 * each))) for each in mean]
    how: dict[str, Any] = {"translate_const": int(0.45 * side), "img_mean": tuple(grey * (3 // len(grey)))}
    if name.startswith("augmix"):
        how["translate_pct"] = 0.3
    makers = {"rand": timm.rand_augment_transform, "augmix": timm.augment_and_mix_transform}
    found: Any = makers.get(name.split("-")[0], timm.auto_augment_transform)(name, how)
    for each in getattr(found, "ops", None) or chain.from_iterable(found.policy):
        if each.aug_fn is timm.posterize:
            each.aug_fn = _posterize
    made: Callable[[Image.Image], Image.Image] = found
    return made


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep so many bits of each value, at least one; timm would keep none, which Pillow 13 refuses."""
    return ImageOps.posterize(image, min(max(bits, 1), 8))


@contextmanager
def _lent_chance() -> Iterator[Callable[[int], None]]:
    """Lend the random states of the process, by a function that seeds all of them, and put them back."""
    import numpy as np
    import torch

    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()

    def seed(number: int) -> None:
        random.seed(number)
        np.random.seed([number % 2**32, number // 2**32])
        torch.default_generator.manual_seed(number)

    try:
        yield seed
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        torch.set_rng_state(kept[2])


Mix = Callable[["Tensor", "Tensor"], "tuple[Tensor, Tensor]"]
"""Takes a batch ``(B, C, H, W)`` with classes ``(B,)``; gives one with shares of classes ``(B, classes)``."""


def mixing(mixup: float, cutmix: float, classes: int) -> Mix | None:
    """Return torchvision's MixUp, CutMix, or a toss between the two; it draws from torch's random state.

    Args:
        mixup: Parameter of the beta distribution of shares; 0 for no MixUp.
        cutmix: Likewise for CutMix.
        classes: How many there are.
    """
    if not (mixup or cutmix):
        return None
    from torchvision.transforms import v2

    wanted = [(v2.MixUp, mixup), (v2.CutMix, cutmix)]
    made = [kind(alpha=alpha, num_classes=classes) for kind, alpha in wanted if alpha]
    found: Mix = v2.RandomChoice(made) if len(made) > 1 else made[0]
    return found
