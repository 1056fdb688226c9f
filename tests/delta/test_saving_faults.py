"""Disks that fail under whatever is written: the old file stays whole, and nothing lies beside it."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forge import moved
from torch import nn

import sparsetune as st
from sparsetune.delta import write_plain
from sparsetune.delta.bundles import bundle
from sparsetune.errors import StorageError
from sparsetune.narrow.network import write_slim
from sparsetune.studies.store import Row, open_store
from sparsetune.train.checkpoint import Position, random_state, write_checkpoint

Write = Callable[[Path, int], None]
"""Writes one of two versions of a file."""


def model(number: int, **kinds: object) -> nn.Module:
    torch.manual_seed(number)
    net = st.create("wrn28_4", depth=10, width=1, num_classes=10)
    return moved(st.adapt_(net, st.Learn(fraction=0.5, **kinds)), number).eval()


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Write]:
    """What the library writes, by what it is."""
    folder = tmp_path_factory.mktemp("deltas")
    nets = [model(number) for number in (0, 1)]
    for number, net in enumerate(nets):
        st.save(net, folder / f"{number}.safetensors")
    zeroed = model(0, frozen="zero")
    st.save(
        zeroed, folder / "zero.safetensors", preprocessing=st.Preprocessing((3, 8, 8), (0.5,) * 3, (1,) * 3)
    )
    slim, header = st.slim(zeroed), st.inspect(folder / "zero.safetensors")
    merged = [st.merge_(model(number)) for number in (0, 1)]
    return {
        "delta": lambda path, number: st.save(nets[number], path),
        "delta of few bits": lambda path, number: st.save(nets[number], path, dtype="int6"),
        "checkpoint": lambda path, number: write_checkpoint(
            path, {}, Position(step=number), {"net": nets[number]}, [random_state()]
        ),
        "whole model": lambda path, number: write_plain(merged[number], path),
        "bundle": lambda path, number: bundle({"a": folder / f"{number}.safetensors"}, path),
        "slim network": lambda path, _: write_slim(path, slim, header),
    }


KINDS = ("delta", "delta of few bits", "checkpoint", "whole model", "bundle", "slim network")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", [("fsync", errno.EIO), ("fsync", errno.ENOSPC), ("replace", errno.EXDEV)])
def test_a_call_that_fails_keeps_the_old_file(
    writers: dict[str, Write],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    fault: tuple[str, int],
) -> None:
    path = tmp_path / "file.safetensors"
    writers[kind](path, 0)
    old = path.read_bytes()

    def failing(*_: object, **__: object) -> None:
        raise OSError(fault[1], os.strerror(fault[1]))

    with monkeypatch.context() as broken:
        broken.setattr(os, fault[0], failing)
        with pytest.raises(StorageError, match=rf"cannot write .*: {os.strerror(fault[1])}; free space or"):
            writers[kind](path, 1)
    assert [*tmp_path.iterdir()] == [path]
    assert path.read_bytes() == old
    writers[kind](path, 1)
    assert kind == "slim network" or path.read_bytes() != old


@pytest.mark.parametrize("kind", KINDS)
def test_a_write_that_is_cut_short_keeps_the_old_file(
    writers: dict[str, Write], tmp_path: Path, kind: str
) -> None:
    """The system itself takes so many bytes of it and no more."""
    path = tmp_path / "file.safetensors"
    writers[kind](path, 0)
    old = path.read_bytes()
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for room in (0, 1, len(old) // 2, len(old) - 1):
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, usual[1]))
            try:
                with pytest.raises(StorageError, match="cannot write"):
                    writers[kind](path, 0)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, usual)
            assert [*tmp_path.iterdir()] == [path]
            assert path.read_bytes() == old
    finally:
        signal.signal(signal.SIGXFSZ, handler)


def test_a_store_keeps_its_rows_where_the_disk_is_full(tmp_path: Path) -> None:
    """A row that does not fit is none, those before it are there, and later ones can be added."""
    rows = [Row(str(number), {"text": "x" * 20_000}, {"top1": number / 9}, {}) for number in range(9)]
    with open_store(tmp_path, write=True) as store:
        for row in rows[:4]:
            store.add(row)
    size = (tmp_path / "results.sqlite").stat().st_size
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for room in (size, size + 5000, size + 15_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, usual[1]))
            try:
                with (
                    open_store(tmp_path, write=True) as store,
                    pytest.raises(StorageError, match="cannot be used"),
                ):
                    store.add(rows[4])
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, usual)
            with open_store(tmp_path, write=False) as store:
                assert store.rows() == rows[:4]
    finally:
        signal.signal(signal.SIGXFSZ, handler)
    with open_store(tmp_path, write=True) as store:
        for row in rows[4:]:
            store.add(row)
        assert store.rows() == rows
