"""This machine: its files, its devices, its words.

Imports nothing of the house but errors. What a room above wants from the system goes through here.

- ``lazy``: doors whose names are imported when they are used, and what follows another import.
- ``files``: files that appear whole or not at all; a safetensors file's texts; a delta's ``hf://`` address to
  a local file.
- ``machine``: devices, free memory, what a measurement was taken on.
- ``text``: counts, sizes, durations and errors, in words; sizes and durations from words.
"""

from typing import TYPE_CHECKING

from sparsetune.host.lazy import after_import, lazily

if TYPE_CHECKING:
    from sparsetune.host.files import (
        DELTA,
        Address,
        explain,
        fetch,
        is_address,
        metadata,
        replacing,
        write_bytes,
        write_text,
    )
    from sparsetune.host.machine import describe_machine, free_bytes, is_main, keep_freed_memory, pick_device
    from sparsetune.host.text import bytes_from, duration, listed, reason, seconds_from, share, size
else:
    __getattr__ = lazily(__name__)

__all__ = [
    "Address",
    "DELTA",
    "after_import",
    "bytes_from",
    "describe_machine",
    "duration",
    "explain",
    "fetch",
    "free_bytes",
    "is_address",
    "is_main",
    "keep_freed_memory",
    "lazily",
    "listed",
    "metadata",
    "pick_device",
    "reason",
    "replacing",
    "seconds_from",
    "share",
    "size",
    "write_bytes",
    "write_text",
]
