from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from sparsetune.data.preprocessing import Preprocessing
from sparsetune.errors import ConfigError, DataError

IMAGENET = Preprocessing((3, 24, 16), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def picture(height: int, width: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def reference(image: Image.Image, how: Preprocessing) -> torch.Tensor:
    mode = InterpolationMode(how.interpolation)
    resized = tv.resize(image.convert("RGB"), list(how.size[1:]), interpolation=mode)
    x = tv.to_dtype(tv.pil_to_tensor(resized), torch.float32, scale=True)
    return tv.normalize(x, list(how.mean), list(how.std))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "lanczos"])
@pytest.mark.parametrize("size", [(24, 16), (40, 40), (7, 90)])
def test_apply_gives_torchvision_s_numbers(interpolation: str, size: tuple[int, int]) -> None:
    how = replace(IMAGENET, interpolation=interpolation)
    x = how.apply(picture(*size))
    assert x.dtype == torch.float32
    assert x.shape == (3, 24, 16)
    torch.testing.assert_close(x, reference(picture(*size), how), rtol=0, atol=1e-6)


def test_a_white_and_a_black_pixel_by_hand() -> None:
    how = Preprocessing((3, 1, 2), (0.5, 0.25, 0.0), (0.25, 0.5, 1.0))
    image = Image.fromarray(np.array([[[255] * 3, [0] * 3]], dtype=np.uint8))
    assert how.apply(image).tolist() == [[[2.0, -2.0]], [[1.5, -0.5]], [[1.0, 0.0]]]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "YCbCr"])
def test_any_mode_of_eight_bits_becomes_rgb(mode: str) -> None:
    x = IMAGENET.apply(picture(24, 16, mode))
    torch.testing.assert_close(x, reference(picture(24, 16, mode), IMAGENET), rtol=0, atol=1e-6)


def test_one_channel_is_luminance() -> None:
    how = Preprocessing((1, 4, 4), (0.0,), (1.0,))
    image = picture(4, 4)
    expected = torch.tensor(np.array(image.convert("L")), dtype=torch.float32) / 255
    assert torch.equal(how.apply(image), expected[None])


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_than_eight_bits_is_refused_rather_than_clipped(mode: str) -> None:
    with pytest.raises(DataError, match=f"pixels of mode {mode}, expected 8 bits a channel; convert it"):
        IMAGENET.apply(Image.new(mode, (16, 24)))


def test_a_batch_is_normalised_to_the_same_bits_as_single_pictures() -> None:
    images = [picture(30, 20, seed=i) for i in range(9)]
    batch = torch.from_numpy(np.stack([IMAGENET.pixels(image) for image in images]))
    x = IMAGENET.normalise(batch)
    assert x.is_contiguous()
    assert torch.equal(x, torch.stack([IMAGENET.apply(image) for image in images]))


@given(
    side=some.tuples(some.integers(1, 4096), some.integers(1, 4096)),
    numbers=some.lists(some.tuples(some.floats(-1000, 1000), some.floats(1e-6, 1000)), min_size=1).filter(
        lambda pairs: len(pairs) in (1, 3)
    ),
    interpolation=some.sampled_from(["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]),
)
def test_json_is_an_exact_round_trip(
    side: tuple[int, int], numbers: list[tuple[float, float]], interpolation: str
) -> None:
    mean, std = zip(*numbers, strict=True)
    value = Preprocessing((len(numbers), *side), mean, std, interpolation)
    assert Preprocessing.from_json(json.loads(json.dumps(value.to_json()))) == value


GOOD = IMAGENET.to_json()
SIDES = r"expected \(channels, height, width\) with 1 or 3 channels and sides from 1 to 4096"
MEAN = "preprocessing mean .* expected one number a channel, each from -1000 to 1000"
STD = "preprocessing std .* expected one number a channel, each from 1e-06 to 1000"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "None is not valid; expected an object with size, mean, std, interpolation"),
        ([], "expected an object"),
        ({}, "expected an object"),
        ({**GOOD, "crop": 1}, "expected an object"),
        ({k: v for k, v in GOOD.items() if k != "std"}, "expected an object"),
        ({**GOOD, "size": [3, 4097, 8]}, SIDES),
        ({**GOOD, "size": [3, 0, 8]}, SIDES),
        ({**GOOD, "size": [3, -1, 8]}, SIDES),
        ({**GOOD, "size": [4, 8, 8]}, SIDES),
        ({**GOOD, "size": [3, 8]}, SIDES),
        ({**GOOD, "size": [3, 8.0, 8]}, SIDES),
        ({**GOOD, "size": [3, True, 8]}, SIDES),
        ({**GOOD, "size": "388"}, SIDES),
        ({**GOOD, "size": [3, 10**400, 8]}, SIDES),
        ({**GOOD, "mean": [0.5, 0.5, float("nan")]}, MEAN),
        ({**GOOD, "mean": [0.5, 0.5, float("inf")]}, MEAN),
        ({**GOOD, "mean": [0.5, 0.5, 10**400]}, MEAN),
        ({**GOOD, "mean": ["0.5", 0.5, 0.5]}, MEAN),
        ({**GOOD, "mean": 0.5}, MEAN),
        ({**GOOD, "std": [0.2, 0.2, 0.0]}, STD),
        ({**GOOD, "std": [0.2, 0.2, -0.2]}, STD),
        ({**GOOD, "std": [0.2, 0.2, None]}, STD),
        ({**GOOD, "std": [0.2]}, "has 3 means and 1 standard deviations; expected one of each for the 3"),
        ({**GOOD, "mean": []}, "has 0 means and 3 standard deviations"),
        ({**GOOD, "interpolation": "cubic"}, "'cubic' is unknown; expected bicubic, bilinear, box, hamming"),
        ({**GOOD, "interpolation": ["bilinear"]}, "is unknown"),
        ({**GOOD, "interpolation": {}}, "is unknown"),
    ],
)
def test_from_json_trusts_nothing(value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Preprocessing.from_json(value)


def test_a_huge_value_does_not_make_a_huge_message() -> None:
    with pytest.raises(ConfigError) as error:
        Preprocessing.from_json({**GOOD, "mean": [0.5] * 100_000, "std": "x" * 100_000})
    assert len(str(error.value)) < 500
