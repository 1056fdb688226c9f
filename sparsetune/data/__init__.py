"""From a name or a folder to batches of pictures.

Imports ``host``. Nothing here knows of models.

- ``data``: ``open_data`` and ``Data``, what all of this comes to.
- ``named``: digits, CIFAR, the Hub; ``folder``: a local folder, read by ``layout`` (what lies there,
  which folders are splits, which classes) and ``parquet``.
- ``splits``: pictures with labels, how they are parted, and which of them were trained on.
- ``images``: a file to pixels; ``preprocessing``: pixels to numbers, and augmentation.
- ``loading``: numbers to batches, the same in any number of processes.

A picture goes from ``images`` through ``splits``, ``preprocessing`` and ``loading`` to ``train``.
"""

from typing import TYPE_CHECKING

from sparsetune.host import lazily

if TYPE_CHECKING:
    from sparsetune.data.data import Data, cache_folder, open_data
    from sparsetune.data.images import decode
    from sparsetune.data.layout import scan
    from sparsetune.data.loading import Feed, check_batch, count_steps, loader
    from sparsetune.data.named import NAMES, address, is_folder, mirrors, namesake, told
    from sparsetune.data.parquet import ParquetImages, write_table
    from sparsetune.data.preprocessing import Augment, Mix, Preprocessing, mixing
    from sparsetune.data.splits import (
        MOST,
        Overlap,
        Seen,
        Split,
        balanced,
        seen_by_all,
        split_by_content,
        split_in_two,
    )
else:
    __getattr__ = lazily(__name__)

__all__ = [
    "Augment",
    "Data",
    "Feed",
    "MOST",
    "Mix",
    "NAMES",
    "Overlap",
    "ParquetImages",
    "Preprocessing",
    "Seen",
    "Split",
    "address",
    "balanced",
    "cache_folder",
    "check_batch",
    "count_steps",
    "decode",
    "is_folder",
    "loader",
    "mirrors",
    "mixing",
    "namesake",
    "open_data",
    "scan",
    "seen_by_all",
    "split_by_content",
    "split_in_two",
    "told",
    "write_table",
]
