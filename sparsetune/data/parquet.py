"""Parquet files in the Hugging Face image layout: which there are, their pictures and labels."""

from __future__ import annotations

import io
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from sparsetune.data.images import Images, decode
from sparsetune.data.layout import Folder, SplitName
from sparsetune.data.splits import Split
from sparsetune.errors import DataError
from sparsetune.host import json_from, reason, replacing, size, usable_bytes

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
MAX_CLASSES = 1_000_000
UNLABELLED = -1
ROW = 2 * np.dtype(np.int64).itemsize
"""Bytes that a row takes beside its picture: the label, and where the picture ends."""
SMALLER = "use a larger machine, or a folder of image files, which are read one by one"
_BUFFER = 1 << 22
_DICTIONARY, _DEEPEST = 2, 16
"""The kind of a page that holds a dictionary; how deep the table of a file is nested at most."""
_OF = re.compile(r"-\d+-of-(\d+).*", re.IGNORECASE)


@dataclass(frozen=True, eq=False, repr=False)
class Shard:
    """Consecutive rows of one file, still encoded.

    Args:
        file: The file they come from.
        row: The first one's number in that file.
        data: The rows' bytes, one after another.
        ends: int64 of shape (rows + 1,): row ``i`` is ``data[ends[i]:ends[i + 1]]``.
    """

    file: str
    row: int
    data: NDArray[np.uint8]
    ends: NDArray[np.int64]


@dataclass(frozen=True, eq=False, repr=False)
class ParquetImages(Images):
    """Pictures held as encoded bytes; ``starts`` numbers each shard's first one."""

    shards: tuple[Shard, ...]
    starts: tuple[int, ...]

    def __len__(self) -> int:
        return sum(len(shard.ends) - 1 for shard in self.shards)

    def __getitem__(self, index: int) -> Image.Image:
        shard, row = self._place(index)
        return decode(io.BytesIO(self.stored(index)), f"image in row {shard.row + row} of {shard.file!r}")

    def stored(self, index: int) -> bytes:
        """Return one picture as its row holds it."""
        shard, row = self._place(index)
        return shard.data[shard.ends[row] : shard.ends[row + 1]].tobytes()

    def size(self, index: int) -> int:
        """Return one picture's bytes, which need not be read for that."""
        shard, row = self._place(index)
        return int(shard.ends[row + 1] - shard.ends[row])

    def mark(self, index: int) -> str:
        """Return the file's name, the row and the size."""
        shard, row = self._place(index)
        return f"{Path(shard.file).name} {shard.row + row} {self.size(index)}"

    def _place(self, index: int) -> tuple[Shard, int]:
        number = bisect_right(self.starts, index) - 1
        return self.shards[number], index - self.starts[number]


def read(files: Sequence[Path], required: bool) -> tuple[Split | None, tuple[str, ...] | None]:
    """Read the files of one split, a few rows at a time; the encoded pictures stay in memory.

    Args:
        files: At least one file; their rows follow one another.
        required: Whether rows without labels are an error.

    Returns:
        The split, None where no row has a label (there is no such column, or all are empty or -1); and the
        class names if the files tell them.

    Raises:
        DataError: When a file is damaged, lacks a column, holds a label out of range, or unpacks to more than
            may be taken here, or when two files differ in their class names.
    """
    shards: list[Shard] = []
    labels: list[NDArray[np.int64] | None] = []
    classes: tuple[str, ...] | None = None
    for number, file in enumerate(files):
        names, more_shards, more_labels = _read_file(file, required)
        if number and names != classes:
            raise DataError(
                f"class names of {str(file)!r} differ from those of {files[0].name}; expected the same."
            )
        classes = names
        shards += more_shards
        labels.append(more_labels)
    known = [each for each in labels if each is not None]
    if not known:
        return None, classes
    if len(known) < len(labels):
        bare = files[next(number for number, each in enumerate(labels) if each is None)]
        raise DataError(
            f"{str(bare)!r} has no labels, unlike other files of its split; expected all or none."
        )
    starts = np.cumsum([0] + [len(shard.ends) - 1 for shard in shards])[:-1]
    return Split.whole(ParquetImages(tuple(shards), tuple(starts.tolist())), np.concatenate(known)), classes


def count(files: Sequence[Path]) -> int:
    """Count the rows of files that :func:`read` has read."""
    return sum(pq.read_metadata(file).num_rows for file in files)


def _read_file(
    file: Path, required: bool
) -> tuple[tuple[str, ...] | None, list[Shard], NDArray[np.int64] | None]:
    shards: list[Shard] = []
    labels: list[pa.Array] = []
    try:
        metadata = pq.read_metadata(file)
        schema = metadata.schema.to_arrow_schema()
        image = _column(schema, IMAGE_COLUMNS, file)
        if not (required or any(name in schema.names for name in LABEL_COLUMNS)):
            return None, shards, None
        label = _column(schema, LABEL_COLUMNS, file)
        _check_types(schema, image, label, file)
        classes = _class_names(schema, label, file)
        column, rows, most = f"{image}.bytes", metadata.num_rows, usable_bytes()
        unpacked, largest = _unpacked(file, (column, label))
        _check_bytes(file, unpacked + ROW * rows, most)
        few = [_BUFFER * rows // max(unpacked, 1), 4096]
        if largest and most is not None:
            few.append(most // 8 // largest)  # its reader holds them several times
        with pq.ParquetFile(file, metadata=metadata, buffer_size=_BUFFER, pre_buffer=False) as opened:
            row, kept = 0, ROW * rows
            for batch in opened.iter_batches(max(1, min(few)), columns=[column, label]):
                shards.append(_shard(str(file), row, batch.column(0).flatten()[0].cast(pa.large_binary())))
                labels.append(batch.column(1))
                row += len(batch)
                kept += shards[-1].data.nbytes
                _check_bytes(file, kept, most)
    except MemoryError as error:  # pyarrow's and NumPy's are such
        raise DataError(f"{str(file)!r} does not fit into memory ({reason(error)}); {SMALLER}.") from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{str(file)!r} cannot be read as a Parquet file ({reason(error, None)}); fetch it again."
        ) from error
    told = pa.chunked_array(labels, schema.field(label).type)
    return classes, shards, None if _bare(told) and not required else _labels(told, classes, file)


def _unpacked(file: Path, columns: Sequence[str]) -> tuple[int, int]:
    """Return the bytes of the pages of some columns, and of the largest dictionary among them.

    Rows may name values of a dictionary, so that a few pages make any number of bytes. Each page tells its
    size, and none unpacks to more. The table at the file's end tells sizes too, but nothing holds a file to
    them, and pyarrow ends the process where parts of a column's entry contradict each other.
    """
    bytes_, largest = 0, 0
    with file.open("rb") as opened, mmap(opened.fileno(), 0, access=ACCESS_READ) as data:
        table = _Thrift(data, len(data) - 8 - int.from_bytes(data[-8:-4], "little")).struct()
        try:
            chunks = [chunk[3] for group in table.get(4, ()) for chunk in group[1]]
            for chunk in (each for each in chunks if b".".join(each[3]).decode() in columns):
                start = min(place for place in (chunk[9], chunk.get(11, 0)) if place)  # the dictionary's
                pages = _Thrift(data, start, lists=False)
                while pages.at < start + chunk[7]:
                    page = pages.struct()
                    pages.skip(page[3])
                    bytes_ += page[2]
                    largest = max(largest, page[2] if page[1] == _DICTIONARY else 0)
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError("its table of pages is damaged") from error
    return bytes_, largest


@dataclass
class _Thrift:
    """A place in what is written in Thrift's compact protocol, such as a Parquet file's table and pages.

    Args:
        data: The file.
        at: The place of the next byte.
        lists: Whether there may be lists, whose length costs time.

    Raises:
        ValueError: By what reads on, when that is no such thing.
    """

    data: mmap
    at: int
    lists: bool = True

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Read a struct: its fields by number."""
        fields: dict[int, Any] = {}
        number = 0
        while kind := (head := self.byte()) & 15:
            number = number + (head >> 4) if head >> 4 else self.integer()
            fields[number] = kind == 1 if kind < 3 else self.value(kind, depth)
        return fields

    def value(self, kind: int, depth: int) -> Any:
        """Read a value; of a number with a point it is None."""
        if kind < 4:
            return self.byte()
        if kind < 7:
            return self.integer()
        if kind == 7:
            return self.skip(8)
        if kind == 8:
            length = self.natural()
            self.skip(length)
            return self.data[self.at - length : self.at]
        if kind in (9, 10) and self.lists and depth < _DEEPEST:
            head = self.byte()
            count = head >> 4 if head >> 4 < 15 else self.natural()
            return [self.value(head & 15, depth + 1) for _ in range(count)]
        if kind == 12 and depth < _DEEPEST:
            return self.struct(depth + 1)
        raise ValueError(f"its table holds a value of kind {kind}")

    def byte(self) -> int:
        """Read a byte."""
        self.skip(1)
        return self.data[self.at - 1]

    def natural(self) -> int:
        """Read a number that is not negative."""
        value = 0
        for place in range(0, 70, 7):
            byte = self.byte()
            value |= (byte & 0x7F) << place
            if byte < 0x80:
                return value
        raise ValueError("its table holds a number without an end")

    def integer(self) -> int:
        """Read a number."""
        value = self.natural()
        return value >> 1 ^ -(value & 1)

    def skip(self, count: int) -> None:
        """Pass over bytes."""
        if self.at < 0 or not 0 <= count <= len(self.data) - self.at:
            raise ValueError("its table ends too soon")
        self.at += count


def _check_bytes(file: Path, needed: int, limit: int | None) -> None:
    """Refuse what would not fit: pages of a few kilobytes may unpack to gigabytes."""
    if limit is not None and needed > limit:
        raise DataError(
            f"{str(file)!r} unpacks to {size(needed)} at least, of {size(limit)} to be taken here; {SMALLER}."
        )


def _shard(file: str, row: int, chunk: Any) -> Shard:
    _, ends, data = chunk.buffers()
    ends = np.frombuffer(ends, np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
    used = np.frombuffer(data or b"", np.uint8)[ends[0] : ends[-1]]
    return Shard(file, row, used.copy(), ends - ends[0])


def _column(schema: Any, names: Sequence[str], file: Path) -> str:
    for name in names:
        if name in schema.names:
            return name
    raise DataError(
        f"{str(file)!r} has the columns {', '.join(schema.names) or 'none'}; "
        f"expected one called {' or '.join(names)}."
    )


def _check_types(schema: Any, image: str, label: str, file: Path) -> None:
    kind = schema.field(image).type
    binary = (pa.binary(), pa.large_binary())
    if not (
        pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and kind.field("bytes").type in binary
    ):
        raise DataError(f"column {image} of {str(file)!r} is {kind}; expected a struct with binary 'bytes'.")
    if not (pa.types.is_integer(schema.field(label).type) or pa.types.is_null(schema.field(label).type)):
        raise DataError(f"column {label} of {str(file)!r} is {schema.field(label).type}; expected integers.")


def _bare(column: Any) -> bool:
    """Tell whether no row has a label."""
    nulls = column.null_count
    return len(column) > 0 and (
        nulls == len(column) or (not nulls and bool((column.to_numpy() == UNLABELLED).all()))
    )


def _labels(column: Any, classes: tuple[str, ...] | None, file: Path) -> NDArray[np.int64]:
    if column.null_count:
        raise DataError(
            f"column of labels in {str(file)!r} has {column.null_count} empty rows; expected none."
        )
    labels: NDArray[np.int64] = column.to_numpy().astype(np.int64)
    last = len(classes) - 1 if classes else MAX_CLASSES - 1
    wrong = np.flatnonzero((labels < 0) | (labels > last))
    if len(wrong):
        row = wrong[0]
        raise DataError(
            f"label {labels[row]} in row {row} of {str(file)!r} is out of range; expected 0 to {last}."
        )
    return labels


def _class_names(schema: Any, label: str, file: Path) -> tuple[str, ...] | None:
    """Find the class names in the schema's metadata: our own key first, then the ``datasets`` library's."""
    metadata = schema.metadata or {}
    try:
        if b"label_names" in metadata:
            names = json_from(metadata[b"label_names"])
        elif b"huggingface" in metadata:
            names = json_from(metadata[b"huggingface"])["info"]["features"][label].get("names")
        else:
            names = None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"class names in the metadata of {str(file)!r} cannot be read as JSON.") from error
    if names is None:
        return None
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise DataError(f"class names in the metadata of {str(file)!r} are not a list of names.")
    return tuple(names)


@dataclass(frozen=True)
class _Found:
    """A file as part of a split; ``home`` and ``prefix`` tell its data set."""

    file: Path
    home: Path
    prefix: tuple[str, ...]
    name: SplitName | None


def find(root: Folder) -> dict[str, list[Path]]:
    """Group Parquet files by split: kind -> files.

    A split is told by the file's name (``train-00000-of-00002.parquet``, ``cifar-test.parquet``) or else by
    its folder's (``train/0000.parquet``). Files directly in the folder come before those in sub-folders.

    Raises:
        DataError: When the files are no splits, of several data sets, or not all there.
    """
    files = root.tables or root.all_tables
    found = [_tell(file, root.path) for file in files]
    homes = sorted({each.home for each in found})
    if len(homes) > 1:
        names = ", ".join(home.relative_to(root.path).as_posix() for home in homes)
        raise DataError(
            f"{str(root.path)!r} holds Parquet files in {names}; "
            "expected one data set; name one of these folders."
        )
    known = [each for each in found if each.name]
    if found and not known:
        raise DataError(
            f"{files[0].name} in {str(homes[0])!r} is of no known split; expected names like "
            "train-00000-of-00001.parquet and test-00000-of-00001.parquet, or folders train and test."
        )
    prefixes = sorted({each.prefix for each in known})
    if len(prefixes) > 1:
        names = ", ".join(" ".join(each) or "no name" for each in prefixes)
        raise DataError(
            f"{str(homes[0])!r} holds Parquet files of {names}; expected one data set; move the others away."
        )
    splits: dict[str, list[Path]] = {}
    places: dict[str, tuple[str, Path]] = {}
    for each in known:
        assert each.name is not None
        kind, place = each.name.kind, (each.name.word, each.file.parent)
        if places.setdefault(kind, place) != place:
            raise DataError(
                f"{splits[kind][0].relative_to(root.path)} and {each.file.relative_to(root.path)} of "
                f"{str(root.path)!r} can each be the {kind} split; expected one, so move the other away."
            )
        splits.setdefault(kind, []).append(each.file)
    for some in splits.values():
        _check_complete(some)
    return splits


def write_table(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV or Parquet, by the file's suffix; the file appears whole or not at all.

    Args:
        path: The file.
        rows: Values by column; one that a row lacks is empty.

    Raises:
        StorageError: When it cannot be written.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    with replacing(path) as temporary:
        if Path(path).suffix == ".csv":
            pacsv.write_csv(table, temporary)
        else:
            pq.write_table(table, temporary)


def _tell(file: Path, root: Path) -> _Found:
    """Read a file's name, or else by the word in front of its first hyphen, or else its folder's."""
    name = SplitName.read(_OF.sub("", file.stem)) or SplitName.read(file.stem.partition("-")[0])
    if name is not None or file.parent == root:
        prefix = name.affix if name and not name.first else ()
        return _Found(file, file.parent, prefix, name)
    name = SplitName.read(file.parent.name)
    if name is None or name.affix not in ((), ("partial",)):
        return _Found(file, file.parent, (), None)
    return _Found(file, file.parent.parent, (), name)


def _check_complete(files: Sequence[Path]) -> None:
    for file in files:
        if match := _OF.search(file.stem):
            pattern = f"{file.stem[: match.start()]}-*-of-{match[1]}*.parquet"
            present = len(list(file.parent.glob(pattern)))
            if present != int(match[1]):
                raise DataError(
                    f"{str(file.parent / pattern)!r} matches {present} files; expected all {int(match[1])}."
                )
