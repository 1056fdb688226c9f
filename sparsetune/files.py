"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from sparsetune.errors import StorageError

DELTA = "delta.safetensors"
"""Name of a delta in the folder of a run, and in a repository."""


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path`` to write to; move it into place when the block ends well.

    Args:
        path: The final file. Its folder is made if missing.

    Yields:
        The temporary path.

    Raises:
        StorageError: When the folder or the file cannot be written; nothing is left behind.
    """
    target = Path(path)
    temporary = target.parent / f".{target.name[:100]}.{secrets.token_hex(4)}.part"
    try:
        if target.exists() and not target.is_file():
            raise OSError(errno.EEXIST, "it is there and is not a plain file")
        target.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(
            f"cannot write {target}: {reason}; free space or choose another place, then try again."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that it appears whole or not at all.

    Raises:
        StorageError: When it cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8 so that it appears whole or not at all.

    Raises:
        StorageError: When it cannot be written.
    """
    write_bytes(path, text.encode())
