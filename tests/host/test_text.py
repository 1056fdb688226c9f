from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from sparsetune.errors import ConfigError
from sparsetune.host.text import bytes_from, duration, json_from, listed, reason, seconds_from, share, size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (393_466, "384.2 KiB"),
        (2.5 * 2**20, "2.50 MiB"),
        (3 * 2**40, "3072.00 GiB"),
    ],
)
def test_size(count, text):
    assert size(count) == text


def test_share():
    assert share(574_597, 5_846_410) == "574,597 of 5,846,410 values (9.8%)"
    assert share(0, 0) == "0 of 0 values (0.0%)"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99.4, "99 s"), (100, "2 min"), (5999, "100 min"), (12_600, "3.5 h")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("names", "text", "text_of_a_list"),
    [
        ("", "", ""),
        ("a", "a", "a"),
        ("abc", "a, b, c", "a, b, c"),
        ("abcde", "a, b, c and 2 more", "a, b, c, 2 more"),
    ],
)
def test_listed(names, text, text_of_a_list):
    assert listed(names) == text
    assert listed(names, before_more=", ") == text_of_a_list


def test_the_reason_of_an_error_is_one_line_that_can_stand_in_parentheses():
    assert reason(ValueError("no such\n   thing.")) == "no such thing"
    assert reason(ValueError()) == "ValueError"
    assert reason(ValueError("a" * 300)) == "a" * 200
    assert reason(ValueError("a" * 300), None) == "a" * 300


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("9m", 540), ("2h", 7200), ("45", 45), ("1.5m", 90), ("0", 0), (" 10s ", 10)],
)
def test_reads_seconds_minutes_and_hours(text, seconds):
    assert seconds_from(text) == seconds


@given(some.integers(0, 10**6), some.sampled_from([("s", 1), ("m", 60), ("h", 3600)]))
def test_reads_durations_that_are_written(number, unit):
    assert seconds_from(f"{number}{unit[0]}") == number * unit[1]


@pytest.mark.parametrize(
    "text", ["", "soon", "-3s", "3d", "3 s", "1e3", "nan", "inf", "9m30s", "s", "\u0663"]
)
def test_refuses_other_durations_in_one_sentence(text):
    with pytest.raises(ConfigError, match=r"^duration '.*' is not .* such as 90s or 9m\.$"):
        seconds_from(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("200KB", 200_000),
        ("1.5MB", 1_500_000),
        ("64KiB", 65_536),
        ("5000", 5000),
        ("1 GiB", 2**30),
        (" 2mb ", 2_000_000),
        ("7B", 7),
        ("0.5KiB", 512),
    ],
)
def test_reads_bytes_and_their_multiples(text, size):
    assert bytes_from(text) == size


@given(some.integers(1, 10**9), some.sampled_from([("", 1), ("KB", 1000), ("MiB", 1024**2)]))
def test_reads_sizes_that_are_written(number, unit):
    assert bytes_from(f"{number}{unit[0]}") == number * unit[1]


@pytest.mark.parametrize(
    "text", ["", "much", "-3KB", "3K", "3kbit", "1e3", "nan", "0", "0.1", "KB", "\u0663"]
)
def test_refuses_other_sizes_in_one_sentence(text):
    with pytest.raises(ConfigError, match=r"^size '.*' is not .* such as 200KB\.$"):
        bytes_from(text)


@pytest.mark.parametrize("text", ['"\\ud800"', '{"\\uDFFF": 1}', '["a", "\\ud83d"]'])
def test_half_characters_are_no_text(text):
    """They end what writes, prints or opens them."""
    with pytest.raises(ValueError, match="surrogates"):
        json_from(text)
    with pytest.raises(ValueError, match="surrogates"):
        json_from(text.encode())


def test_whole_characters_are_text():
    assert json_from('"\\ud83d\\ude00 \\\\ud800"') == "\N{GRINNING FACE} \\ud800"
