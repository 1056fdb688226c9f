"""``Tasks`` that read deltas when they are asked for, and keep so many bytes of them."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from forge import X, in_threads, stirred

import sparsetune as st
from sparsetune.errors import ConfigError, DeltaError, UnknownNameError

NAMES = [f"t{number}" for number in range(6)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny) -> Path:
    folder = tmp_path_factory.mktemp("deltas")
    for number, name in enumerate(NAMES):
        st.save(
            stirred(tiny(num_classes=4 + number % 2), number),
            folder / name,
            classes=list("abcdef")[: 4 + number % 2],
        )
    return folder


@pytest.fixture(scope="module")
def expected(folder) -> dict[str, torch.Tensor]:
    return {name: st.load(folder / name)(X) for name in NAMES}


@pytest.fixture
def files(folder) -> dict[str, Path]:
    return {name: folder / name for name in NAMES}


def one_delta(files) -> int:
    """Bytes that the largest of the tasks takes."""
    tasks = st.Tasks.load(files)
    return max(state.nbytes for state in tasks.states.values())


def test_only_the_first_is_read_until_another_is_asked_for(files, expected, monkeypatch):
    read = []
    take = st.Tasks.take
    monkeypatch.setattr(
        st.Tasks, "take", lambda self, name, path: (read.append(name), take(self, name, path))
    )
    tasks = st.Tasks.load(files, cache_bytes=1 << 30)
    assert read == ["t0"]
    assert tasks.names == tuple(NAMES)
    for name in ("t3", "t3", "t0"):
        assert torch.equal(tasks(name, X), expected[name])
    assert read == ["t0", "t3"]


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_answers_are_the_same_whatever_is_kept(files, expected, kept):
    tasks = st.Tasks.load(files, cache_bytes=kept * one_delta(files))
    torch.manual_seed(kept)
    for number in torch.randint(len(NAMES), (25,)).tolist():
        assert torch.equal(tasks(NAMES[number], X), expected[NAMES[number]])
        assert tasks.cached_bytes == sum(state.nbytes for state in tasks.states.values())
        assert len(tasks.states) <= max(kept, 1)
    rows = ["t4", "t1", "t4", "t2", "t5", "t0"]
    found = tasks(X[:6], task=rows)
    for row, (name, logits) in enumerate(zip(rows, found, strict=True)):
        own = expected[name][row]
        assert torch.allclose(logits[: len(own)], own, atol=1e-5)


def test_those_that_were_not_asked_for_longest_are_forgotten(files):
    tasks = st.Tasks.load(files, cache_bytes=2 * one_delta(files))
    for name in ("t1", "t0", "t2"):
        tasks(name, X)
    assert [*tasks.headers] == ["t0", "t2"]


def test_a_delta_that_is_replaced_is_read_again_once_it_was_forgotten(folder, tmp_path, expected):
    places = {name: tmp_path / name for name in ("a", "b")}
    for place, name in zip(places.values(), ("t0", "t2"), strict=True):
        place.write_bytes((folder / name).read_bytes())
    tasks = st.Tasks.load(places, cache_bytes=0)
    assert torch.equal(tasks("b", X), expected["t2"])
    places["b"].write_bytes((folder / "t4").read_bytes())
    assert torch.equal(tasks("b", X), expected["t2"])
    tasks("a", X)
    assert torch.equal(tasks("b", X), expected["t4"])


def test_a_fault_stays_with_its_task(files, folder, expected, tmp_path, tiny):
    st.save(tiny(seed=1), tmp_path / "foreign")
    (tmp_path / "damaged").write_bytes((folder / "t1").read_bytes()[:-7])
    tasks = st.Tasks.load(files, cache_bytes=1 << 30)
    tasks.add("foreign", tmp_path / "foreign")
    tasks.add("damaged", tmp_path / "damaged")
    tasks.add("nowhere", tmp_path / "nowhere")
    for name, said in (("foreign", "stands on"), ("damaged", "damaged"), ("nowhere", "nowhere")):
        for _ in range(2):
            with pytest.raises(DeltaError, match=said):
                tasks(name, X)
    assert torch.equal(tasks("t1", X), expected["t1"])
    assert "foreign" in tasks.names
    tasks.remove("foreign")
    assert "foreign" not in tasks.names
    with pytest.raises(UnknownNameError):
        tasks("foreign", X)


def test_headers_tell_what_a_task_is(files):
    tasks = st.Tasks.load(files, cache_bytes=0)
    assert tasks.header("t1").classes == tuple("abcde")
    assert tasks.header("t2").classes == tuple("abcd")
    with pytest.raises(UnknownNameError):
        tasks.header("t9")
    whole = st.Tasks.load(files)
    assert whole.header("t1").classes == tuple("abcde")
    with pytest.raises(UnknownNameError):
        whole.header("t9")


def test_one_that_is_lent_stays_itself_while_others_are_read(files, expected):
    tasks = st.Tasks.load(files, cache_bytes=0)
    with tasks.use("t3") as net:
        assert torch.equal(tasks("t5", X), expected["t5"])
        assert torch.equal(net(X), expected["t3"])


def test_removed_and_added_again_under_its_name(files, expected):
    tasks = st.Tasks.load(files, cache_bytes=1 << 30)
    tasks("t1", X)
    tasks.remove("t1")
    assert tasks.cached_bytes == sum(state.nbytes for state in tasks.states.values())
    tasks.add("t1", files["t2"])
    assert torch.equal(tasks("t1", X), expected["t2"])
    with pytest.raises(ConfigError, match="there already"):
        tasks.add("t1", files["t1"])


def test_copies_read_on(files, expected):
    tasks = st.Tasks.load(files, cache_bytes=0)
    tasks("t1", X)
    for other in (copy.deepcopy(tasks), pickle.loads(pickle.dumps(tasks))):
        for name in ("t1", "t4"):
            assert torch.equal(other(name, X), expected[name])


def test_threads_that_ask_for_different_tasks_get_their_own(files, expected):
    tasks = st.Tasks.load(files, cache_bytes=one_delta(files))
    wrong = []

    def ask(seed: int) -> None:
        for number in torch.randint(
            len(NAMES), (30,), generator=torch.Generator().manual_seed(seed)
        ).tolist():
            if not torch.equal(tasks(NAMES[number], X), expected[NAMES[number]]):
                wrong.append(number)

    in_threads(ask, 4)
    assert not wrong


@pytest.mark.parametrize("given", [-1, True, "1GB", 1.5])
def test_bytes_are_a_whole_number(files, given):
    with pytest.raises(ConfigError, match="cache_bytes"):
        st.Tasks.load(files, cache_bytes=given)


def test_a_bundle_is_read_whole(files, tmp_path):
    from sparsetune.delta import bundle

    bundle({name: files[name] for name in ("t0", "t1")}, tmp_path / "all.safetensors")
    with pytest.raises(ConfigError, match="read whole"):
        st.Tasks.load(tmp_path / "all.safetensors", cache_bytes=0)
