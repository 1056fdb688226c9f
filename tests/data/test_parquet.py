from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sparsetune.data import parquet
from sparsetune.data.data import open_data
from sparsetune.data.loading import loader
from sparsetune.data.preprocessing import Augment
from sparsetune.errors import DataError

NAMES = tuple("0123456789")


@pytest.mark.parametrize("hub", [False, True])
@pytest.mark.parametrize("columns", [("image", "label"), ("img", "fine_label"), ("image", "labels")])
def test_both_ways_to_name_classes_and_columns(
    make: Any, tmp_path: Path, hub: bool, columns: tuple[str, str]
) -> None:
    data = open_data(str(make.digits(tmp_path, hub=hub, columns=columns)))
    assert data.name == tmp_path.name
    assert data.classes == NAMES
    assert (len(data.train), len(data.judged)) == (12, 6)
    assert data.judged.labels.tolist() == make.labels[12:18].tolist()
    for i in range(12):
        image, label = data.train[i]
        assert image.mode == "RGB"
        assert image.tobytes() == make.picture(i).tobytes()
        assert label == make.labels[i]


@pytest.mark.parametrize(("kind", "tolerance"), [("PNG", 0), ("JPEG", 20), ("WEBP", 40), ("BMP", 0)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_formats_and_grey_pictures(make: Any, tmp_path: Path, kind: str, tolerance: int, mode: str) -> None:
    make.parquet(tmp_path / "test.parquet", [make.encoded(3, kind, mode=mode)], [0], names="x")
    image, _ = open_data(str(tmp_path)).test[0]
    assert image.mode == "RGB"
    difference = np.asarray(image, dtype=int) - np.asarray(make.picture(3), dtype=int)
    assert np.abs(difference).mean() <= tolerance / 4


@pytest.mark.parametrize("suffix", ["", "-359597a978bc4fa"])
def test_shards_follow_one_another(make: Any, tmp_path: Path, suffix: str) -> None:
    for shard in range(3):
        rows = range(shard * 5, shard * 5 + 5)
        make.parquet(
            tmp_path / "data" / f"train-{shard:05}-of-00003{suffix}.parquet",
            [make.encoded(i) for i in rows],
            [int(make.labels[i]) for i in rows],
            names=NAMES,
            row_group=2,
        )
    make.parquet(tmp_path / "data" / "val.parquet", [make.encoded(0)], [0], names=NAMES)
    train = open_data(str(tmp_path)).train
    assert [image.tobytes() for image, _ in train] == [make.picture(i).tobytes() for i in range(15)]
    assert train.labels.tolist() == make.labels[:15].tolist()


def test_validation_only_and_train_only(make: Any, tmp_path: Path) -> None:
    pictures, labels = [make.encoded(i) for i in range(40)], [i % 2 for i in range(40)]
    make.parquet(tmp_path / "a" / "validation.parquet", pictures, labels, names="xy")
    held_out = open_data(str(tmp_path / "a"))
    assert held_out.train is None
    assert (len(held_out.validation), held_out.test) == (40, None)
    make.parquet(tmp_path / "b" / "train.parquet", pictures, labels, names="xy")
    halves = [open_data(str(tmp_path / "b"), split_seed=seed) for seed in (0, 0, 1)]
    assert [len(half.train) + len(half.judged) for half in halves] == [40] * 3
    assert halves[0].judged.rows.tolist() == halves[1].judged.rows.tolist() != halves[2].judged.rows.tolist()


def test_classes_without_names_are_numbered(make: Any, tmp_path: Path) -> None:
    assert open_data(str(make.digits(tmp_path, names=None))).classes == NAMES


def test_validation_stands_beside_test(make: Any, tmp_path: Path) -> None:
    make.digits(tmp_path)
    make.parquet(tmp_path / "val.parquet", [make.encoded(0)], [0], names=NAMES)
    data = open_data(str(tmp_path))
    assert len(data.judged) == 6
    assert len(data.validation) == 1
    assert data.found.startswith(
        "19 pictures of 10 classes (0, 1, 2, 7 more): train 12, validation 1, test 6; "
    )
    assert "; 1 validation pictures are also among those of train; " in data.found


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train/0000.parquet", "test/0000.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("default/partial-train/0000.parquet", "default/validation/0000.parquet"),
        ("Train/0000.parquet", "TEST/0000.parquet"),
        ("data/training.parquet", "data/testing.parquet"),
        ("cifar-train.parquet", "cifar-test.parquet"),
        ("train-a12bc.parquet", "eval-00000-of-00001-f00.parquet"),
        ("train_0.parquet", "dev_0.parquet"),
    ],
)
def test_names_of_splits(make: Any, tmp_path: Path, train: str, test: str) -> None:
    for place, rows in ((train, range(12)), (test, range(12, 18))):
        labels = [int(make.labels[i]) for i in rows]
        make.parquet(tmp_path / place, [make.encoded(i) for i in rows], labels, names=NAMES)
    data = open_data(str(tmp_path))
    assert data.train.labels.tolist() == make.labels[:12].tolist()
    assert data.judged.labels.tolist() == make.labels[12:18].tolist()


def test_shards_in_the_folder_of_a_split(make: Any, tmp_path: Path) -> None:
    for shard in range(2):
        pictures = [make.encoded(i) for i in (2 * shard, 2 * shard + 1)]
        make.parquet(tmp_path / "train" / f"{shard:04}.parquet", pictures, [0, 1], names="ab")
    make.parquet(tmp_path / "test" / "0000.parquet", [make.encoded(9)], [1], names="ab")
    train = open_data(str(tmp_path)).train
    assert [image.tobytes() for image, _ in train] == [make.picture(i).tobytes() for i in range(4)]


@pytest.mark.parametrize(
    ("places", "readings"),
    [
        (["a/train/0000", "b/train/0000"], "holds Parquet files in a, b; expected one data set; name one"),
        (["x-train", "y-train"], "holds Parquet files of x, y; expected one data set"),
        (["val", "validation"], r"val.parquet and validation.parquet of .* can each be the validation split"),
        (["train", "train/0000"], ""),
        (
            ["a/train", "a/train/0000"],
            r"a/train.parquet and a/train/0000.parquet of .* each be the train split",
        ),
    ],
)
def test_two_readings_are_both_named(make: Any, tmp_path: Path, places: list[str], readings: str) -> None:
    for place in places:
        make.parquet(
            tmp_path / f"{place}.parquet", [make.encoded(i) for i in range(8)], [0, 1] * 4, names="ab"
        )
    if readings:
        refused(tmp_path, readings)
    else:
        assert "left out: 1 Parquet files of no split" in open_data(str(tmp_path)).found


def test_pictures_beside_parquet_files(make: Any, tmp_path: Path) -> None:
    make.digits(tmp_path)
    make.picture(0).save(tmp_path / "banner.png")
    assert open_data(str(tmp_path)).found.endswith("left out: 1 pictures beside the Parquet files")
    make.tree(tmp_path / "train", {"a": 5, "b": 5})
    refused(
        tmp_path, "can be read as Parquet files or as pictures in class folders; move away what is not meant"
    )


@pytest.mark.parametrize("labels", ["-1", "null", "no type", "no column"])
def test_a_split_without_labels_is_left_out(make: Any, tmp_path: Path, labels: str) -> None:
    make.digits(tmp_path)
    (tmp_path / "test-00000-of-00001.parquet").rename(tmp_path / "validation.parquet")
    table = pa.table({"image": image_column(make, 3)})
    columns = {
        "-1": pa.array([-1] * 3),
        "null": pa.array([None] * 3, pa.int64()),
        "no type": pa.array([None] * 3, pa.null()),
    }
    write(tmp_path, table.append_column("label", columns[labels]) if labels in columns else table)
    data = open_data(str(tmp_path))
    assert data.test is None
    assert data.judged.labels.tolist() == make.labels[12:18].tolist()
    assert "; left out: 3 in test without labels" in data.found
    (tmp_path / "validation.parquet").unlink()
    alone = open_data(str(tmp_path))
    assert len(alone.train) + len(alone.judged) == 12
    (tmp_path / "train-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"test\.parquet"):
        open_data(str(tmp_path))


def test_a_single_class(make: Any, tmp_path: Path) -> None:
    make.parquet(tmp_path / "train.parquet", [make.encoded(i) for i in range(8)], [1] * 8, names="ab")
    refused(tmp_path, "training pictures of .* are of a single class")


def test_little_is_held_beside_the_pictures(make: Any, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 1 << 16), np.uint8)
    make.parquet(tmp_path / "train.parquet", [row.tobytes() for row in noise], [0, 1] * 300, row_group=300)
    pool, usual = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        split, _ = parquet.read([tmp_path / "train.parquet"], required=True)
    finally:
        pa.set_memory_pool(usual)
    assert len(split) == 600
    assert pool.bytes_allocated() < 1 << 20  # 37.5 MiB of pictures are kept, but none of Arrow's memory
    assert pool.max_memory() < 32 << 20


def write(folder: Path, table: pa.Table) -> Path:
    pq.write_table(table, folder / "test.parquet")
    return folder


def image_column(make: Any, count: int) -> pa.Array:
    return pa.array([{"bytes": make.encoded(i)} for i in range(count)], pa.struct([("bytes", pa.binary())]))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        open_data(str(folder))
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_parquet(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_text("not at all")
    refused(tmp_path, r"train.parquet' cannot be read as a Parquet file \(.*\); fetch it again")


def test_a_truncated_file(make: Any, tmp_path: Path) -> None:
    file = make.digits(tmp_path) / "test-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    refused(tmp_path, "test-00000-of-00001.parquet' cannot be read as a Parquet file")


def test_damage_in_the_middle_of_a_file(make: Any, tmp_path: Path) -> None:
    file = make.digits(tmp_path) / "test-00000-of-00001.parquet"
    content = bytearray(file.read_bytes())
    content[4:400] = bytes(396)
    file.write_bytes(content)
    refused(tmp_path, "test-00000-of-00001.parquet' cannot be read as a Parquet file")


def test_missing_columns(make: Any, tmp_path: Path) -> None:
    refused(
        write(tmp_path, pa.table({"image": image_column(make, 1), "text": ["a"]})),
        "test.parquet' has the columns image, text; expected one called label or labels or fine_label",
    )
    refused(
        write(tmp_path, pa.table({"pixels": [1], "label": [1]})),
        "has the columns pixels, label; expected one called image or img",
    )


def test_columns_of_the_wrong_type(make: Any, tmp_path: Path) -> None:
    refused(
        write(tmp_path, pa.table({"image": ["a.jpg"], "label": [0]})),
        "column image of .*test.parquet' is string; expected a struct with binary 'bytes'",
    )
    refused(
        write(tmp_path, pa.table({"image": image_column(make, 1), "label": ["cat"]})),
        "column label of .*test.parquet' is string; expected integers",
    )


def test_labels_out_of_range(make: Any, tmp_path: Path) -> None:
    pictures = [make.encoded(i) for i in range(4)]
    file = make.parquet(tmp_path / "test.parquet", pictures, [0, 1, 2, 5], names="abc")
    refused(tmp_path, f"^label 5 in row 3 of {str(file)!r} is out of range; expected 0 to 2")
    make.parquet(file, pictures, [0, 1, -1, -1], names="abc")
    refused(tmp_path, "^label -1 in row 2 of .* is out of range; expected 0 to 2")
    make.parquet(file, pictures, [0, 1, 2**62, 0])
    refused(tmp_path, "is out of range")
    make.parquet(file, pictures, [0, None, 1, None], names="abc")
    refused(tmp_path, "labels in .* has 2 empty rows; expected none")


def test_class_names_that_differ(make: Any, tmp_path: Path) -> None:
    make.digits(tmp_path)
    make.parquet(tmp_path / "test-00000-of-00001.parquet", [make.encoded(0)], [0], names="012345678x")
    refused(tmp_path, r"train and test of .* have different class names \(only one has '9'\)")
    make.parquet(tmp_path / "test-00000-of-00001.parquet", [make.encoded(0)], [0], names="1023456789")
    refused(tmp_path, "have different class names; expected the same ones")


def test_class_names_that_differ_between_shards(make: Any, tmp_path: Path) -> None:
    for shard, names in enumerate(("ab", "ba")):
        make.parquet(tmp_path / f"test-0000{shard}-of-00002.parquet", [make.encoded(0)], [0], names=names)
    refused(
        tmp_path, "class names of .*test-00001-of-00002.parquet' differ from those of test-00000-of-00002"
    )


@pytest.mark.parametrize("names", ["{", '"cat"', "[]", "[1, 2]", '["a", null]'])
def test_class_names_that_are_no_names(make: Any, tmp_path: Path, names: str) -> None:
    table = pa.table({"image": image_column(make, 1), "label": [0]})
    refused(
        write(tmp_path, table.replace_schema_metadata({"label_names": names})), "class names in the metadata"
    )


@pytest.mark.parametrize("info", ["[]", "{}", json.dumps({"info": {"features": {"label": None}}})])
def test_hub_metadata_that_makes_no_sense(make: Any, tmp_path: Path, info: str) -> None:
    table = pa.table({"image": image_column(make, 1), "label": [0]})
    refused(
        write(tmp_path, table.replace_schema_metadata({"huggingface": info})), "class names in the metadata"
    )


def test_a_missing_shard(make: Any, tmp_path: Path) -> None:
    make.digits(tmp_path)
    file = tmp_path / "train-00000-of-00001.parquet"
    file.rename(tmp_path / "train-00000-of-00003.parquet")
    refused(tmp_path, r"train-\*-of-00003\*.parquet' matches 1 files; expected all 3")


def test_no_known_split(make: Any, tmp_path: Path) -> None:
    make.parquet(tmp_path / "everything.parquet", [make.encoded(0)], [0])
    refused(
        tmp_path, "everything.parquet in .* is of no known split; expected names like train-00000-of-00001"
    )


def test_several_data_sets_in_one_folder(make: Any, tmp_path: Path) -> None:
    make.digits(tmp_path / "one")
    make.digits(tmp_path / "two")
    refused(tmp_path, "holds Parquet files in one, two; expected one data set; name one of these folders")


def test_no_rows(make: Any, tmp_path: Path) -> None:
    make.digits(tmp_path, test=0)
    refused(tmp_path, "a split of .* holds no images; expected at least one")


def test_a_row_without_bytes(make: Any, tmp_path: Path) -> None:
    make.parquet(tmp_path / "test.parquet", [make.encoded(0), None], [0, 0], names="a")
    refused(tmp_path, r"^image in row 1 of .*test.parquet' cannot be decoded \(it is none of JPEG, PNG")


PICTURES = pa.schema([("image", pa.struct([("bytes", pa.binary())])), ("label", pa.int64())])
LIMIT = 1 << 30
"""Bytes beside its own that a process may take; half of that is for what it reads."""


def test_rows_that_name_values_of_a_dictionary(make: Any, tmp_path: Path) -> None:
    """What repeats is stored once, in each of three groups of rows, until the dictionary is full."""
    chance = np.random.default_rng(0)
    some = [chance.bytes(int(size)) for size in chance.integers(0, 3000, 1000)]
    rows = [some[int(number)] for number in chance.integers(0, 1000, 3000)]
    values = [{"bytes": row} for row in rows]
    table = pa.table({"image": values, "label": [0, 1] * 1500}, schema=PICTURES)
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=1200, dictionary_pagesize_limit=400_000)
    column = pq.read_metadata(tmp_path / "train.parquet").row_group(0).column(0)
    assert column.has_dictionary_page
    assert "PLAIN" in column.encodings
    split, _ = parquet.read([tmp_path / "train.parquet"], required=True)
    assert [split.images.stored(number) for number in range(3000)] == rows


@pytest.mark.parametrize(
    ("row", "rows", "groups", "dictionary"),
    [(b"\0" * 400_000, 250, 16, True), (b"\0" * 4_000_000, 20, 20, False), (None, 8_000_000, 5, False)],
    ids=["rows of a dictionary", "pages of zeros", "rows of nothing"],
)
def test_files_that_unpack_to_gigabytes(
    tmp_path: Path, row: bytes | None, rows: int, groups: int, dictionary: bool
) -> None:
    """A file of few bytes is refused before they are there."""
    path = tmp_path / "train.parquet"
    with pq.ParquetWriter(path, PICTURES, compression="zstd", use_dictionary=dictionary) as file:
        values = pa.array([row], pa.binary()).take(pa.array(np.zeros(rows, np.int64)))
        image = pa.StructArray.from_arrays([values], ["bytes"])
        table = pa.table([image, pa.array(np.zeros(rows, np.int64))], schema=PICTURES)
        for _ in range(groups):
            file.write_table(table)
    assert path.stat().st_size < 2 << 20
    code = (
        "import resource, sys, sparsetune as st; from sparsetune.data import parquet;"
        "from sparsetune.host import taken_bytes; before = taken_bytes('VmHWM')\n"
        f"resource.setrlimit(resource.RLIMIT_DATA, (taken_bytes('VmData') + {LIMIT},) * 2)\n"
        "try: st.open_data(sys.argv[1])\n"
        "except st.SparsetuneError as error: print(error)\n"
        "print(taken_bytes('VmHWM') - before)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    told, taken = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "unpacks to " in told or "does not fit into memory" in told  # older pyarrow holds more of it
    assert "use a larger machine, or a folder of image files" in told
    assert int(taken) < LIMIT


def test_a_table_that_contradicts_itself(make: Any, tmp_path: Path) -> None:
    """pyarrow ends the process where it is asked for this column; that an error is told is the point."""
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"image": [{"bytes": b""}], "label": [0]}, schema=PICTURES), path)
    optional, required = (bytes((0x35, kind, 0x18, 5)) + b"image" for kind in (2, 0))  # as Thrift writes it
    assert path.read_bytes().count(optional) == 1
    path.write_bytes(path.read_bytes().replace(optional, required))
    code = (
        "import sys, sparsetune as st\n"
        "try: st.open_data(sys.argv[1])\n"
        "except st.SparsetuneError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "cannot be read as a Parquet file" in done.stdout


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
def test_pages_tell_what_pyarrow_tells(tmp_path: Path, version: str, compression: str) -> None:
    """Of an honest file; sizes in its table have the headers of pages in them, some bytes each."""
    chance = np.random.default_rng(0)
    rows = [{"bytes": chance.bytes(int(size))} for size in chance.integers(0, 3000, 400)]
    table = pa.table({"image": rows * 2, "label": [0, 1] * 400}, schema=PICTURES)
    path = tmp_path / "train.parquet"
    pq.write_table(
        *(table, path),
        row_group_size=300,
        compression=compression,
        data_page_version=version,
        data_page_size=50_000,
        dictionary_pagesize_limit=1_000_000,
        write_page_index=True,
    )
    unpacked, largest = parquet._unpacked(path, ["image.bytes"])
    groups = [pq.read_metadata(path).row_group(number) for number in range(3)]
    told = sum(group.column(0).total_uncompressed_size for group in groups)
    assert told - 100 * 200 < unpacked < told
    values = [row["bytes"] for row in rows * 2]
    parts = ({*values[start : start + 300]} for start in (0, 300, 600))
    assert largest == max(sum(len(value) + 4 for value in part) for part in parts)


@pytest.mark.parametrize("compression", ["zstd", "snappy", "gzip", "brotli"])
def test_a_page_that_tells_too_small_a_size_does_not_unpack(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "train.parquet"
    table = pa.table({"image": [{"bytes": bytes(20_000_000)}], "label": [0]}, schema=PICTURES)
    pq.write_table(table, path, compression=compression, use_dictionary=False)
    data = path.read_bytes()
    begin, end = 7, 8  # behind the file's mark and a page's kind: how many bytes it unpacks to, of which
    while data[end - 1] > 127:  # each byte but the last has its highest bit set, as Thrift writes numbers
        end += 1
    assert data[4:begin] == b"\x15\0\x15"
    path.write_bytes(data[:begin] + b"\xff" + b"\x80" * (end - begin - 2) + b"\0" + data[end:])
    with pytest.raises(DataError, match="cannot be read as a Parquet file"):
        parquet.read([path], required=True)


REAL = os.environ.get("SPARSETUNE_TEST_DATA")
real = pytest.mark.skipif(REAL is None, reason="SPARSETUNE_TEST_DATA is not set")


@real
def test_real_cifar10() -> None:
    data = open_data(str(Path(REAL, "cifar10")))
    assert data.classes[:3] == ("airplane", "automobile", "bird")
    assert data.train.labels.bincount().tolist() == [5000] * 10
    assert data.judged.labels.bincount().tolist() == [1000] * 10
    assert data.preprocessing.size == (3, 32, 32)
    assert data.preprocessing.std == (0.2023, 0.1994, 0.2010)
    assert data.augment == Augment(pad=4, flip=True)
    x = torch.cat(
        [x for x, _ in loader(data.train.take(np.arange(3000)), data.preprocessing, batch_size=500)]
    )
    assert x.mean(dim=(0, 2, 3)).abs().max() < 0.05
    assert data.train[49_999][0].size == (32, 32)


@real
def test_real_tiny_imagenet() -> None:
    data = open_data(str(Path(REAL, "tiny-imagenet-200")), train_limit=2000)
    assert len(data.classes) == 200
    assert data.train.labels.bincount().tolist() == [10] * 200
    assert data.judged.labels.bincount().tolist() == [50] * 200
    assert data.preprocessing.size == (3, 64, 64)
    assert data.augment == Augment(pad=8, flip=True)
    for x, y in loader(data.train, data.preprocessing, batch_size=500):
        assert x.shape == (500, 3, 64, 64)
        assert y.max() < 200
