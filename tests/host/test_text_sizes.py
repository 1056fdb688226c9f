from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from sparsetune.errors import ConfigError
from sparsetune.host.text import bytes_from


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
def test_reads_what_is_written(number, unit):
    assert bytes_from(f"{number}{unit[0]}") == number * unit[1]


@pytest.mark.parametrize(
    "text", ["", "much", "-3KB", "3K", "3kbit", "1e3", "nan", "0", "0.1", "KB", "\u0663"]
)
def test_refuses_the_rest_in_one_sentence(text):
    with pytest.raises(ConfigError, match=r"^size '.*' is not .* such as 200KB\.$"):
        bytes_from(text)
