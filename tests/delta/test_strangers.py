"""Files that a stranger made to do harm are refused in one sentence, before they take memory or time."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
import zlib
from math import prod
from pathlib import Path

import pytest
import torch
from forge import Parts, raw, small
from safetensors.torch import save_file

import sparsetune as st
from sparsetune.backbone.observe import Memory, observing
from sparsetune.backbone.source import Backbone, Origin
from sparsetune.backbone.zoo import skeleton
from sparsetune.delta import rebuild
from sparsetune.errors import BackboneError, ConfigError, DeltaError

CORPUS = Path(__file__).parent.parent / "fuzz" / "corpus"
GIB = 2**30
SEEDED = Backbone(kind="seed")


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    path = tmp_path_factory.mktemp("honest") / "honest.safetensors"
    st.save(small(), path, classes=list("abcdefghij"))
    return path


@pytest.fixture
def forged(honest, tmp_path):
    """A function that writes the honest delta with another header, or another index."""

    def write(change=None, index=None):
        parts = Parts(honest)
        if change:
            change(parts.header)
        if index:
            parts.index = index(parts.index)
        return parts.write(tmp_path / "forged.safetensors")

    return write


def model(**changes):
    def change(header):
        header["model"].update(changes)
        header["classes"] = None

    return change


@pytest.mark.parametrize(
    "shape",
    [[2**62, 2**62, 0], [9] * 100_000, [2**63], [10**200], [10**400], [2**20, 2**21], [1] * 17, [-1], [True]],
    ids=[
        "overflow",
        "many sizes",
        "2^63",
        "200 digits",
        "400 digits",
        "2^41 values",
        "17 sizes",
        "-1",
        "true",
    ],
)
def test_a_shape_that_no_tensor_has_is_refused_at_once(forged, shape):
    path = forged(index=lambda index: [[index[0][0], index[0][1], shape], *index[1:]])
    began = time.monotonic()
    for read in (st.inspect, st.load, st.verify):
        with pytest.raises(DeltaError, match="is not an intact delta"):
            read(path)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "kwargs",
    [{"depth": 10**400}, {"depth": 10**299}, {"depth": [10**299, 0.5]}, {"a": "b"}, {"width": 1e308}],
)
def test_arguments_of_constructors_are_refused(forged, kwargs):
    with pytest.raises((ConfigError, DeltaError)):
        st.load(forged(model(kwargs=kwargs)))


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["learn"].update(layers=["block1"] * 300_000, fraction=0.2),
        lambda header: header["learn"].update(layers="x" * 3_000_000),
        lambda header: header.update(fingerprint="f" * 100_000),
        lambda header: header.update(versions={str(n): "1" for n in range(100_000)}),
        lambda header: header.update(classes=["a\u202eb"] * 10),
        lambda header: header.update(classes=["\u001b[31mred"] * 10),
        lambda header: header["backbone"].update(seed=10**400),
        lambda header: header["model"].update(num_classes=10**30),
        lambda header: header["model"].update(name="x" * 900),
        lambda header: header["preprocessing"] or header.update(preprocessing={"size": [3, 10**6, 10**6]}),
    ],
)
def test_what_is_said_of_it_is_short_and_plain(forged, change):
    began = time.monotonic()
    with pytest.raises(st.SparsetuneError) as error:
        st.load(forged(change))
    assert time.monotonic() - began < 10
    text = str(error.value)
    assert len(text) < 1000
    assert text.isprintable()


def test_buffers_that_no_file_lists_are_counted(forged):
    """`vit_relpos_small_patch16_224` keeps a table of all pairs of patches, which is in no `state_dict`."""
    path = forged(model(name="vit_relpos_small_patch16_224", kwargs={"img_size": 1024}, num_classes=2))
    with pytest.raises(BackboneError, match=r"takes more than 512\.00 MiB of memory"):
        st.load(path, max_bytes=GIB // 2)


def test_what_a_trial_finds_too_large_is_no_damage():
    """As where no trial is made: ``verify`` tells one from the other by its exit code."""
    with pytest.raises(BackboneError, match=r"takes more than 512\.00 MiB of memory"):
        st.load(CORPUS / "delta" / "mem_relpos.safetensors", max_bytes=GIB // 2)


def test_the_type_of_the_values_is_counted(honest, tmp_path):
    """In float64 a model takes twice what it does in float32."""
    path = tmp_path / "double.safetensors"
    st.save(small(width=4).double(), path)
    values = sum(value.numel() for value in st.merge_(st.load(path)).state_dict().values())
    with pytest.raises(BackboneError, match="more than the"):
        st.load(path, max_bytes=8 * values)
    st.load(path, max_bytes=24 * values)


def test_values_are_counted_before_they_are_read(honest):
    with pytest.raises(BackboneError, match="it holds values that take"):
        st.load(honest, max_bytes=1000)


def test_memory_is_counted_while_a_model_is_built():
    """As torch would take it: what is freed is no longer counted, and views take none."""
    memory = Memory()
    with torch.device("meta"), observing(memory=memory):
        held = torch.zeros(1000)
        for _ in range(5):
            torch.ones(500) + 1
        view = held.view(10, 100)[2:]
    assert memory.peak == 4 * (1000 + 500 + 500)
    del held, view
    assert memory._now == 0


def test_real_tensors_are_foreseen():
    """Outside the meta device what would be too large is not made."""
    with observing(memory=Memory(10**6)), pytest.raises(BackboneError):
        torch.arange(1000.0).outer(torch.arange(1000.0))
    with observing(memory=Memory(10**7)):
        torch.arange(1000.0).outer(torch.arange(1000.0))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("resnet18", "float64"),
        ("vit_relpos_small_patch16_224", "float32"),
        pytest.param("resnet18", "float32", marks=pytest.mark.slow),
        pytest.param("swin_tiny_patch4_window7_224", "float32", marks=pytest.mark.slow),
        pytest.param("swin_tiny_patch4_window7_224", "float64", marks=pytest.mark.slow),
    ],
)
def test_the_bound_holds(tmp_path, name, dtype):
    """A process that loads a file has at most what is counted more than one that has loaded another."""
    path, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    net = st.adapt_(st.create(name, num_classes=3), st.Learn(fraction=0.1)).to(getattr(torch, dtype))
    st.save(net, path)
    st.save(st.adapt_(st.create("test_resnet"), st.Learn(fraction=0.1)), other)
    counted = bound(path)
    code = (
        "import resource, sys, sparsetune as st; st.load(sys.argv[1]);"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; st.load(sys.argv[2]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    words = [sys.executable, "-c", code, str(other), str(path)]
    took = int(subprocess.run(words, capture_output=True, text=True, check=True).stdout) * 1024
    assert took < 1.1 * counted + 2**23


def bound(path):
    """The least `max_bytes` with which a file loads, in steps of a twentieth."""
    limit = 2**20
    while True:
        try:
            st.load(path, max_bytes=limit)
        except BackboneError:
            limit = int(1.05 * limit)
        else:
            return limit


PAIRS = {"window_size": [100] * 3, "img_size": 1600}
"""Of `efficientvit_m0`, which lists all pairs of a window's places in Python before torch hears of them."""


def test_an_architecture_that_takes_long_is_given_up(forged, monkeypatch):
    monkeypatch.setattr(rebuild, "PATIENCE", 8)
    with pytest.raises(BackboneError, match="takes more than 8 s to build"):
        st.load(forged(model(name="efficientvit_m0", kwargs=PAIRS, num_classes=2)), max_bytes=64 * GIB)


@pytest.mark.slow
def test_an_architecture_that_takes_memory_outside_torch_is_given_up(forged):
    origin = Origin(library="timm", name="efficientvit_m0", kwargs=PAIRS, num_classes=2, backbone=SEEDED)
    with pytest.raises(st.SparsetuneError, match=r"(?i)memory"):
        rebuild.try_out_elsewhere(origin, 810 * 2**20)


def test_unusual_arguments_that_do_no_harm_are_tried_once(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    st.save(
        st.adapt_(st.create("test_vit", num_classes=3, embed_dim=60, init_values=99.0), st.Learn(rank=1)),
        path,
    )
    st.load(path)
    monkeypatch.setattr(rebuild, "TRIAL", "raise SystemExit(9)")
    st.load(path)
    rebuild._TRIED.clear()
    with pytest.raises(BackboneError, match="exit code 9"):
        st.load(path)


def test_a_pipe_is_no_file(tmp_path):
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    for read in (st.inspect, st.load, st.Tasks.load, st.load_slim):
        with pytest.raises(DeltaError):
            read(pipe)
    with pytest.raises(BackboneError):
        st.create("test_resnet", checkpoint=pipe)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        json.dumps({"format": 1, "names": ["\u001b[2Jok\nfake line"]}),
        json.dumps({"format": 1, "names": ["a\u202eb"]}),
        json.dumps({"format": 1, "names": ["x" * 5000]}),
        json.dumps({"format": 10**500, "names": ["a"]}),
        json.dumps({"format": 1, "names": [str(n) for n in range(20_000)]}),
    ],
)
def test_names_in_a_bundle_are_plain(honest, tmp_path, text):
    path = tmp_path / "bundle.safetensors"
    raw(path, {"delta/0": honest.read_bytes()}, {"delta/0": "U8"}, {"sparsetune.bundle": text})
    with pytest.raises(DeltaError, match="is not an intact bundle") as error:
        st.Tasks.load(path)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 600


def test_what_safetensors_says_of_damage_is_printable(honest, tmp_path):
    data = honest.read_bytes().replace(b'"U8"', '"\u202e"'.encode()[:4], 1)
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    for read in (st.load, st.Tasks.load):
        with pytest.raises(DeltaError) as error:
            read(path)
        assert str(error.value).isprintable()


def test_the_process_own_limit_is_seen():
    """What may be taken is half of what the tightest limit leaves."""
    code = (
        "import resource; from sparsetune.host import taken_bytes, usable_bytes;"
        f"resource.setrlimit(resource.RLIMIT_AS, (taken_bytes('VmSize') + {GIB},) * 2);"
        "print(usable_bytes())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 0.9 * GIB / 2 < int(told) <= GIB / 2
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def test_an_index_is_unpacked_with_a_limit(forged, honest, tmp_path):
    parts = Parts(honest)
    path = tmp_path / "bomb.safetensors"
    parts.write(path, index_bytes=zlib.compress(b"[" + b" " * 2**24 + b"]"))
    with pytest.raises(DeltaError, match="cut off or too long"):
        st.load(path)


def test_checkpoints_are_sealed(tmp_path):
    """A bit that is flipped in a value of a whole checkpoint is found, and one without a seal still loads."""
    net = st.merge_(small())
    whole = tmp_path / "whole.safetensors"
    from sparsetune.delta import write_plain

    write_plain(net, whole)
    again = st.create("wrn28_4", depth=10, width=1, num_classes=10, checkpoint=whole)
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), net.state_dict().values(), strict=True)
    )
    data = bytearray(whole.read_bytes())
    for place in range(len(data) // 2, len(data), len(data) // 120):
        data[place] ^= 16
        whole.write_bytes(data)
        with pytest.raises(BackboneError, match="do not match their checksum"):
            st.create("wrn28_4", depth=10, width=1, num_classes=10, checkpoint=whole)
        data[place] ^= 16
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, whole)
    st.create("wrn28_4", depth=10, width=1, num_classes=10, checkpoint=whole)


def test_a_skeleton_within_its_limit_is_built():
    origin = Origin(library="timm", name="resnet18", kwargs={}, num_classes=10, backbone=SEEDED)
    net = skeleton(origin, GIB)
    assert sum(prod(value.shape) for value in net.parameters()) == 11_181_642


def test_pictures_may_not_be_larger_than_memory(tmp_path):
    """The delta says how large each picture is made, the process how many of these it can take."""
    code = (
        "import resource, torch, sparsetune as st; from sparsetune.host import taken_bytes;"
        "from sparsetune.data import Feed, loader;"
        "data = st.open_data('digits'); form = st.Preprocessing((3, 4096, 4096), (0.5,) * 3, (0.5,) * 3)\n"
        f"resource.setrlimit(resource.RLIMIT_DATA, (taken_bytes('VmData') + {GIB},) * 2)\n"
        "for make in (lambda: loader(data.test, form, batch_size=32),"
        "    lambda: Feed(data.test, form, torch.device('cpu'), batch_size=32)):\n"
        "    try: make()\n"
        "    except st.SparsetuneError as error: print(error)\n"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert len(told.splitlines()) == 2
    assert all("a batch of 32 pictures of 4096x4096 takes 7.50 GiB" in line for line in told.splitlines())
    assert all("give batches of 2 (--batch-size 2)" in line for line in told.splitlines())
