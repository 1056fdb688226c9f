import pytest

from sparsetune.host.text import share, size


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
