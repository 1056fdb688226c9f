"""A picture as it is meant to be seen: upright, opaque, in 8 bits a channel."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from sparsetune.errors import DataError

BACKGROUND = (255, 255, 255)
"""The colour behind transparent pixels: white, as on a page."""

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
    with quiet():
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
