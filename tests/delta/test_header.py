import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as some

import sparsetune as st
from sparsetune.delta.header import Entry, Header, header_text, parse_entries, parse_header, text_digest
from sparsetune.errors import ConfigError

HEADER = Header(
    library="timm",
    model="wrn28_4",
    kwargs={"depth": 10, "width": 1},
    num_classes=3,
    backbone=st.Backbone(kind="seed", seed=5),
    fingerprint="0" * 64,
    dtype="float32",
    learn=st.Learn(fraction=0.1, layers=["block3"]),
    classes=("cat", "größe", "👩\u200d💻"),
    preprocessing=st.Preprocessing((3, 8, 8), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)),
    training={"loss": 1e-7, "deep": [{"a": None}, True]},
    versions={"torch": "2.6.0+cpu"},
    payload="f" * 64,
)
texts = some.text(some.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=20)


def parsed(**changes):
    return parse_header({**json.loads(header_text(HEADER)), **changes}, ())


def test_to_json_and_back_is_equal():
    assert parse_header(json.loads(header_text(HEADER)), ()) == HEADER


@given(some.lists(texts, min_size=3, max_size=3), some.integers(0, 2**200), some.floats(1e-300, 1e300))
def test_any_values_come_back_equal(classes, seed, number):
    header = replace(
        HEADER,
        classes=tuple(classes),
        backbone=st.Backbone(kind="seed", seed=seed),
        training={"number": number},
    )
    assert parse_header(json.loads(header_text(header)), ()) == header


def test_the_text_is_ascii_sorted_and_without_spaces():
    text = header_text(HEADER)
    assert text.isascii()
    assert ", " not in text.replace('"cat", ', "")
    assert list(json.loads(text)) == sorted(json.loads(text))


def test_the_digest_is_over_the_text_with_the_digest_empty():
    text = header_text(HEADER)
    digest = json.loads(text)["digest"]
    blank = text.replace(digest, "")
    assert hashlib.sha256(blank.encode()).hexdigest() == digest == text_digest(text, digest)


def test_the_digest_is_the_headers_own_though_others_have_that_name():
    text = header_text(replace(HEADER, training={"digest": "", "a": '"digest":""'}))
    digest = json.loads(text)["digest"]
    assert len(digest) == 64
    assert text_digest(text, digest) == digest
    assert json.loads(text)["training"] == {"digest": "", "a": '"digest":""'}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), {1, 2}, b"x"])
def test_what_is_not_json_is_refused(value):
    with pytest.raises((TypeError, ValueError)):
        header_text(replace(HEADER, training={"value": value}))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("model", None, "its model is None"),
        ("model", {}, "lacks 'versions'|lacks 'num_classes'|lacks 'library'"),
        ("model", {"library": "timm", "name": "x", "kwargs": [], "num_classes": 1}, r"its kwargs is \[\]"),
        ("model", {"library": "timm", "name": "x", "kwargs": {}, "num_classes": True}, "num_classes is True"),
        ("model", {"library": "timm", "name": "x", "kwargs": {}, "num_classes": 1.0}, "num_classes is 1.0"),
        ("model", {"library": "timm", "name": "x", "kwargs": {}, "num_classes": -1}, "num_classes is -1"),
        ("model", {"library": 1, "name": "x", "kwargs": {}, "num_classes": 1}, "library is 1"),
        ("backbone", "seed", "its backbone is 'seed'"),
        ("backbone", {"kind": "evil"}, "no kind among"),
        ("fingerprint", "0" * 63, "not a SHA-256"),
        ("fingerprint", "g" * 64, "not a SHA-256"),
        ("payload", None, "its payload is None"),
        ("dtype", "int64", "dtype is 'int64'"),
        ("dtype", ["float32"], "its dtype is"),
        ("learn", [], "its learn is"),
        ("learn", {"fraction": 2, "filters": -1}, "not between 0 and 1|each say"),
        ("learn", {"fraction": float("nan")}, "not between"),
        ("learn", {"fraction": 0.1, "evil": 1}, "keys among"),
        ("classes", "abc", "classes is 'abc'"),
        ("classes", {"a": 0, "b": 1, "c": 2}, "classes is"),
        ("classes", ["a", "b", 3], "are not all texts"),
        ("classes", ["a", "b"], "2 class names were given for 3"),
        ("classes", ["a", "b", "\x1b[31m"], "does not print on one line"),
        ("classes", ["a", "b", "two\nlines"], "does not print on one line"),
        ("classes", ["a", "b", "\u2028"], "does not print on one line"),
        ("classes", ["a", "b", "\ud800"], "does not print on one line"),
        ("classes", ["a", "b", "c" * 2000], "longer than"),
        ("preprocessing", [], "preprocessing is"),
        ("preprocessing", {}, "expected an object"),
        ("training", None, "training is None"),
        ("training", {"a\0b": 1}, "does not print"),
        ("versions", {"torch": 2}, "versions are"),
        ("versions", {"torch": "2 --index-url evil"}, "versions are"),
    ],
)
def test_a_wrong_field_is_named(name, value, words):
    with pytest.raises((ConfigError, ValueError), match=words):
        parsed(**{name: value})


@pytest.mark.parametrize("name", sorted(set(HEADER.to_json()) - {"format"}))
def test_a_missing_field_is_named(name):
    value = HEADER.to_json()
    del value[name]
    with pytest.raises(ValueError, match=f"lacks '{name}'"):
        parse_header(value, ())


def test_an_unknown_field_is_passed_over():
    assert parsed(later={"a": 1}) == HEADER


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        [None],
        ["abc"],
        [["a", "float32"]],
        [["a", "float32", [1], 1]],
        [[1, "float32", [1]]],
        [["a\n", "float32", [1]]],
        [["a" * 2000, "float32", [1]]],
        [["a", "uint8", [1]]],
        [["a", ["float32"], [1]]],
        [["a", "float32", 1]],
        [["a", "float32", [-1]]],
        [["a", "float32", [1.0]]],
        [["a", "float32", [True]]],
        [["a", "float32", [2**63]]],
        [["a", "float32", [1]], ["a", "float32", [1]]],
    ],
)
def test_a_wrong_index_is_refused(value):
    with pytest.raises(ValueError, match="its index"):
        parse_entries(value)


def test_sizes_do_not_overflow():
    (entry,) = parse_entries([["a", "float32", [2**20, 2**20]]])
    assert entry.numel == 2**40
    for shape in ([2**20, 2**20 + 1], [2**62, 2**62, 0], [1] * 17):
        with pytest.raises(ValueError, match="its index has a shape"):
            parse_entries([["a", "float32", shape]])
    assert parse_entries([["b", "int64", []]]) == (Entry("b", "int64", ()),)
    assert Entry("b", "int64", ()).numel == 1


def test_learned_bytes_are_in_each_dtype():
    header = replace(HEADER, entries=(Entry("a", "float16", (3, 5)), Entry("b", "int64", ())))
    assert header.learned_bytes == 3 * 5 * 2 + 8
