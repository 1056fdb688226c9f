from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparsetune.data.data import cache_folder, open_data
from sparsetune.errors import ConfigError, DataError, UnknownNameError


def test_an_unknown_name() -> None:
    with pytest.raises(
        UnknownNameError, match=r"data set 'cifar11' is unknown; did you mean cifar10.*Or give"
    ):
        open_data("cifar11")


def test_a_missing_folder_and_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name in ("missing", "file"):
        with pytest.raises(
            DataError, match=f"{name}' is not a folder; expected an ImageFolder tree or Parquet"
        ):
            open_data(str(tmp_path / name))


def test_limits_and_size() -> None:
    data = open_data("digits", train_limit=100, test_limit=20)
    assert data.train.labels.bincount().tolist() == [10] * 10
    assert data.test.labels.bincount().tolist() == [2] * 10
    with pytest.raises(ConfigError, match=r"^train_limit 1439 cannot be met; expected 1 to 1438, the images"):
        open_data("digits", train_limit=1439)
    with pytest.raises(ConfigError, match=r"^test_limit 0 cannot be met; expected 1 to 359"):
        open_data("digits", test_limit=0)
    with pytest.raises(ConfigError, match="sides from 1 to 4096"):
        open_data("digits", size=5000)


def test_a_train_limit_without_training_images(make: Any, tmp_path: Path) -> None:
    make.tree(tmp_path / "test", {"cat": 3})
    with pytest.raises(
        ConfigError, match=r"train_limit 3 cannot be met: .* has no training images; leave it out"
    ):
        open_data(str(tmp_path), train_limit=3)


def test_tiny_imagenet_by_name(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSETUNE_DATA", str(tmp_path))
    with pytest.raises(
        DataError, match=r"is not in '.*tiny-imagenet'; put its Parquet files there .* or use hf"
    ):
        open_data("tiny-imagenet")
    folder = make.digits(tmp_path / "tiny-imagenet")
    assert open_data("tiny-imagenet").name == "tiny-imagenet"
    (test,) = folder.glob("*test*")
    test.rename(folder / "val-0.parquet")
    known, unknown = open_data("tiny-imagenet"), open_data(str(folder))
    assert known.validation is unknown.test is None
    assert known.digest() == unknown.digest()
    assert known.test.labels.tolist() == unknown.validation.labels.tolist()
    assert (known.judged_by, unknown.judged_by) == ("test", "validation")


def test_a_limit_of_what_is_held_out(make: Any, tmp_path: Path) -> None:
    make.tree(tmp_path, {"cat": 40, "dog": 40})
    data = open_data(str(tmp_path), test_limit=4)
    assert data.test is None
    assert data.validation.labels.tolist() == [0, 0, 1, 1]
    with pytest.raises(DataError, match="has neither test nor validation pictures"):
        replace(data, validation=None).judged  # noqa: B018


def test_the_digest_reads_each_picture_once(make: Any, tmp_path: Path) -> None:
    make.tree(tmp_path, {"cat": 6, "dog": 6})
    data = open_data(str(tmp_path))
    digest = data.digest()
    for path in tmp_path.glob("*/*"):
        path.unlink()
    assert replace(data, name="same pictures").digest() == digest


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARSETUNE_DATA", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "sparsetune"


def test_the_digest_knows_every_picture_and_no_place(make: Any, tmp_path: Path) -> None:
    """BMP files of one size, so that only their content differs; one is changed in place, at each end."""
    for split in ("train", "test"):
        for index in range(40):
            path = tmp_path / "a" / split / str(index % 2) / f"{index}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(make.encoded(index, "BMP"))
    first = open_data(str(tmp_path / "a")).digest()
    (tmp_path / "a").rename(tmp_path / "b")
    assert open_data(str(tmp_path / "b")).digest() == first
    seen = {first}
    for number, index in enumerate((0, 7, 21, 39)):
        path = tmp_path / "b" / ("train", "test")[number % 2] / str(index % 2) / f"{index}.bmp"
        path.write_bytes(make.encoded(100 + index, "BMP"))
        seen.add(open_data(str(tmp_path / "b")).digest())
    assert len(seen) == 5
