"""Pictures by number, decoded on access: upright, without transparency."""

from __future__ import annotations

import functools
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features

from sparsetune.errors import DataError
from sparsetune.host import reason

BACKGROUND = (255, 255, 255)
"""The colour behind transparent pixels: white, as on a page."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
"""What is decoded, as far as this Pillow can: common formats, none of which runs another program."""

_NEEDS = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def convert(image: Image.Image, mode: str) -> Image.Image:
    """Turn a picture upright, lay it on ``BACKGROUND`` and convert it to ``mode``.

    Raises:
        DataError: When it has more than 8 bits a channel, which Pillow would silently clip to white.
    """
    if image.mode.startswith(("I", "F")):
        raise DataError(
            f"the image has pixels of mode {image.mode}, expected 8 bits a channel; convert it first."
        )
    image.load()
    image = _opaque(_upright(image))
    return image if image.mode == mode else image.convert(mode)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Pillow's warnings, which are about files and not about what its caller does, from the terminal.

    Filters of warnings belong to the whole process, so that other threads than the main one leave them alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _upright(image: Image.Image) -> Image.Image:
    """Apply the orientation that the file tells; one that cannot be read is none."""
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF may raise anything
        turn = None
    if turn is None:
        return image
    turned = image.transpose(turn)
    told = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
    turned.info = {key: value for key, value in turned.info.items() if key not in told}
    return turned


def _opaque(image: Image.Image) -> Image.Image:
    palette = image.palette.mode if image.mode == "P" and image.palette else ""
    if not (image.mode.lower().endswith("a") or palette.endswith("A") or "transparency" in image.info):
        return image
    seen = Image.new("RGBA", image.size, BACKGROUND)
    seen.alpha_composite(image.convert("RGBA"))
    return seen.convert("RGB")


@functools.cache
def _readable() -> tuple[str, ...]:
    """Name those of ``FORMATS`` that this Pillow decodes."""
    Image.init()
    with quiet():
        return tuple(
            kind for kind in FORMATS if kind in Image.OPEN and features.check(_NEEDS.get(kind, "pil"))
        )


@functools.cache
def suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of files that :func:`decode` can read here."""
    kinds = {*_readable(), "MPO"}
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in kinds)


def decode(source: str | Path | IO[bytes], name: str) -> Image.Image:
    """Decode one picture to RGB: upright as its EXIF data says, and transparent pixels on white.

    Args:
        source: A path, or an open binary file.
        name: What to call the picture in an error, for example ``image 'a.jpg'``.

    Raises:
        DataError: When it cannot be read or decoded, or has more than 8 bits a channel.
    """
    try:
        with quiet(), Image.open(source, formats=_readable()) as image:
            return convert(image, "RGB")
    except Exception as error:  # a decoder that is given damaged bytes may raise anything
        why = getattr(error, "strerror", None) or reason(error, None)
        if isinstance(error, UnidentifiedImageError):
            why = f"it is none of {', '.join(_readable())}"
        raise DataError(f"{name} cannot be decoded ({why}); replace it or take it out.") from error


class Images(ABC):
    """A numbered collection of pictures."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Image.Image:
        """Decode one picture to RGB.

        Raises:
            DataError: When it cannot be decoded; the message says which one it is.
        """

    @abstractmethod
    def stored(self, index: int) -> bytes:
        """Return one picture as it is stored.

        Raises:
            DataError: When it cannot be read.
        """

    @abstractmethod
    def mark(self, index: int) -> str:
        """Return what tells a picture from others without reading it: its name and size in bytes."""

    def size(self, index: int) -> int:
        """Return how many bytes one picture takes where it is stored."""
        return len(self.stored(index))

    def key(self, index: int) -> bytes:
        """Return 8 bytes that one picture's content fixes; identical pictures have the same.

        Raises:
            DataError: When it cannot be read.
        """
        return blake2b(self.stored(index), digest_size=8).digest()


@dataclass(frozen=True, eq=False, repr=False)
class ArrayImages(Images):
    """Decoded pictures of one size: uint8 of shape (count, height, width, 3)."""

    pixels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def stored(self, index: int) -> bytes:
        """Return one picture's pixels."""
        return bytes(self.pixels[index])

    def mark(self, index: int) -> str:
        """Tell one picture from others by its content, which is at hand."""
        return self.key(index).hex()
