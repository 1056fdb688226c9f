"""ROOM data."""

from sparsetune.data.data import Data, open_data
from sparsetune.data.images import decode
from sparsetune.data.listing import scan
from sparsetune.data.loading import Feed, count_steps, loader
from sparsetune.data.named import NAMES, address, is_folder, namesake, told
from sparsetune.data.parquet import ParquetImages
from sparsetune.data.preprocessing import Preprocessing
from sparsetune.data.seen import MOST, Overlap, Seen, seen_by_all
from sparsetune.data.splits import Split, balanced, split_in_two

__all__ = [
    "Data",
    "Feed",
    "MOST",
    "NAMES",
    "Overlap",
    "ParquetImages",
    "Preprocessing",
    "Seen",
    "Split",
    "address",
    "balanced",
    "count_steps",
    "decode",
    "is_folder",
    "loader",
    "namesake",
    "open_data",
    "scan",
    "seen_by_all",
    "split_in_two",
    "told",
]
