"""The file: what was learned, and all that it takes to rebuild the rest.

Imports ``sliced``. A file may be a stranger's, so nothing of it is used before it was checked.

- ``header``: ``Header``, what a file says of itself, as a value; ``container``: the bytes.
- ``rebuild``: a header to a model on its backbone, with distrust.
- ``saving``: ``save``, ``load``, ``inspect``, ``verify``, and how large a file will be.
- ``values``: files as values: ``diff``, ``soup``, ``stack``; ``bundles``: several files in one.

A learned weight goes from ``sliced.learned_values`` through ``saving`` and ``container`` to disk.
"""

from typing import TYPE_CHECKING

from sparsetune.host import lazily

if TYPE_CHECKING:
    from sparsetune.delta.bundles import bundle, is_bundle, unpacked
    from sparsetune.delta.container import LIMIT, compress, is_delta, read_delta, read_header
    from sparsetune.delta.header import Header, header_text, parse_header, text_digest
    from sparsetune.delta.rebuild import LIBRARIES, check_fit, described, other_versions
    from sparsetune.delta.saving import (
        check_savable,
        check_told,
        file_bytes,
        fill,
        fill_rounded,
        inspect,
        load,
        longest_noted,
        save,
        taught_by,
        verify,
        write_plain,
    )
    from sparsetune.delta.values import diff, soup, stack
else:
    __getattr__ = lazily(__name__)

__all__ = [
    "Header",
    "LIBRARIES",
    "LIMIT",
    "bundle",
    "check_fit",
    "check_savable",
    "check_told",
    "described",
    "compress",
    "diff",
    "file_bytes",
    "fill",
    "fill_rounded",
    "header_text",
    "inspect",
    "is_bundle",
    "is_delta",
    "load",
    "longest_noted",
    "other_versions",
    "parse_header",
    "read_delta",
    "read_header",
    "save",
    "soup",
    "stack",
    "taught_by",
    "text_digest",
    "unpacked",
    "verify",
    "write_plain",
]
