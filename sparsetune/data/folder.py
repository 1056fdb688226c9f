"""Pictures as files, one folder a class."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sparsetune.data.images import content_key, decode
from sparsetune.data.listing import FORMAT, Folder
from sparsetune.data.splits import Split
from sparsetune.errors import DataError


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
        """Hash one picture as it is stored."""
        path = Path(self.paths[index])
        try:
            return content_key(path.read_bytes())
        except OSError as error:
            raise DataError(f"image {str(path)!r} cannot be read ({error.strerror}).") from error

    def size(self, index: int) -> int:
        """Return how many bytes one picture takes where it is stored."""
        path = self.paths[index]
        try:
            return os.stat(path).st_size  # noqa: PTH116 (a third of the time of Path's)
        except OSError as error:
            raise DataError(f"image {path!r} cannot be read ({error.strerror}).") from error

    def mark(self, index: int) -> str:
        """Tell one picture from others without reading it."""
        path = Path(self.paths[index])
        name = Path(os.path.relpath(path, self.root or path.parent)).as_posix()
        return f"{name} {self.size(index)}"


def read(folder: Folder) -> tuple[Split, tuple[str, ...]]:
    """Read a folder that has one sub-folder a class; the sub-folders' sorted names are the class names.

    Args:
        folder: The folder; pictures may lie at any depth below a class folder.
    """
    paths = [each.below() for each in folder.filled]
    labels = np.repeat(np.arange(len(paths)), [len(some) for some in paths])
    images = FileImages(tuple(path for some in paths for path in some), str(folder.path))
    return Split.whole(images, labels), tuple(each.name for each in folder.filled)


def check_classes(folder: Folder) -> None:
    """Refuse a class folder without pictures; a folder that only has other files is no class.

    Raises:
        DataError: When there is one.
    """
    for each in folder.folders:
        left = each.left_below()
        unreadable = sorted(suffix for kind, suffix in left if kind == FORMAT)
        but = f" that can be read, only {', '.join(unreadable)}" if unreadable else ""
        if not each.count and (unreadable or not left):
            raise DataError(
                f"class folder {str(each.path)!r} holds no images{but}; "
                "put .bmp, .gif, .jpg, .png, .tif, .webp or other picture files into it, or remove it."
            )
