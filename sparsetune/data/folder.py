"""Pictures as files, one folder a class."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sparsetune.data.images import content_key, decode
from sparsetune.data.splits import Split
from sparsetune.errors import DataError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


@dataclass(frozen=True, eq=False, repr=False)
class FileImages:
    """Picture files, decoded on access; ``root`` is the folder that their names are relative to."""

    paths: tuple[str, ...]
    root: str = ""

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        return decode(self.paths[index], f"image {self.paths[index]!r}")

    def key(self, index: int) -> bytes:
        path = Path(self.paths[index])
        try:
            return content_key(path.read_bytes())
        except OSError as error:
            raise DataError(f"image {str(path)!r} cannot be read ({error.strerror}).") from error

    def mark(self, index: int) -> str:
        path = Path(self.paths[index])
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataError(f"image {str(path)!r} cannot be read ({error.strerror}).") from error
        return f"{Path(os.path.relpath(path, self.root or path.parent)).as_posix()} {size}"


def read(folder: Path) -> tuple[Split, tuple[str, ...]]:
    """Read a folder that has one sub-folder a class; the sub-folders' sorted names are the class names.

    Args:
        folder: The folder; pictures may lie at any depth below a class folder.

    Raises:
        DataError: When there is no class folder, or one without a picture.
    """
    classes = sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    if not classes:
        raise DataError(
            f"folder {str(folder)!r} holds no images that can be used; "
            "expected one sub-folder a class, or Parquet files."
        )
    paths = [_pictures(folder / name) for name in classes]
    labels = np.repeat(np.arange(len(classes)), [len(some) for some in paths])
    return Split.whole(FileImages(tuple(path for some in paths for path in some), str(folder)), labels), tuple(classes)


def _pictures(folder: Path) -> list[str]:
    found = sorted(
        str(Path(place, name))
        for place, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
    )
    if not found:
        raise DataError(
            f"class folder {str(folder)!r} holds no images; "
            f"put {', '.join(sorted(SUFFIXES))} files into it, or remove it."
        )
    return found
