from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from sparsetune.errors import ConfigError
from sparsetune.host.text import seconds_from


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("9m", 540), ("2h", 7200), ("45", 45), ("1.5m", 90), ("0", 0), (" 10s ", 10)],
)
def test_reads_seconds_minutes_and_hours(text, seconds):
    assert seconds_from(text) == seconds


@given(some.integers(0, 10**6), some.sampled_from([("s", 1), ("m", 60), ("h", 3600)]))
def test_reads_what_is_written(number, unit):
    assert seconds_from(f"{number}{unit[0]}") == number * unit[1]


@pytest.mark.parametrize(
    "text", ["", "soon", "-3s", "3d", "3 s", "1e3", "nan", "inf", "9m30s", "s", "\u0663"]
)
def test_refuses_the_rest_in_one_sentence(text):
    with pytest.raises(ConfigError, match=r"^duration '.*' is not .* such as 90s or 9m\.$"):
        seconds_from(text)
