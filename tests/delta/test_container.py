"""The file itself: written as documented, read back exactly, and refused when anything is wrong with it."""

import copy
import json
import math
import os
import pickle
import zlib
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from forge import (
    WORDS,
    Parts,
    about_of,
    digest_of_both,
    folded_again,
    raw,
    resealed,
    same,
    sealed,
    small,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import sparsetune as st
from sparsetune.delta.container import is_delta, read_delta, read_header, write_delta
from sparsetune.errors import ConfigError, DeltaError, SparsetuneError

GOLDEN = Path(__file__).parents[1] / "golden"
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_a_writer_from_the_documentation_is_read(tmp_path):
    parts = Parts(GOLDEN / "format1-plain.safetensors")
    assert sealed({**parts.header}) == parts.text
    parts.header["later"] = "passed over"
    path = parts.write(tmp_path / "theirs.safetensors")
    assert same(st.load(path), st.load(GOLDEN / "format1-plain.safetensors"))


# Round trips


KINDS = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.bool,
]
tensors = some.builds(
    lambda dtype, shape, seed: (
        torch.randint(
            -128, 128, [math.prod(shape) * 8], generator=torch.Generator().manual_seed(seed), dtype=torch.int8
        )
        .view(dtype if dtype != torch.bool else torch.int8)[: math.prod(shape)]
        .reshape(shape)
        .to(dtype)
    ),
    some.sampled_from(KINDS),
    some.lists(some.integers(0, 4), max_size=4),
    some.integers(0, 2**32),
)
header = st.inspect(GOLDEN / "format1-plain.safetensors")


def same_bits(a, b):
    bits = [each.contiguous().reshape(-1).view(torch.uint8) for each in (a, b)]
    return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(*bits)


@quick
@given(some.dictionaries(some.from_regex(r"[a-z]+(\.[a-zé0-9_]+)*", fullmatch=True), tensors, max_size=6))
def test_any_tensors_come_back_bit_for_bit(tmp_path, values):
    path = tmp_path / "any.safetensors"
    write_delta(path, header, values)
    found = read_delta(path)
    assert list(found) == list(values)
    assert all(same_bits(found[name], value) for name, value in values.items())
    again = tmp_path / "again.safetensors"
    write_delta(again, header, found)
    assert path.read_bytes() == again.read_bytes()
    assert read_header(path).entries == tuple(read_header(again).entries)


def test_memory_layout_does_not_matter(tmp_path):
    value = torch.arange(120.0).reshape(2, 3, 4, 5)
    for name, form in {
        "plain": value,
        "channels_last": value.to(memory_format=torch.channels_last),
        "view": torch.cat([value, value])[:2],
        "learned": value.clone().requires_grad_(),
    }.items():
        write_delta(tmp_path / name, header, {"a": form})
        assert (tmp_path / name).read_bytes() == (tmp_path / "plain").read_bytes()


def test_a_dtype_that_the_format_does_not_hold_is_named(tmp_path):
    with pytest.raises(DeltaError, match="'a' has dtype complex64; a delta holds float32, "):
        write_delta(tmp_path / "a", header, {"a": torch.zeros(1, dtype=torch.complex64)})
    assert not list(tmp_path.iterdir())


def test_more_words_than_a_file_may_hold_are_refused(tmp_path):
    long = replace(header, training={"words": ["x" * 900] * 5000})
    with pytest.raises(ConfigError, match="shorten the class names or the summary"):
        write_delta(tmp_path / "a", long, {"a": torch.zeros(1)})


# Damage


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The smallest delta there is, and what it holds."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    st.adapt_(net, st.Learn(fraction=0.5, head=False))
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    st.save(net, path)
    return path


def refused(path):
    """The error that reading gives, or None."""
    found = error_of(lambda: read_delta(path, read_header(path)))
    if found:
        assert isinstance(found, DeltaError)
        assert str(path) in str(found)
        assert "\n" not in str(found)
    return found


def error_of(call):
    try:
        call()
    except SparsetuneError as error:
        return error
    return None


def test_truncation_anywhere_is_noticed(tiny, tmp_path):
    whole, path = tiny.read_bytes(), tmp_path / "cut.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert refused(path)
    for extra in (b"\0", b"{}", whole):
        path.write_bytes(whole + extra)
        assert refused(path)


def test_every_flipped_bit_is_noticed(tiny, tmp_path):
    whole, path = tiny.read_bytes(), tmp_path / "flipped.safetensors"
    path.write_bytes(whole)
    accepted = []
    with path.open("r+b", buffering=0) as file:
        for position in range(len(whole)):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([whole[position] ^ 1 << bit]), position)
                if not refused(path):
                    accepted.append((position, bit))
            os.pwrite(file.fileno(), whole[position : position + 1], position)
    assert accepted == []


@quick
@given(data=some.data())
def test_damage_to_a_larger_file_is_noticed(tmp_path, data):
    whole = (GOLDEN / "format1-plain.safetensors").read_bytes()
    place = some.one_of(some.integers(0, 4000), some.integers(0, len(whole) - 1))
    damage = some.tuples(place, some.binary(min_size=1, max_size=9))
    changed = bytearray(whole)
    for position, piece in data.draw(some.lists(damage, min_size=1, max_size=3)):
        changed[position : position + len(piece)] = piece
    del changed[data.draw(some.just(len(whole)) | place) :]
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(changed)
    assert bytes(changed) == whole or refused(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 8,
        b"\xff" * 64,
        b"[]",
        b"{}",
        b'{"sparsetune": 1}',
        b"<html>not found</html>",
        b"\x02\0\0\0\0\0\0\0{}",
        b"\x10\0\0\0\0\0\0\0" + b"[" * 16,
        b"\xff\xff\xff\xff\xff\xff\xff\x7f{}",
    ],
)
def test_garbage_is_no_delta(tmp_path, content):
    path = tmp_path / "garbage.safetensors"
    path.write_bytes(content)
    assert refused(path)
    assert not is_delta(path)


def test_what_is_no_file_is_named(tmp_path):
    for path in (tmp_path, tmp_path / "none.safetensors", Path("/dev/null"), Path()):
        assert "is not a file; pass a delta such as" in str(refused(path))
        assert not is_delta(path)


def test_another_safetensors_file_is_no_delta(tmp_path):
    path = tmp_path / "plain.safetensors"
    for metadata in (None, {}, {"format": "pt"}):
        save_file({"a": torch.zeros(2)}, path, metadata)
        assert "without 'sparsetune' metadata, so no delta" in str(refused(path))
        assert not is_delta(path)
    assert is_delta(GOLDEN / "format1-plain.safetensors")


@pytest.mark.parametrize(
    ("key", "use"),
    [("slim", "load_slim"), ("bundle", "Tasks.load or Ensemble.load"), ("training", "fit --resume")],
)
def test_our_other_files_say_what_to_do_with_them(tmp_path, key, use):
    path = tmp_path / "file.safetensors"
    save_file({"a": torch.zeros(1)}, path, {f"sparsetune.{key}": "{}"})
    with pytest.raises(DeltaError, match=f"{path} is .* with .*{use}.$"):
        read_header(path)


class Evil:
    ran = False

    def __reduce__(self):
        return setattr, (Evil, "ran", True)


def test_pickles_are_never_opened(tmp_path):
    for name, write in {"a.safetensors": pickle.dumps, "b.safetensors": None}.items():
        path = tmp_path / name
        path.write_bytes(write(Evil())) if write else torch.save(Evil(), path)
        assert refused(path)
    assert not Evil.ran


# Forgery: both digests are right, the content is not


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    path = tmp_path_factory.mktemp("honest") / "honest.safetensors"
    st.save(small(), path, classes=list("abcdefghij"), training={"a": [1, {"b": None}]})
    return path


@pytest.fixture
def parts(honest):
    return Parts(honest)


@pytest.mark.parametrize("version", [8, 0, -1, 10**30])
def test_another_format_is_named_whatever_else_is_in_it(parts, tmp_path, version):
    parts.header = {"format": version, "whatever": []}
    error = refused(parts.write(tmp_path / "later.safetensors"))
    assert f"has format {version}; this sparsetune reads formats 1 to 7: install" in str(error)


@pytest.mark.parametrize("version", [None, True, 1.0, "1", [1], {}])
def test_a_format_that_is_no_number_is_refused(parts, tmp_path, version):
    parts.header["format"] = version
    assert "its header has no format" in str(refused(parts.write(tmp_path / "odd.safetensors")))


@pytest.mark.parametrize("header", [None, 1, "text", [], [[]], [{"format": 1}]])
def test_a_header_that_is_no_object_is_refused(parts, tmp_path, header):
    parts.header = header
    assert refused(parts.write(tmp_path / "odd.safetensors"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "NaN",
        '{"format":NaN}',
        '{"format":1}',
        '{"format":1,"digest":null}',
        '{"format":1,"digest":["a"]}',
        '{"format":1,"digest":""}',
        '{"format":' + "9" * 5000 + "}",
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"format":1,"training":' + "[" * 900 + "]" * 900 + "}",
        '"' + "x" * 5_000_000 + '"',
    ],
    ids=lambda text: text[:20],
)
def test_a_text_that_is_no_header_is_refused(parts, tmp_path, text):
    parts.text = text
    assert refused(parts.write(tmp_path / "odd.safetensors", seal=False))


@pytest.mark.parametrize("levels", [5, 30, 40, 300, 900, 990, 2000, 100_000])
def test_depth_inside_a_sealed_header_is_refused_or_passed(parts, tmp_path, levels):
    parts.header["training"] = {"deep": None}
    deep = sealed(parts.header).replace('"deep":null', f'"deep":{"[" * levels}{"]" * levels}')
    parts.text = resealed(deep)
    assert bool(refused(parts.write(tmp_path / "deep.safetensors", seal=False))) == (levels > 32)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["training", "fraction", "format"])
def test_numbers_that_json_does_not_have_are_refused(parts, tmp_path, number, field):
    if field == "fraction":
        parts.header["learn"]["fraction"] = number
    else:
        parts.header[field] = number
    assert refused(parts.write(tmp_path / "nan.safetensors"))


def test_a_number_beyond_floats_is_refused(parts, tmp_path):
    parts.header["training"] = {"a": 123456789}
    for number, wrong in {"1e9": False, "1e999": True}.items():
        parts.text = resealed(sealed(parts.header).replace("123456789", number))
        assert bool(refused(parts.write(tmp_path / "large.safetensors", seal=False))) == wrong


def bomb(size):
    packer = zlib.compressobj(9)
    pieces = [packer.compress(b"[" + b"[]," * (1 << 16)) for _ in range(size >> 17)]
    return b"".join([*pieces, packer.flush()])


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"x",
        zlib.compress(b""),
        zlib.compress(b"{}"),
        zlib.compress(b"[" * 100_000),
        zlib.compress(b"\xff\xfe\xfd"),
        zlib.compress(b"[" + b"[]," * 1_000_000 + b"[]]"),
        zlib.compress(b'["' + b"a" * 1_000_000 + b'"]'),
        zlib.compress(b"[]")[:-1],
        bomb(1 << 28),
    ],
    ids=lambda index: f"{len(index)} bytes",
)
def test_a_wrong_index_is_refused(parts, tmp_path, index):
    error = refused(parts.write(tmp_path / "index.safetensors", index_bytes=index))
    assert len(str(error)) < 500


def test_an_index_that_does_not_give_the_sizes_is_refused(parts, tmp_path):
    for change in (
        lambda index: index.pop(),
        lambda index: index.append(["more", "float32", [1]]),
        lambda index: index.append(index[0]),
        lambda index: index.append(["empty", "float16", [0]]),
        lambda index: index[0].__setitem__(2, [2**40, 2**40]),
        lambda index: index[0].__setitem__(2, [2**62, 2**62]),
        lambda index: index[0].__setitem__(2, [-1, -3]),
        lambda index: index[0].__setitem__(2, [10**30]),
        lambda index: index[0].__setitem__(1, "float64"),
        lambda index: index[0].__setitem__(1, "object"),
    ):
        forged = copy.deepcopy(parts)
        change(forged.index)
        assert refused(forged.write(tmp_path / "sizes.safetensors"))


def test_packed_tensors_that_are_not_what_they_are_called_are_refused(parts, tmp_path):
    for change in (
        lambda p: p.types.update(float32="I32"),
        lambda p: p.types.update(float32="F16"),
        lambda p: p.types.update(index="I8"),
        lambda p: p.types.update(index="F8_E4M3"),
        lambda p: p.packed.update(float64=b""),
        lambda p: p.packed.update(uint8=b"abc"),
        lambda p: p.packed.pop("int64"),
    ):
        forged = copy.deepcopy(parts)
        change(forged)
        assert refused(forged.write(tmp_path / "types.safetensors"))
    raw(tmp_path / "none", parts.packed, parts.types, {"sparsetune": parts.text})
    assert "has no index" in str(refused(tmp_path / "none"))


odd = some.one_of(
    some.none(),
    some.booleans(),
    some.integers(-(2**70), 2**70),
    some.sampled_from([0, 1, 2, 3, 10, 16, 2**31, 2**63, 10**18]),
    some.floats(allow_nan=True),
    some.text(max_size=8),
    some.sampled_from(
        ["float16", "float64", "bool", "zero", "file", "module", "pretrained", "timm", "torchvision", "in"]
    ),
    some.sampled_from(["", "..", "../x", "/etc/passwd", "hf-hub:a/b", "block1", "*", "[", "\n", "\x1b[0m"]),
    some.lists(some.none() | some.integers(0, 20) | some.text(max_size=3), max_size=4),
    some.dictionaries(some.text(max_size=8), some.none() | some.integers(), max_size=3),
)


def places(value, path=()):
    """Every path into a JSON value."""
    yield path
    for key, item in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from places(item, (*path, key))


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=some.data())
def test_any_forged_value_is_refused_or_harmless(honest, tmp_path, data):
    parts, path = Parts(honest), tmp_path / "forged.safetensors"
    whole = {"header": parts.header, "index": parts.index}
    for _ in range(data.draw(some.integers(1, 2))):
        found = [place for place in places(whole) if len(place) > 1]
        *above, last = data.draw(some.sampled_from(found))
        holder = whole
        for key in above:
            holder = holder[key]
        if isinstance(holder, dict) and data.draw(some.booleans()):
            holder.pop(last)
        else:
            holder[last] = data.draw(odd)
    parts.header, parts.index = whole["header"], whole["index"]
    parts.write(path)
    nets = []
    error = error_of(lambda: nets.append(st.load(path)))
    if error:
        assert str(error).startswith(str(path))
        assert "\n" not in str(error)
        assert "\x1b" not in str(error)
        assert len(str(error)) < 1500
    else:
        assert same(nets[0], st.load(honest))


# Files of few bytes: format 7


small_header = replace(header, learn=st.Learn(dimensions=9), format=7)


def folded(path):
    """The two tensors of a file and its metadata, taken apart without the code under test."""
    with safe_open(path, "np") as file:
        return json.loads(file.metadata()["sparsetune"]), *(file.get_tensor(n).tobytes() for n in file.keys())  # noqa: SIM118


def refolded(path, about, values, **said):
    """A file of these, with a checksum that fits."""
    about = folded_again(about_of(about) | said)
    text = json.dumps({"format": 7, "digest": digest_of_both(about, values)})
    tensors = {"about": about, "values": values}
    packed = {name: torch.frombuffer(bytearray(each), dtype=torch.uint8) for name, each in tensors.items()}
    save_file(packed, path, metadata={"sparsetune": text})


def deflated(content):
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush()


@quick
@given(some.dictionaries(some.from_regex(r"[a-z]+(\.[a-z0-9_]+)*", fullmatch=True), tensors, max_size=6))
def test_any_tensors_come_back_from_a_folded_file(tmp_path, values):
    path = tmp_path / "any.safetensors"
    write_delta(path, small_header, values)
    found = read_delta(path)
    assert list(found) == list(values)
    assert all(same_bits(found[name], value) for name, value in values.items())
    assert read_header(path).format == 7


def test_a_reader_from_the_documentation_reads_a_folded_file(tmp_path):
    """Streams in the order of their groups' names: ``float32``, ``int64``."""
    path = tmp_path / "a.safetensors"
    values = {"b": torch.arange(3), "a.1.a": torch.tensor([1.5, -2.0]), "a.1.c": torch.tensor(3.0)}
    values |= {"a.2.a": torch.tensor([0.5, 4.0]), "a.2.c": torch.tensor(5.0)}
    write_delta(path, small_header, values)
    said, about, content = folded(path)
    assert said == {"format": 7, "digest": b64encode(sha256(about + content).digest()).decode()[:-1]}
    fields = json.loads(zlib.decompressobj(-15, WORDS).decompress(about))
    assert "payload" not in fields
    assert fields["index"] == [
        [[["b", "int64", [3]]], [["a", "float32", [2]], ["c", "float32", []]]],
        [["", 0], ["a.1", 1], ["a.2", 1]],
    ]
    first = zlib.decompressobj(-15)
    assert np.frombuffer(first.decompress(content), "<f4").tolist() == [1.5, -2, 3, 0.5, 4, 5]
    assert np.frombuffer(zlib.decompress(first.unused_data, -15), "<i8").tolist() == [0, 1, 2]


def test_values_that_occur_unevenly_take_fewer_bytes(tmp_path):
    """Normal numbers in 63 steps have about 5.4 bits each (entropy of a normal one in steps of a ninth)."""
    value = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    write_delta(tmp_path / "a", small_header, {"a_theta": value}, "int6")
    assert 12_000 < (tmp_path / "a").stat().st_size < 14_500
    assert read_header(tmp_path / "a").learned_bytes == 15_000 + 2


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda about, values: (about, values + b"x"), "not as many as its index says"),
        (lambda about, values: (about, values[:-3]), "not as many as its index says"),
        (lambda about, values: (about, b"\7" + values), "cannot be unpacked"),
        (lambda about, values: (about, deflated(bytes(4 * 8 + 1))), "not as many as its index says"),
    ],
)
def test_values_that_are_not_those_of_the_index_are_refused(tmp_path, damage, said):
    path = tmp_path / "a.safetensors"
    write_delta(path, small_header, {"a": torch.randn(8)})
    _, about, values = folded(path)
    refolded(path, *damage(about, values))
    with pytest.raises(DeltaError, match=said):
        read_delta(path)


def test_a_small_file_cannot_ask_for_much_memory(tmp_path):
    """A gigabyte of zeros in a megabyte: no file of ours, whose bytes each take a bit or more."""
    path = tmp_path / "a.safetensors"
    write_delta(path, small_header, {"a": torch.randn(8)})
    _, about, _ = folded(path)
    refolded(path, about, deflated(bytes(2**24)), index=[[[["a", "float32", [2**22]]]], [["", 0]]])
    with pytest.raises(DeltaError, match="not as many as its index says"):
        read_delta(path)
    refolded(path, about, b"x", versions={}, training={"a": " " * 2**23})
    with pytest.raises(DeltaError, match="cut off or too long"):
        read_header(path)


@pytest.mark.parametrize(
    "index",
    [
        None,
        [],
        [["a", "float32", [8]]],
        [[[["a", "float32", [8]]]], [["", 1]]],
        [[[["a", "float32", [8]]]], [["", -1]]],
        [[[["a", "float32", [8]]]], [["", True]]],
        [[[["a", "float32", [8]]]], [[7, 0]]],
        [[[["a", "float32", [8]]]], [["b"]]],
        [[["a"]], [["", 0]]],
        [[[["a", "float32"]]], [["", 0]]],
        [[[[7, "float32", [8]]]], [["", 0]]],
        [{"0": []}, [["", 0]]],
        [[[["a", "float32", [8]]]], [["", 0], ["", 0]]],
        [[[["a", "float32", [0]]] * 1000], [["b", 0]] * 100_000],
    ],
    ids=lambda index: str(index)[:50],
)
def test_indices_by_kind_that_are_none_are_refused(tmp_path, index):
    path = tmp_path / "a.safetensors"
    write_delta(path, small_header, {"a": torch.randn(8)})
    _, about, values = folded(path)
    refolded(path, about, values, index=index)
    with pytest.raises(DeltaError, match="its index"):
        read_header(path)


def test_what_is_few_is_coded_by_repetition_too(tmp_path):
    """Counters of batches that are all alike take a byte each where they are coded by frequency alone."""
    counters = {f"bn{n}.num_batches_tracked": torch.tensor(540) for n in range(100)}
    write_delta(tmp_path / "a", small_header, {"a": torch.randn(8)})
    write_delta(tmp_path / "b", small_header, {"a": torch.randn(8)} | counters)
    names = len(folded_again({"index": [[f"bn{n}", 1] for n in range(100)]}))
    assert (tmp_path / "b").stat().st_size - (tmp_path / "a").stat().st_size < names + 60
    assert {int(value) for value in list(read_delta(tmp_path / "b").values())[1:]} == {540}


@pytest.mark.parametrize("name", ["about", "values"])
def test_each_byte_of_a_folded_file_counts(tmp_path, name):
    path = tmp_path / "a.safetensors"
    write_delta(path, small_header, {"a": torch.randn(8)})
    said, *parts = folded(path)
    for at in range(0, 32, 7):
        changed = [bytearray(each) for each in parts]
        changed[name == "values"][at] ^= 1
        packed = dict(zip(("about", "values"), changed, strict=True))
        tensors = {key: torch.frombuffer(each, dtype=torch.uint8) for key, each in packed.items()}
        save_file(tensors, path, metadata={"sparsetune": json.dumps(said)})
        with pytest.raises(DeltaError, match=r"(does|do) not match (its|their) checksum"):
            read_delta(path)
