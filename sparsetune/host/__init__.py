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
        CONFIG,
        DELTA,
        SEAL,
        Address,
        digest_of,
        explain,
        fetch,
        is_address,
        metadata,
        plain_file,
        read_sealed,
        replacing,
        sealed_bytes,
        write_bytes,
        write_text,
    )
    from sparsetune.host.machine import (
        describe_machine,
        free_bytes,
        is_main,
        keep_freed_memory,
        pick_device,
        taken_bytes,
        usable_bytes,
    )
    from sparsetune.host.text import (
        DIGITS,
        UNSHOWN,
        bytes_from,
        duration,
        json_from,
        listed,
        reason,
        seconds_from,
        share,
        shown,
        size,
    )
else:
    __getattr__ = lazily(__name__)

__all__ = [
    "Address",
    "CONFIG",
    "DELTA",
    "DIGITS",
    "SEAL",
    "UNSHOWN",
    "after_import",
    "bytes_from",
    "describe_machine",
    "digest_of",
    "duration",
    "explain",
    "fetch",
    "free_bytes",
    "is_address",
    "is_main",
    "json_from",
    "keep_freed_memory",
    "lazily",
    "listed",
    "metadata",
    "pick_device",
    "plain_file",
    "read_sealed",
    "reason",
    "replacing",
    "sealed_bytes",
    "seconds_from",
    "share",
    "shown",
    "size",
    "taken_bytes",
    "usable_bytes",
    "write_bytes",
    "write_text",
]
