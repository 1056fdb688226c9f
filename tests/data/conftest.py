from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits


class Maker:
    """Writes small data sets of real digits in every layout that open_data reads."""

    def __init__(self) -> None:
        self.pixels, self.labels = load_digits(return_X_y=True)

    def picture(self, index: int, side: int = 32, mode: str = "RGB") -> Image.Image:
        grey = Image.fromarray((self.pixels[index].reshape(8, 8) * 15.9375).astype("uint8"))
        return grey.resize((side, side)).convert(mode)

    def encoded(self, index: int, kind: str = "PNG", side: int = 32, mode: str = "RGB") -> bytes:
        out = io.BytesIO()
        self.picture(index, side, mode).save(out, kind)
        return out.getvalue()

    def parquet(
        self,
        file: Path,
        pictures: Sequence[bytes],
        labels: Sequence[int],
        *,
        names: Sequence[str] | None = None,
        hub: bool = False,
        columns: tuple[str, str] = ("image", "label"),
        row_group: int = 3,
    ) -> Path:
        image = pa.array([{"bytes": b, "path": f"{i}.png"} for i, b in enumerate(pictures)], IMAGE_TYPE)
        table = pa.table({columns[0]: image, columns[1]: pa.array(labels, pa.int64())})
        if names is not None and hub:
            features = {columns[1]: {"names": list(names), "_type": "ClassLabel"}}
            metadata = {"huggingface": json.dumps({"info": {"features": features}})}
            table = table.replace_schema_metadata(metadata)
        elif names is not None:
            table = table.replace_schema_metadata({"label_names": json.dumps(list(names))})
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, file, row_group_size=row_group)
        return file

    def digits(self, folder: Path, train: int = 12, test: int = 6, **options: object) -> Path:
        """Write a folder with one Parquet file a split; labels are the digits' own."""
        for name, first, count in (("train", 0, train), ("test", train, test)):
            rows = range(first, first + count)
            self.parquet(
                folder / f"{name}-00000-of-00001.parquet",
                [self.encoded(i) for i in rows],
                [int(self.labels[i]) for i in rows],
                **{"names": "0123456789", **options},
            )
        return folder

    def tree(self, folder: Path, counts: dict[str, int], kind: str = "jpg", side: int = 32) -> Path:
        """Write one sub-folder a class, with so many pictures of the digit that its position says."""
        for number, (name, count) in enumerate(counts.items()):
            (folder / name).mkdir(parents=True)
            rows = [i for i, label in enumerate(self.labels) if label == number][:count]
            for i in rows:
                self.picture(i, side).save(folder / name / f"{i:04}.{kind}")
        return folder


IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(scope="session")
def make() -> Maker:
    return Maker()
