"""Files that appear whole or not at all; and ``hf://`` addresses, which become local files."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from safetensors import SafetensorError, safe_open

from sparsetune.errors import ConfigError, HubError, StorageError

if TYPE_CHECKING:
    from torch import Tensor

DELTA = "delta.safetensors"
"""Name of a delta in the folder of a run, and in a repository."""
CONFIG = "config.json"
"""Name of a run's settings in its folder."""
PREFIX = "hf://"
"""What an address on the Hub starts with."""

ABANDONED = 3600
"""Seconds without a write after which a temporary file is nobody's."""

_FORM = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^@/]+))?(/(?P<file>.+\.safetensors))?", re.ASCII
)

_NOBODY = "(no such repository, or a private one); check the name, or log in with `hf auth login`."
_ANSWERS: dict[str | int | None, str] = {
    "RepoNotFound": _NOBODY,
    404: _NOBODY,
    "RevisionNotFound": "(no such revision); name a branch, tag or commit of the repository.",
    "EntryNotFound": "(no such file); name a delta that is there, as hf://OWNER/NAME/FILE.safetensors.",
    "GatedRepo": "(access is gated); ask for it on the repository's page, then `hf auth login`.",
    401: "(the Hub asks who you are); log in with `hf auth login`, or set HF_TOKEN to a valid token.",
    403: "(your token does not allow it); use one with the right to, and check the owner's name.",
}
"""What the Hub's error codes and HTTP statuses mean to a user."""

_REMEDIES = {
    "HFValidationError": "check the name.",
    "OfflineModeIsEnabled": "unset HF_HUB_OFFLINE where there is a network.",
    "LocalProtocolError": "check the token.",
}


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
    start = f".{target.name[:100]}."
    temporary = target.parent / f"{start}{secrets.token_hex(4)}.part"
    try:
        if target.exists() and not target.is_file():
            raise OSError(errno.EEXIST, "it is there and is not a plain file")
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent, start)
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


def _sweep(folder: Path, start: str) -> None:
    """Remove what processes that were killed have left half-written; none takes an hour for a write."""
    for left in folder.glob(f"{glob.escape(start)}????????.part"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()


SEAL = "sparsetune.digest"
"""Metadata key of a safetensors file that holds :func:`digest_of` its tensors."""


def digest_of(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """Return the SHA-256, in hexadecimal, over a text and names, types, shapes and bytes of tensors."""
    import torch  # late: the command line's help is told without it

    digest = sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"\0{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sealed_bytes(tensors: Mapping[str, Tensor], texts: Mapping[str, str], key: str | None = None) -> bytes:
    """Return a safetensors file with :func:`digest_of` its tensors in it, the same bytes in each process.

    Args:
        tensors: What it holds.
        texts: Its metadata.
        key: The one among these that the digest covers too.
    """
    from safetensors.torch import save

    data = save(dict(tensors), {**texts, SEAL: digest_of(tensors, texts[key] if key else "")})
    start = 8 + int.from_bytes(data[:8], "little")
    table = json.loads(data[8:start])
    table["__metadata__"] = dict(sorted(table["__metadata__"].items()))  # safetensors shuffles them
    head = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head + data[start:]


def read_sealed(path: str | Path, key: str | None = None) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read a safetensors file, and compare its tensors with the digest in it.

    Args:
        path: The file.
        key: Metadata key whose text the digest covers too.

    Returns:
        Its metadata and its tensors; of a file without a digest as they stand there.

    Raises:
        OSError, SafetensorError: When it cannot be read.
        ValueError: When its tensors do not match its digest.
    """
    with safe_open(plain_file(path), framework="pt") as file:
        texts = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if SEAL in texts and texts[SEAL] != digest_of(tensors, texts.get(key or "", "")):
        raise ValueError("its values do not match their checksum")
    return texts, tensors


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


def plain_file(path: str | Path) -> Path:
    """Return ``path``; pipes and devices, which may never come to an end, are no files to read.

    Raises:
        OSError: When it is not a plain file.
    """
    found = Path(path)
    if not stat.S_ISREG(found.stat().st_mode):
        raise OSError(errno.EINVAL, "it is not a plain file")
    return found


def metadata(path: str | Path) -> dict[str, str]:
    """Return the texts in a safetensors file's header; nothing where it cannot be read as such a file."""
    try:
        with safe_open(plain_file(path), framework="np") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


@dataclass(frozen=True)
class Address:
    """Where a delta is on the Hub; as text ``hf://OWNER/NAME@REVISION/FILE.safetensors``.

    Attributes:
        repo: ``OWNER/NAME``.
        revision: A branch, tag or commit; ``None`` for the main branch. As text, its slashes are ``%2F``.
        file: The delta inside the repository.
    """

    repo: str
    revision: str | None = None
    file: str = DELTA

    @classmethod
    def parse(cls, text: str, revision: str | None = None) -> Address:
        """Read an address.

        Args:
            text: With or without ``hf://``, revision and file.
            revision: The revision, if the address does not name it.

        Raises:
            ConfigError: When ``text`` is no address, or names a revision too.
        """
        found = _FORM.fullmatch(text.removeprefix(PREFIX))
        if not found or {"", ".", ".."} & set((found["file"] or DELTA).split("/")):
            raise ConfigError(
                f"{text!r} is not valid; expected {PREFIX}OWNER/NAME[@REVISION][/FILE.safetensors]."
            )
        if found["revision"] and revision:
            raise ConfigError(f"{text!r} names a revision and so does revision {revision!r}; keep one.")
        own = unquote(found["revision"]) if found["revision"] else None
        return cls(found["repo"], own or revision, found["file"] or DELTA)

    def __str__(self) -> str:
        revision = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return PREFIX + self.repo + revision + (f"/{self.file}" if self.file != DELTA else "")


def is_address(source: str | Path) -> bool:
    """Whether ``source`` is an address on the Hub rather than a path."""
    return str(source).startswith(PREFIX)


def fetch(source: str | Path) -> Path:
    """Return a path as it is, or download what an ``hf://`` address names into the Hub's own cache.

    Args:
        source: A path or an address. What the cache holds is downloaded again only when it is out of date,
            and served as it is where there is no network.

    Raises:
        ConfigError: When an address is not of the form that :class:`Address` shows.
        HubError: When the file is neither in the cache nor to be had.
    """
    if not is_address(source):
        return Path(source)
    from huggingface_hub import hf_hub_download  # late: most commands ask it nothing

    address = Address.parse(str(source))
    try:
        path = hf_hub_download(
            address.repo, address.file, revision=address.revision, library_name="sparsetune"
        )
    except Exception as error:  # the Hub's client lets those of its HTTP library through
        raise HubError(f"{source} cannot be fetched {explain(error)}") from error
    return Path(path)


def explain(error: BaseException) -> str:
    """Return why the Hub's client failed, in parentheses, and a remedy; never a token or a signed URL."""
    chain = [error]
    while cause := chain[-1].__cause__:
        chain.append(cause)
    found = next((link for link in chain if getattr(link, "response", None) is not None), chain[-1])
    response = getattr(found, "response", None)
    if response is None:
        if isinstance(found, OSError) and found.filename:
            return f"({found.filename}: {found.strerror}); free space, or set HF_HOME to another folder."
        remedy = _REMEDIES.get(type(found).__name__, "check the network and try again.")
        return f"({_line(found) or type(found).__name__}); {remedy}"
    for key in (response.headers.get("X-Error-Code"), response.status_code):
        if key in _ANSWERS:
            return _ANSWERS[key]
    said = _line(getattr(found, "server_message", None) or response.reason_phrase)
    return f"(the Hub answered {response.status_code}: {said}); try again later."


def _line(said: object) -> str:
    """An error's first sentence, without the token that a malformed header would show."""
    text = re.split(r"(?<!\.)\. ", " ".join(str(said).split()))[0]
    return re.sub(r"Bearer [^'\"]*", "Bearer …", text)[:200].rstrip(".")
