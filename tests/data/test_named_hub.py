from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from sparsetune.data.data import open_data
from sparsetune.errors import ConfigError, DataError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the Hub client offline, with a cache that holds one snapshot of the data set some/digits."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    home = tmp_path / "datasets--some--digits"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    folder = home / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    return folder


def test_a_snapshot_in_the_cache(make: Any, snapshot: Path) -> None:
    make.digits(snapshot / "data", hub=True)
    data = open_data("hf://datasets/some/digits")
    assert data.name == "some/digits"
    assert len(data.train) == 12
    assert data.classes == tuple("0123456789")


def test_one_folder_of_it(make: Any, snapshot: Path) -> None:
    make.digits(snapshot / "a", train=11)
    make.digits(snapshot / "b", train=13)
    with pytest.raises(DataError, match="holds Parquet files in a, b; expected one data set"):
        open_data("hf://datasets/some/digits")
    assert len(open_data("hf://datasets/some/digits/b").train) == 13


def test_no_parquet_files(snapshot: Path) -> None:
    with pytest.raises(DataError, match=r"^hf://datasets/some/digits holds no Parquet files; choose"):
        open_data("hf://datasets/some/digits")


@pytest.mark.usefixtures("snapshot")
def test_offline() -> None:
    with pytest.raises(DataError) as error:
        open_data("hf://datasets/some/other")
    assert str(error.value).startswith("hf://datasets/some/other cannot be downloaded (")
    assert str(error.value).endswith(
        ": offline mode is enabled); unset HF_HUB_OFFLINE where there is a network."
    )


@pytest.mark.parametrize(
    "source", ["hf://datasets/", "hf://some/model", "s3://bucket/x", "hf://datasets/a/b/../c"]
)
def test_a_source_of_another_form(source: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"'{source}' is not valid; expected hf://datasets/OWNER/NAME\[/FOLDER\]"
    ):
        open_data(source)
