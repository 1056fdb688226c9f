"""Pictures as they are meant to be seen; expected values are drawn by hand or told by numpy."""

from __future__ import annotations

import io
import threading
import warnings
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from sparsetune.data.images import convert, decode
from sparsetune.data.preprocessing import Preprocessing
from sparsetune.errors import DataError

RED, BLUE = (255, 0, 0), (0, 0, 255)

AS_STORED = {
    1: lambda seen: seen,
    2: lambda seen: seen[:, ::-1],
    3: lambda seen: seen[::-1, ::-1],
    4: lambda seen: seen[::-1],
    5: lambda seen: seen.swapaxes(0, 1),
    6: lambda seen: np.rot90(seen, 1),
    7: lambda seen: np.rot90(seen, 2).swapaxes(0, 1),
    8: lambda seen: np.rot90(seen, -1),
}
"""What a camera stores of what is seen, by the EXIF standard's definition of its orientations."""


def scene() -> np.ndarray:
    """Draw 48 by 32 pixels, a different grey in each quarter."""
    seen = np.zeros((32, 48, 3), np.uint8)
    seen[:16, :24], seen[:16, 24:], seen[16:, :24], seen[16:, 24:] = 40, 100, 160, 220
    return seen


def stored(picture: Image.Image, kind: str, **options: Any) -> io.BytesIO:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    out.seek(0)
    return out


@pytest.mark.parametrize("orientation", AS_STORED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_photos_are_turned_upright(kind: str, orientation: int) -> None:
    if not features.check({"WEBP": "webp", "AVIF": "avif"}.get(kind, "pil")):
        pytest.skip(f"this Pillow has no {kind}")
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = stored(Image.fromarray(np.ascontiguousarray(AS_STORED[orientation](scene()))), kind, exif=exif)
    picture = decode(file, "x")
    assert np.abs(np.asarray(picture, int)[8::16, 12::24, 0] - [[40, 100], [160, 220]]).max() < 8
    form = Preprocessing((3, 32, 48), (0.0,) * 3, (1.0,) * 3)
    assert np.array_equal(form.pixels(picture), np.asarray(picture))  # not turned twice
    file.seek(0)
    assert np.array_equal(form.pixels(Image.open(file)), np.asarray(picture))  # nor less often


@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*" + bytes(range(99))]
)
def test_damaged_exif_does_no_harm(exif: bytes) -> None:
    picture = decode(stored(Image.fromarray(scene()), "JPEG", exif=exif), "x")
    assert picture.size == (48, 32)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_orientations_that_do_not_exist_are_none(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert decode(stored(Image.fromarray(scene()), "PNG", exif=exif), "x").size == (48, 32)


def half_red(mode: str) -> Image.Image:
    """Draw a transparent left over hidden blue, a half transparent pixel, and an opaque red right."""
    picture = Image.new("RGBA", (16, 16), (*RED, 255))
    picture.paste((*BLUE, 0), (0, 0, 8, 16))
    picture.putpixel((12, 8), (*RED, 128))
    return picture.convert(mode)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparent_pixels_lie_on_white(kind: str) -> None:
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    picture = decode(stored(half_red("RGBA"), kind, **options), "x")
    assert picture.mode == "RGB"
    assert picture.getpixel((3, 8)) == (255, 255, 255)
    assert picture.getpixel((14, 8)) == RED
    assert picture.getpixel((12, 8)) == (255, 127, 127)  # 128 parts of red and 127 of white


def test_grey_and_palette_pictures_with_transparency() -> None:
    grey = Image.new("LA", (8, 8), (90, 255))
    grey.paste((10, 0), (0, 0, 4, 8))
    assert [decode(stored(grey, "PNG"), "x").getpixel((x, 0)) for x in (0, 6)] == [(255,) * 3, (90,) * 3]
    for kind, transparency in (("PNG", 1), ("PNG", b"\xff\x00"), ("GIF", 1)):
        palette = Image.new("P", (8, 8), 0)
        palette.putpalette([*RED, *BLUE])
        palette.paste(1, (0, 0, 4, 8))
        found = decode(stored(palette, kind, transparency=transparency), "x")
        assert [found.getpixel((x, 0)) for x in (0, 6)] == [(255,) * 3, RED]
    for mode, key in (("L", 7), ("RGB", (7, 8, 9))):
        keyed = Image.new(mode, (8, 8), key)
        keyed.putpixel((6, 0), 90 if mode == "L" else (90, 90, 90))
        found = decode(stored(keyed, "PNG", transparency=key), "x")
        assert [found.getpixel((x, 0)) for x in (0, 6)] == [(255,) * 3, (90,) * 3]


def test_opaque_pictures_of_every_mode_keep_their_colours() -> None:
    for kind, mode, colour, expected in (
        ("PNG", "RGBA", (*RED, 255), RED),
        ("PNG", "1", 1, (255,) * 3),
        ("PNG", "L", 77, (77,) * 3),
        ("JPEG", "CMYK", (0, 255, 255, 0), RED),
        ("TIFF", "CMYK", (0, 255, 255, 0), RED),
        ("BMP", "RGB", BLUE, BLUE),
    ):
        found = decode(stored(Image.new(mode, (8, 8), colour), kind), "x").getpixel((4, 4))
        assert np.abs(np.subtract(found, expected)).max() <= 2


def test_one_channel_sees_the_same() -> None:
    seen = convert(half_red("RGBA"), "L")
    assert [seen.getpixel((x, 0)) for x in (3, 14)] == [255, 76]


def test_an_animation_is_its_first_picture() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    found = decode(stored(frames[0], "GIF", save_all=True, append_images=frames[1:]), "x")
    assert found.getpixel((4, 4)) == RED


def test_more_than_8_bits_are_refused() -> None:
    deep = stored(Image.fromarray(np.full((8, 8), 40_000, np.uint16)), "PNG")
    with pytest.raises(
        DataError, match=r"x cannot be decoded .*I;16, expected 8 bits a channel; convert it first"
    ):
        decode(deep, "x")


def noisy() -> list[io.BytesIO]:
    """Make files about which Pillow warns: damaged EXIF, transparent palettes, and very many pixels."""
    palette = Image.new("P", (8, 8))
    palette.putpalette([*RED, *BLUE])
    broken = stored(
        Image.fromarray(scene()), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x10\0" + b"\x01\x01\x04\0" * 9
    )
    return [
        broken,
        stored(palette, "PNG", transparency=b"\x80\x40"),
        stored(Image.new("1", (50, 30)), "PNG"),
    ]


@pytest.fixture
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Pillow warn from a thousand pixels on, and refuse twice as many."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)


@pytest.mark.usefixtures("low_limit")
def test_warnings_about_files_do_not_reach_the_user(capfd: pytest.CaptureFixture[str]) -> None:
    for file in noisy():
        with warnings.catch_warnings(record=True) as before:
            warnings.simplefilter("always")
            with Image.open(file) as image:
                image.getexif()
                image.convert("RGB")
        assert before, "Pillow no longer warns of this"
        file.seek(0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            decode(file, "x")
            warnings.warn("the caller's own", stacklevel=1)
        assert [str(each.message) for each in caught] == ["the caller's own"]
    assert capfd.readouterr() == ("", "")


def test_other_threads_leave_the_process_filters_alone() -> None:
    filters = list(warnings.filters)
    threads = [threading.Thread(target=lambda file=file: decode(file, "x")) for file in noisy()[:2] * 8]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert list(warnings.filters) == filters


@pytest.mark.usefixtures("low_limit")
def test_a_bomb_is_refused_in_one_sentence() -> None:
    bomb = stored(Image.new("1", (50, 50)), "PNG")
    with pytest.raises(
        DataError, match=r"x cannot be decoded .*exceeds limit.*; replace it or take it out"
    ) as error:
        decode(bomb, "x")
    assert "\n" not in str(error.value)
