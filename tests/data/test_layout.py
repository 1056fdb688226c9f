"""Folders as they lie on real disks: each is read as its owner means it, or refused with both readings."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from sparsetune.data.data import Data, open_data
from sparsetune.data.splits import Split
from sparsetune.errors import DataError


def put(root: Path, *places: str, count: int = 2, suffix: str = ".png") -> Path:
    """Put so many pictures, no two alike, into each folder; the shade tells folder and number."""
    for number, place in enumerate(places):
        (root / place).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            shade = sum(place.encode()) % 256
            Image.new("RGB", (8, 8), (shade, number, i)).save(root / place / f"{i}{suffix}")
    return root


def names(data: Data, split: Split | None) -> dict[str, int]:
    """Count a split's pictures by class name."""
    assert split is not None
    return dict(Counter(data.classes[label] for label in split.labels.tolist()))


def files(split: Split | None) -> set[str]:
    assert split is not None
    return {Path(split.images.paths[row]).as_posix() for row in split.rows.tolist()}  # type: ignore[attr-defined]


TWO = {"cat": 2, "dog": 2}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("TRAIN", "TEST"),
        ("training", "testing"),
        ("Training", "Test"),
        ("trn", "tst"),
        ("train", "Val"),
        ("train", "VALID"),
        ("train", "eval"),
        ("train", "dev"),
        ("train", "Validation"),
        ("seg_train", "seg_test"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("train_images", "test_images"),
        ("images_train", "images_val"),
        ("train", "test_set"),
        ("trainset", "testset"),
        ("TrainImages", "TestImages"),
        ("dataset-train", "dataset-test"),
        ("train2017", "val2017"),
        ("train/images", "test/images"),
        ("train/PetImages", "test/PetImages"),
        ("archive/v1/Train", "archive/v1/Test"),
        ("training/train", "training/test"),
    ],
)
def test_names_of_splits(tmp_path: Path, train: str, test: str) -> None:
    put(tmp_path, *(f"{split}/{name}" for split in (train, test) for name in TWO))
    data = open_data(str(tmp_path))
    assert data.classes == ("cat", "dog")
    assert names(data, data.train) == names(data, data.judged) == TWO
    assert {path.split("/")[-3] for path in files(data.train)} == {train.split("/")[-1]}
    assert [data.test, data.validation].count(None) == 1
    assert data.found.startswith("8 pictures of 2 classes (cat, dog)")


def test_validation_is_for_monitoring_and_test_for_the_end(tmp_path: Path) -> None:
    put(tmp_path, *(f"{split}/{name}" for split in ("Train", "val", "Test") for name in TWO))
    data = open_data(str(tmp_path))
    assert data.validation is not None
    for split, folder in ((data.train, "Train"), (data.validation, "val"), (data.test, "Test")):
        assert {path.split("/")[-3] for path in files(split)} == {folder}
    assert data.watched is data.validation
    assert data.found == "12 pictures of 2 classes (cat, dog): train 4, validation 4 (val), test 4"


@pytest.mark.parametrize("wrapper", ["PetImages", "archive/PetImages", "a/b/c/d", "training"])
def test_wrapper_folders(tmp_path: Path, wrapper: str) -> None:
    put(tmp_path, f"{wrapper}/cat", f"{wrapper}/dog", count=10)
    put(tmp_path / "__MACOSX" / wrapper, "cat", "dog")
    data = open_data(str(tmp_path))
    assert data.classes == ("cat", "dog")
    assert len(data.train) + len(data.judged) == 20
    assert "left out: 4 in __MACOSX" in data.found


@pytest.mark.parametrize("place", ["cat", "archive/cat", "train/cat", "train/train/cat"])
def test_a_single_class(tmp_path: Path, place: str) -> None:
    with pytest.raises(DataError, match=r"a single class, 'cat'.*two classes or more"):
        open_data(str(put(tmp_path, place)))


def test_a_class_called_train(tmp_path: Path) -> None:
    data = open_data(str(put(tmp_path, "bus", "car", "train")))
    assert data.classes == ("bus", "car", "train")
    assert "train is a class like the others" in data.found
    (tmp_path / "other").mkdir()
    split = open_data(
        str(put(tmp_path / "other", *(f"{s}/{c}" for s in ("train", "test") for c in ("bus", "train"))))
    )
    assert split.classes == ("bus", "train")


@pytest.mark.parametrize(
    ("places", "readings"),
    [
        (
            ["train/cat", "train/dog", "bus", "car"],
            r"'train' of .* as a split beside which 'bus' and 'car'.*or as a class",
        ),
        (["bus/old", "bus/new", "train/old", "train/new"], "'train' of .* as a split .*'bus'.*or as a class"),
        (
            ["PetImages/cat", "PetImages/dog", "banner"],
            r"'PetImages' of .* a class like 'banner', or as the folder",
        ),
        (["train", "images"], r"'train' of .* as a split beside which 'images'.* or as a class like"),
        (["bus", "train", "test"], "'test' and 'train' of .* as splits beside which 'bus'.*or as classes"),
        (["train", "test"], "as splits without labels, or as classes"),
        (["train", "test1"], "as splits without labels, or as classes"),
        (
            ["train/cat", "train/dog", "Training/cat", "Training/dog"],
            "'Training' and 'train' of .* each be the train",
        ),
        (
            ["train/a", "train/b", "val/a", "val/b", "valid/a", "valid/b"],
            "'val' and 'valid' .* the validation split",
        ),
        (["x_train/a", "x_test/a", "y_train/a", "y_test/a"], "several data sets"),
        (["one/cat", "one/dog", "two/cat", "two/dog"], "'one' and 'two' .* classes, or as parts .* cat, dog"),
        (
            ["cells/yes", "cells/no", "yes", "no"],
            "'cells' of .* as a class, or as another copy of the classes",
        ),
        (
            ["one/train/a", "one/train/b", "one/test/a", "two/x"],
            "'one' and 'two' of .* data sets.*or as classes",
        ),
    ],
)
def test_two_readings_are_both_named(tmp_path: Path, places: list[str], readings: str) -> None:
    with pytest.raises(DataError, match=readings) as error:
        open_data(str(put(tmp_path, *places)))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_folders_beside_splits_are_left_out_with_a_word(tmp_path: Path) -> None:
    put(
        tmp_path, *(f"seg_{split}/{name}" for split in ("train", "test") for name in TWO), "seg_pred/seg_pred"
    )
    put(tmp_path, "seg_train")
    data = open_data(str(tmp_path))
    assert len(data.train) == len(data.judged) == 4
    assert "2 in seg_pred, which is no split" in data.found
    assert "2 beside the class folders" in data.found


def test_one_class_among_several_may_have_folders_of_its_own(tmp_path: Path) -> None:
    data = open_data(str(put(tmp_path, "cat/persian", "cat/siamese", "dog", "emu", "fox")))
    assert data.classes == ("cat", "dog", "emu", "fox")


def test_a_class_filed_by_year_is_one_class(tmp_path: Path) -> None:
    data = open_data(str(put(tmp_path, "cat/2019", "cat/2020", "dog/2019", "dog/2020", count=5)))
    assert data.classes == ("cat", "dog")
    assert len(data.train) + len(data.judged) == 20


@pytest.mark.parametrize(
    "hidden",
    [".ipynb_checkpoints", ".Trash-1000", "@eaDir", "__MACOSX", "$RECYCLE.BIN", "lost+found", ".git"],
)
def test_hidden_folders_inside_a_class(tmp_path: Path, hidden: str) -> None:
    put(tmp_path, "cat", "dog", count=5)
    put(tmp_path / "cat" / "deep", hidden, count=3)
    data = open_data(str(tmp_path))
    assert len(data.train) + len(data.judged) == 10
    assert not any(hidden in path for path in files(data.train) | files(data.judged))
    assert data.found.endswith(f"; left out: 3 in {hidden}")


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    put(tmp_path, "cat", "dog", count=5)
    for name in ("._0.png", ".DS_Store", "Thumbs.db", "a.txt", "b.csv", "c.txt", "d.heic", "e.SVG", "noted"):
        (tmp_path / "cat" / name).write_text("x")
    (tmp_path / "dog" / "gone.png").symlink_to(tmp_path / "nowhere")
    put(tmp_path, "", count=1)
    found = open_data(str(tmp_path)).found
    assert found.startswith("10 pictures of 2 classes (cat, dog): train ")
    assert "; no test split was given; a fifth of the pictures, held out by content, are val" in found
    for words in (
        "3 hidden or system",
        "4 that are no pictures (.csv, .txt)",
        "2 of formats that cannot be read (.heic, .svg)",
        "1 links or devices without a file",
        "1 beside the class folders",
    ):
        assert words in found


def test_links_to_folders_and_round_in_circles(tmp_path: Path) -> None:
    put(tmp_path / "pool", "a", "b", count=4)
    (tmp_path / "data").mkdir()
    for name in "ab":
        (tmp_path / "data" / name).symlink_to(tmp_path / "pool" / name, target_is_directory=True)
    (tmp_path / "pool" / "a" / "round").symlink_to(tmp_path / "data", target_is_directory=True)
    (tmp_path / "pool" / "a" / "self").symlink_to("self")
    data = open_data(str(tmp_path / "data"))
    assert len(data.train) + len(data.judged) == 8
    assert "2 links" in data.found


def test_a_pipe_is_no_picture(tmp_path: Path) -> None:
    put(tmp_path, "a", "b", count=4)
    os.mkfifo(tmp_path / "a" / "pipe.png")
    assert "1 links or devices" in open_data(str(tmp_path)).found


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".tif", ".JPEG", ".dib", ".webp", ".avif", ".jp2"])
def test_suffixes(tmp_path: Path, suffix: str) -> None:
    from PIL import features

    needs = {".avif": "avif", ".jp2": "jpg_2000", ".webp": "webp"}.get(suffix, "pil")
    if not features.check(needs):
        pytest.skip(f"this Pillow has no {needs}")
    data = open_data(str(put(tmp_path, "test/a", "test/b", suffix=suffix)))
    assert len(data.judged) == 4
    assert data.judged[0][0].size == (8, 8)


@pytest.mark.parametrize("bare", ["test", "test/test", "Test/unknown", "test_images"])
def test_a_test_split_without_labels(tmp_path: Path, bare: str) -> None:
    put(tmp_path, *(f"{split}/{name}" for split in ("train", "val") for name in TWO))
    put(tmp_path, bare, count=7)
    data = open_data(str(tmp_path))
    assert {path.split("/")[-3] for path in files(data.validation)} == {"val"}
    assert data.test is None
    assert "; no labelled test split was given; " in data.found
    assert f"left out: 7 in {bare.split('/')[0]} without labels" in data.found


def test_without_any_other_labels_a_part_of_train_is_held_out(tmp_path: Path) -> None:
    put(tmp_path, "train/cat", "train/dog", count=20)
    put(tmp_path, "test", count=7)
    data = open_data(str(tmp_path))
    assert len(data.train) + len(data.judged) == 40
    assert data.found.endswith("by content, are validation; left out: 7 in test without labels")


def test_held_out_splits_may_lack_classes(tmp_path: Path) -> None:
    put(tmp_path, "train/a", "train/b", "train/c", "val/b", "val/c")
    data = open_data(str(tmp_path))
    assert names(data, data.judged) == {"b": 2, "c": 2}
    assert "no validation pictures of a" in data.found
    put(tmp_path, "val/d")
    with pytest.raises(DataError, match=r"train and val of .* have different class names"):
        open_data(str(tmp_path))


def test_a_class_of_unreadable_pictures_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "cat", "dog")
    (tmp_path / "bird").mkdir()
    (tmp_path / "bird" / "0.heic").write_text("x")
    with pytest.raises(
        DataError, match=r"class folder '.*bird' holds no images that can be read, only .heic; put"
    ):
        open_data(str(tmp_path))
    (tmp_path / "bird" / "0.heic").rename(tmp_path / "bird" / "0.xml")
    assert open_data(str(tmp_path)).classes == ("cat", "dog")


def test_names_that_no_file_could_hold_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"class name 'a\\nb' of .* does not print on one line"):
        open_data(str(put(tmp_path, "a\nb", "c")))


def test_the_line_stays_one_line(tmp_path: Path) -> None:
    put(tmp_path, "cat", "dog", ".\n\x1b[31m" + 30 * "x", *(f".{i}{90 * 'y'}" for i in range(9)))
    found = open_data(str(tmp_path)).found
    assert found.isprintable()
    assert len(found) <= 400


def test_training_pictures_that_are_also_test_pictures_are_counted(tmp_path: Path) -> None:
    put(tmp_path, *(f"{split}/{name}" for split in ("train", "test") for name in TWO))
    for number in range(2):
        (tmp_path / "test" / "dog" / f"again{number}.png").write_bytes(
            (tmp_path / "train/cat/0.png").read_bytes()
        )
    assert "; 2 test pictures are also among those of train" in open_data(str(tmp_path)).found
