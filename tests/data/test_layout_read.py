from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsetune.data.data import open_data
from sparsetune.data.preprocessing import Augment
from sparsetune.errors import DataError

COUNTS = {"zero": 5, "one": 10, "two": 15}


def refused(folder: Path, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        open_data(str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("test_name", ["test", "val", "valid", "validation"])
def test_train_and_test_folders(make: Any, tmp_path: Path, test_name: str) -> None:
    make.tree(tmp_path / "train", COUNTS, "png")
    make.tree(tmp_path / test_name, dict.fromkeys(COUNTS, 2), "png")
    data = open_data(str(tmp_path))
    assert data.classes == ("one", "two", "zero")
    assert data.train.labels.tolist() == [0] * 10 + [1] * 15 + [2] * 5
    assert data.judged.labels.tolist() == [0, 0, 1, 1, 2, 2]
    first_two = np.flatnonzero(make.labels == 2)[0]
    assert data.train[10][0].tobytes() == make.picture(first_two).tobytes()


def test_class_folders_alone_hold_a_fifth_out_and_claim_no_test(make: Any, tmp_path: Path) -> None:
    make.tree(tmp_path, dict.fromkeys(COUNTS, 40))
    first, again, other = (open_data(str(tmp_path), split_seed=seed) for seed in (0, 0, 1))
    assert first.test is None
    assert first.judged is first.watched is first.validation
    assert 12 <= len(first.judged) <= 36  # 24 of 120 are expected, with a standard deviation of 4.4
    assert first.judged.labels.unique().tolist() == first.train.labels.unique().tolist() == [0, 1, 2]
    assert sorted([*first.train.rows, *first.judged.rows]) == list(range(120))
    assert first.judged.rows.tolist() == again.judged.rows.tolist() != other.judged.rows.tolist()


def test_pictures_at_any_depth_and_other_files_beside_them(make: Any, tmp_path: Path) -> None:
    make.tree(tmp_path / "test" / "cat", {"images": 3, "more": 2}, "JPEG")
    (tmp_path / "test" / "cat" / "notes.txt").write_text("x")
    (tmp_path / "test" / ".git").mkdir()
    data = open_data(str(tmp_path))
    assert data.classes == ("cat",)
    assert len(data.judged) == 5
    assert data.train is None


@pytest.mark.parametrize(
    ("sides", "size", "pad"),
    [((32, 32), 32, 4), ((64, 64), 64, 8), ((48, 64), 224, 28), ((300, 300), 224, 28), ((28, 28), 28, 3)],
)
def test_size_comes_from_the_pictures(
    make: Any, tmp_path: Path, sides: tuple[int, int], size: int, pad: int
) -> None:
    for name, side in zip("ab", sides, strict=True):
        make.tree(tmp_path / "train" / name, {"x": 2}, side=side)
    data = open_data(str(tmp_path))
    assert data.preprocessing.size == (3, size, size)
    assert data.augment == Augment(pad=pad, flip=True)
    assert data.preprocessing.mean[0] == (0.4914 if size == 32 else 0.485)
    assert data.preprocessing.apply(data.train[0][0]).shape == (3, size, size)


def test_pictures_that_are_not_square_keep_their_shape(make: Any, tmp_path: Path) -> None:
    (tmp_path / "test" / "a").mkdir(parents=True)
    make.picture(0).resize((40, 24)).save(tmp_path / "test" / "a" / "0.png")
    data = open_data(str(tmp_path))
    assert data.preprocessing.size == (3, 24, 40)
    assert data.augment.pad == 3


def test_different_classes(make: Any, tmp_path: Path) -> None:
    make.tree(tmp_path / "train", {"cat": 2, "dog": 2})
    make.tree(tmp_path / "val", {"cat": 2, "dog": 2, "emu": 2})
    refused(
        tmp_path, r"train and val of .* have different class names \(only one has 'emu'\); expected the same"
    )


def test_a_damaged_picture_is_found_on_access_only(make: Any, tmp_path: Path) -> None:
    make.tree(tmp_path / "test", {"cat": 100})
    victim = sorted((tmp_path / "test" / "cat").iterdir())[2]
    victim.write_bytes(victim.read_bytes()[:300])
    data = open_data(str(tmp_path))
    assert data.judged[0][0].size == (32, 32)
    with pytest.raises(DataError) as error:
        data.judged[2]
    assert str(error.value).startswith(f"image {str(victim)!r} cannot be decoded (")
    assert str(error.value).endswith("); replace it or take it out.")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"GIF89a", b"\xff\xd8\xff\xe0", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\0" * 99]
)
def test_a_file_that_is_no_picture(make: Any, tmp_path: Path, content: bytes) -> None:
    make.tree(tmp_path / "test", {"cat": 1})
    (tmp_path / "test" / "cat" / "0000.jpg").write_bytes(content)
    refused(tmp_path, r"^image '.*0000.jpg' cannot be decoded \(.+\); replace it or take it out\.$")


def test_no_images(tmp_path: Path) -> None:
    refused(tmp_path, "holds no images that can be used; expected one sub-folder a class, or Parquet files")
    (tmp_path / "cat").mkdir()
    refused(tmp_path, r"class folder '.*cat' holds no images; put \.bmp, .* files into it, or remove it")


def test_images_without_class_folders(make: Any, tmp_path: Path) -> None:
    make.picture(0).save(tmp_path / "a.jpg")
    refused(tmp_path, "holds no images that can be used; expected one sub-folder a class")


def test_one_image_a_class(make: Any, tmp_path: Path) -> None:
    make.tree(tmp_path, {"cat": 1, "dog": 1})
    refused(tmp_path, "has one image a class, so none is left for validation; add more")
