"""The folder of a run: which one it is, and whose."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sparsetune.data import Data, address, is_folder
from sparsetune.errors import ConfigError, StorageError
from sparsetune.host import CONFIG, DELTA, is_address, json_from, shown, write_text
from sparsetune.spec import FREE

METRICS, CURVES, CHECKPOINT = "metrics.jsonl", "curves.png", "checkpoint.safetensors"

SOURCE, DIGEST = "source", "data_digest"
"""What the settings of a run also hold: where its data lies, and what tells whether that has changed."""

RUNS = Path("runs")
"""Where the folders are that no user named."""

MAY_DIFFER = tuple(f"config.{name}" for name in FREE)
"""Settings that may differ when a run goes on."""


def latest(name: str, settings: dict[str, Any]) -> Path | None:
    """Return the last folder ``runs/NAME…`` of these settings; where none has them, the last of that name.

    Of those whose data is another folder, which may be the same one moved, none is preferred.
    """
    taken = list(itertools.takewhile(Path.exists, _numbered(name)))
    same = [f for f in taken if (there := _read(f)) is not None and not _differing(settings, there)]
    here = [f for f in same if _source(_read(f) or {}) == _source(settings)]
    return next(iter([*here[::-1], *same[::-1], *taken[::-1]]), None)


def check(folder: Path, settings: dict[str, Any], resume: bool) -> None:
    """Refuse a folder that holds a run, unless that is to be resumed and has the same settings.

    Raises:
        ConfigError: When it does.
    """
    held = [name for name in (CONFIG, DELTA, CHECKPOINT) if (folder / name).exists()]
    if held and not resume:
        raise ConfigError(
            f"{folder} holds a run already; add --resume to go on with it, or choose another --out."
        )
    there = _read(folder) if held else settings
    if there is None:
        raise ConfigError(f"{folder} holds a run without readable {CONFIG}; choose another --out.")
    for name in _differing(settings, there)[:1]:
        before, now = _flat(there).get(name), _flat(settings)[name]
        raise ConfigError(
            f"{folder} holds a run with {name} = {shown(json.dumps(before))}, not {json.dumps(now)}; "
            "resume with its settings, or choose another --out."
        )


def check_data(folder: Path | None, data: Data) -> None:
    """Refuse to go on with the run in ``folder`` on other pictures than those that it began with.

    A folder of pictures may have moved. Runs of versions that recorded no digest go by its place.

    Raises:
        StorageError: When names, sizes or labels are others.
    """
    there = (folder and _read(folder)) or {}
    before = _source(there)
    same = there[DIGEST] == data.digest() if DIGEST in there else before == data.source
    if there and not same:
        what = (
            "whose pictures or labels have changed since" if before == data.source else f"not {data.source}"
        )
        raise StorageError(
            f"{folder} holds a run on {shown(before)}, {what}; bring those pictures back, or choose "
            "another --out."
        )


def unfinished(name: str, settings: dict[str, Any]) -> Path | None:
    """Return the last folder ``runs/NAME…`` that holds a half-done run of these settings."""
    folder = latest(name, settings)
    there = folder and (folder / CHECKPOINT).is_file() and _read(folder)
    return folder if there and not _differing(settings, there) else None


@contextmanager
def owning(folder: Path) -> Iterator[None]:
    """Keep other processes from training in a folder for as long as the context lasts, however it ends.

    The lock is the system's, on the folder itself, so that nothing is left behind. Where the system has no
    such locks (Windows, some network drives), nobody is kept out.

    Raises:
        ConfigError: When another process trains there.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another process is training in {folder}; wait until it ends, or choose another --out."
            ) from error
        except OSError:
            pass
        yield
    finally:
        os.close(handle)


def recorded(folder: Path | None, name: str) -> Any:
    """Return what the settings of a run hold under ``name``; ``None`` if there is no run, or nothing."""
    return ((folder and _read(folder)) or {}).get(name)


def make(folder: Path | None, name: str) -> Path:
    """Make the folder of a run where there is none.

    Args:
        folder: Where; ``None`` makes a new one, ``runs/NAME`` or, if that is taken, ``runs/NAME-2`` and so
            on, which no other run started at the same time gets.
        name: For a new one.

    Raises:
        StorageError: When it cannot be made.
    """
    if folder is None:
        return _make(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot write {folder / CONFIG}: {error.strerror}; free space or choose another --out, then try "
            "again."
        ) from error
    return folder


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings of a run, plain JSON values, to its folder.

    Raises:
        StorageError: When they cannot be written.
    """
    write_text(folder / CONFIG, json.dumps(settings, indent=2) + "\n")


def leave(folder: Path) -> None:
    """Take back a claim on a folder in which nothing was learned."""
    (folder / CONFIG).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _make(name: str) -> Path:
    try:
        RUNS.mkdir(exist_ok=True)
        while True:
            folder = next(folder for folder in _numbered(name) if not folder.exists())
            with suppress(FileExistsError):
                folder.mkdir()
                return folder
    except OSError as error:
        raise StorageError(
            f"cannot write to {RUNS.absolute()}: {error.strerror}; choose another place with --out."
        ) from error


def _numbered(name: str) -> Iterator[Path]:
    """Yield ``runs/NAME``, ``runs/NAME-2`` and so on."""
    yield RUNS / name
    for number in itertools.count(2):
        yield RUNS / f"{name}-{number}"


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        value = json_from((folder / CONFIG).read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _source(settings: dict[str, Any]) -> str:
    """Where the data of a run lies; of one of an old version as the user named it."""
    return str(settings.get(SOURCE) or address(str(settings.get("data"))))


def _differing(settings: dict[str, Any], there: dict[str, Any]) -> list[str]:
    here, before = _flat(_alike(settings)), _flat(_alike(there))
    return [name for name, value in here.items() if name not in MAY_DIFFER and before.get(name) != value]


def _alike(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, with one name for whatever may be the same: any folder of data, a path in two forms."""
    data, start = settings.get("data"), settings.get("init_from")
    if isinstance(data, str) and is_folder(data):
        settings = {**settings, "data": "a folder"}
    if isinstance(start, str) and not is_address(start):
        with suppress(OSError, ValueError, RuntimeError):  # text that is no path stays as it is
            settings = {**settings, "init_from": str(Path(start).expanduser().resolve())}
    return settings


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Nested settings as one mapping, with names such as ``config.lr``."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = _flat(value) if isinstance(value, dict) else {}
        flat |= {f"{name}.{key}": item for key, item in inner.items()} if inner else {name: value}
    return flat
