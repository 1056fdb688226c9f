from __future__ import annotations

from pathlib import Path

import pytest

import sparsetune as st
from sparsetune.data.named import NAMES, address, namesake, told


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("source", [*NAMES, "hf://datasets/a/b"])
def test_names_and_addresses_are_told_as_they_are(source):
    assert address(source) == told(source) == source


@pytest.mark.parametrize("path", ["data/digits", "./digits", "digits/", "/home/x/digits", "~/digits"])
def test_a_folder_is_told_apart_from_every_built_in_and_without_its_place(path):
    assert told(path) == "digits/"
    assert address(path).endswith("/digits")
    assert address(path) == address(address(path))
    with pytest.raises(st.errors.DataError, match="'digits' is not a folder"):
        st.open_data(told(path))  # what a reader of the file copies never opens the built-in


def test_a_folder_with_a_built_in_name_is_mentioned():
    assert namesake("digits") is None
    Path("digits").mkdir()
    assert namesake("digits") == (
        "--data digits is the built-in data set; write ./digits for the folder of that name here."
    )
    assert namesake("./digits") is None
    assert namesake(str(Path("digits").absolute())) is None
