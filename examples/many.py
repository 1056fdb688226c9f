"""Three tasks and an ensemble of five over one backbone, against separate models that learn everything.

Run: python examples/many.py [--cifar FOLDER] [--json FILE]

FOLDER holds CIFAR-10 as Parquet files; without it the embedded digits are used.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

import sparsetune as st
from sparsetune.data import loader
from sparsetune.host import describe_machine

MODEL = {"name": "wrn28_4", "depth": 10, "width": 2}
SLICE, WHOLE = st.Learn(fraction=0.1), st.Learn(fraction=1.0)
MEMBERS = 5

ANIMALS = ["bird", "cat", "deer", "dog", "frog", "horse"]
MACHINES = ["airplane", "automobile", "ship", "truck"]
TASKS: dict[str, dict[str, dict[str, list[str]]]] = {
    "digits": {
        "digit": {each: [each] for each in "0123456789"},
        "parity": {"even": list("02468"), "odd": list("13579")},
        "size": {"up to four": list("01234"), "larger than four": list("56789")},
    },
    "cifar10": {
        "animals": {each: [each] for each in ANIMALS},
        "machines": {each: [each] for each in MACHINES},
        "kind": {"animal": ANIMALS, "machine": MACHINES},
    },
}


def train(data: st.Data, learn: st.Learn, epochs: int, seed: int, path: Path) -> Path:
    """Train one delta over the backbone of seed 0."""
    net = st.create(**MODEL, num_classes=len(data.classes))
    st.adapt_(net, learn)
    st.fit(net, data, st.FitConfig(epochs=epochs, lr=0.05, seed=seed))
    st.save(net, path, classes=data.classes, preprocessing=data.preprocessing)
    return path


def accuracy(predict: Callable[[Tensor], Tensor], data: st.Data) -> float:
    """Return the share of test pictures that ``predict`` is right about."""
    batches = loader(data.test, data.preprocessing, batch_size=500)
    return sum(int((predict(x).argmax(1) == y).sum()) for x, y in batches) / len(data.test)


def measure(data: dict[str, st.Data], learn: st.Learn, epochs: int, folder: Path) -> dict[str, Any]:
    """Train everything with one learn spec; return (bytes, accuracy) of each task, member and ensemble."""
    first = next(iter(data))
    deltas = {name: train(task, learn, epochs, 0, folder / name) for name, task in data.items()}
    members = {f"{first}, seed {seed}": folder / f"{first}-{seed}" for seed in range(1, MEMBERS)}
    for seed, path in enumerate(members.values(), 1):
        train(data[first], learn, epochs, seed, path)
    size = {name: path.stat().st_size for name, path in (deltas | members).items()}
    ensemble = st.Ensemble.load([deltas[first], *members.values()])
    together = size[first] + sum(size[name] for name in members)

    tasks = st.Tasks.load(deltas | members)
    found = {name: (size[name], accuracy(partial(tasks, name), data.get(name, data[first]))) for name in size}
    found[f"ensemble of {len(ensemble)}"] = together, accuracy(ensemble.probabilities, data[first])
    found["all"] = sum(size.values()), None
    return found


def main(source: str | None = None, epochs: int = 2, limit: int | None = None) -> dict[str, Any]:
    """Print the table, and return it; ``limit`` keeps so many pictures for training, and half for tests."""
    known = "cifar10" if source else "digits"
    whole = st.open_data(source or known, train_limit=limit, test_limit=limit and limit // 2)
    data = {name: whole.regroup(f"{known}-{name}", groups) for name, groups in TASKS[known].items()}
    with tempfile.TemporaryDirectory() as folder:
        slices, full = (
            measure(data, learn, epochs, Path(tempfile.mkdtemp(dir=folder))) for learn in (SLICE, WHOLE)
        )

    print(f"{'':20}{'bytes':>12}{'of full':>10}{'accuracy':>10}{'full':>8}")
    rows = []
    for name, (size, right) in slices.items():
        row = {"name": name, "bytes": size, "full_bytes": full[name][0], "ratio": size / full[name][0]}
        rows.append(row | {"accuracy": right, "full_accuracy": full[name][1]})
        shown = "" if right is None else f"{right:>10.1%}{full[name][1]:>8.1%}"
        print(f"{name:20}{size:>12,}{row['ratio']:>10.1%}{shown}")
    settings = {"model": MODEL, "learn": SLICE.to_json(), "epochs": epochs}
    pictures = {"data": known, "train": len(whole.train or ()), "test": len(whole.test)}
    return settings | pictures | describe_machine() | {"rows": rows}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cifar", metavar="FOLDER", help="CIFAR-10 as Parquet files")
    parser.add_argument("--epochs", type=int, default=2, help="for each training")
    parser.add_argument("--limit", type=int, help="training pictures to keep; half as many for tests")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table there")
    given = parser.parse_args()
    table = main(given.cifar, given.epochs, given.limit)
    if given.json:
        given.json.write_text(json.dumps(table, indent=2) + "\n")
