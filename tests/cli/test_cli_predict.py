"""``predict`` of many pictures: folders, patterns, batches, and damaged ones among them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import sparsetune as st


@pytest.fixture
def folder(pictures) -> Path:
    """Seven pictures at two depths, beside what a system left there and what is no picture."""
    inside = Path("album")
    for number in range(4):
        (inside / "deep").mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures / "class 3" / f"no {number}.jpg", inside / f"{number}.jpg")
    for number in range(3):
        shutil.copy(pictures / "class 4" / f"no {number}.png", inside / "deep" / f"{number}.png")
    (inside / "__MACOSX").mkdir()
    shutil.copy(inside / "0.jpg", inside / "__MACOSX" / "0.jpg")
    shutil.copy(inside / "0.jpg", inside / ".hidden.jpg")
    (inside / "notes.txt").write_text("no picture")
    return inside


NAMES = [f"album/{n}.jpg" for n in range(4)] + [f"album/deep/{n}.png" for n in range(3)]


def test_a_folder_is_all_pictures_below_it(sparsetune, deltas, folder):
    found = sparsetune("predict", deltas[0], folder, "--json", "--top", 10).json
    assert [each["image"] for each in found] == NAMES
    net, preprocessing = st.load(deltas[0]), st.inspect(deltas[0]).preprocessing
    for each in found:
        with Image.open(each["image"]) as opened, torch.no_grad():
            p = net(preprocessing.apply(opened)[None]).softmax(1)[0]
        told = {ranked["name"]: ranked["probability"] for ranked in each["classes"]}
        assert told == pytest.approx({str(i): p[i].item() for i in range(10)}, abs=1e-6)


def test_batches_change_no_answer(sparsetune, deltas, folder):
    whole, *others = (
        sparsetune("predict", deltas[0], folder, "--top", 1, "-b", size).out for size in (32, 1, 3)
    )
    assert others == [whole, whole]
    assert len(whole.splitlines()) == 2 * len(NAMES)


def test_patterns_and_repeated_names(sparsetune, deltas, folder):
    words = ["album/*.jpg", "album/**/1.*", "album/deep/2.png", "album/deep/2.png"]
    found = sparsetune("predict", deltas[0], *words, "--json").json
    expected = [*NAMES[:4], "album/1.jpg", "album/deep/1.png", *["album/deep/2.png"] * 2]
    assert [each["image"] for each in found] == expected
    shutil.copy("album/0.jpg", "odd [1]*.jpg")
    found = sparsetune("predict", deltas[0], "odd [1]*.jpg", "--json").json
    assert [each["image"] for each in found] == ["odd [1]*.jpg"]


@pytest.mark.parametrize("size", [1, 3, 32])
def test_damaged_pictures_hide_no_others(sparsetune, deltas, folder, size):
    before = {each["image"]: each for each in sparsetune("predict", deltas[0], folder, "--json").json}
    for name in ("album/0.jpg", "album/deep/1.png"):
        Path(name).write_bytes(Path(name).read_bytes()[:60])
    found = sparsetune("predict", deltas[0], folder, "nosuch.png", "--json", "-b", size, code=1)
    assert [each["image"] for each in found.json] == [*NAMES, "nosuch.png"]
    failed = [each for each in found.json if "error" in each]
    assert [each["image"] for each in failed] == ["album/0.jpg", "album/deep/1.png", "nosuch.png"]
    assert found.err.splitlines() == [f"error: {each['error']}" for each in failed]
    assert all(each["image"] in each["error"] for each in failed)
    for each in found.json:
        if "error" not in each:
            names = [ranked["name"] for ranked in each["classes"]]
            assert names == [ranked["name"] for ranked in before[each["image"]]["classes"]]
    human = sparsetune("predict", deltas[0], folder, "--top", 1, "-b", size, code=1)
    assert [line for line in human.out.splitlines() if line.startswith("album")] == [
        name for name in NAMES if name not in ("album/0.jpg", "album/deep/1.png")
    ]
    assert len(human.err.splitlines()) == 2


def test_where_none_can_be_read_it_is_a_mistake(sparsetune, deltas, refused, folder):
    assert "'nosuch.png' cannot be decoded (No such file" in refused("predict", deltas[0], "nosuch.png")
    assert "cannot be decoded" in refused("predict", deltas[0], "album/notes.txt", "--json")
    Path("empty").mkdir()
    assert refused("predict", deltas[0], "empty") == "folder 'empty' holds no pictures; name one that does."
    several = sparsetune("predict", deltas[0], "empty", "nosuch.png", "none*.jpg", "--json", code=2)
    assert several.out == ""
    assert [line[: len("error: ")] for line in several.err.splitlines()] == ["error: "] * 3


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_answers_make_a_table(sparsetune, deltas, folder, suffix):
    import pyarrow.csv
    import pyarrow.parquet

    (folder / "torn.jpg").write_bytes(b"no picture")
    out = f"tables/answers.{suffix}"
    found = sparsetune("predict", deltas[0], folder, "--json", "--top", 2, "-o", out, code=1).json
    read = {"csv": pyarrow.csv.read_csv, "parquet": pyarrow.parquet.read_table}[suffix]
    rows = read(out).to_pylist()
    assert [row["image"] for row in rows] == [each["image"] for each in found]
    for row, each in zip(rows, found, strict=True):
        if "error" in each:
            assert row["error"] == each["error"]
            continue
        first, second = each["classes"]
        assert str(row["class"]) == first["name"]
        assert str(row["class_2"]) == second["name"]
        assert (row["probability"], row["probability_2"]) == pytest.approx(
            (first["probability"], second["probability"])
        )


def test_another_kind_of_table_is_refused_first(refused, deltas, folder):
    said = refused("predict", deltas[0], folder, "-o", "answers.xlsx")
    assert said == "'answers.xlsx' does not end in .csv or .parquet, the tables that are written."
    assert not Path("answers.xlsx").exists()
