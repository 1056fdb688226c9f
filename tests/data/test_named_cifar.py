from __future__ import annotations

import pickle
import urllib.request
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision import datasets

from sparsetune.data.data import open_data
from sparsetune.data.preprocessing import Augment
from sparsetune.errors import DataError

LABEL_KEY = {"cifar10": "labels", "cifar100": "fine_labels"}
KIND = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}


def write(file: Path, content: Any) -> str:
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(pickle.dumps(content))
    return md5(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_reads_the_authors_archive(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small archive in the authors' format; the listing of checksums names its files."""
    kind, rng = KIND[name], np.random.default_rng(0)
    home = tmp_path / kind.base_folder
    planes = {part: rng.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8) for part in ("a", "b", "t")}
    sums = {
        part: write(home / part, {"data": pixels.reshape(4, 3072), LABEL_KEY[name]: [0, 1, 2, 1]})
        for part, pixels in planes.items()
    }
    names = ["cat", "dog", "ox"]
    monkeypatch.setattr(kind, "train_list", [["a", sums["a"]], ["b", sums["b"]]])
    monkeypatch.setattr(kind, "test_list", [["t", sums["t"]]])
    monkeypatch.setattr(kind, "meta", {"filename": "m", "key": "k", "md5": write(home / "m", {"k": names})})
    monkeypatch.setenv("SPARSETUNE_DATA", str(tmp_path))
    data = open_data(name)
    assert (data.name, data.classes, len(data.train), len(data.test)) == (name, ("cat", "dog", "ox"), 8, 4)
    assert data.augment == Augment(pad=4, flip=True)
    assert data.preprocessing.mean == (0.4914, 0.4822, 0.4465)
    image, label = data.train[6]
    assert label == 2
    np.testing.assert_array_equal(np.asarray(image), planes["b"][2].transpose(1, 2, 0))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_no_network(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "_opener", None)
    for scheme in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("SPARSETUNE_DATA", str(tmp_path))
    with pytest.raises(DataError) as error:
        open_data(name)
    assert str(error.value).startswith(f"{name} is not in {str(tmp_path)!r} and cannot be downloaded (")
    assert str(error.value).endswith(f"connect to the network, or put {KIND[name].filename} there.")


def test_a_cache_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("SPARSETUNE_DATA", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"^cifar10 is not in .* and cannot be downloaded"):
        open_data("cifar10")
