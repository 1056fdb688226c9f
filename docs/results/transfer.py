"""Measures ``fit`` over published weights with no other flag, beside the alternatives; it can be stopped.

Five small tasks of real pictures, EfficientNet-Lite0 with ImageNet weights at its own 224 x 224:

- ``cifar10``: 200 training pictures of CIFAR-10 (its copy as JPEG), 1,000 test pictures;
- ``tiny20``: 300 of 20 classes of Tiny-ImageNet, 1,000;
- ``digits``: 200 of scikit-learn's digits, 359;
- ``kinds``: 250 of Tiny-ImageNet in five coarse groups, by WordNet's numbers, 1,000;
- ``photos``: 240 of six classes of Tiny-ImageNet, each made a JPEG of another size and shape, 300.

Ours are commands: with no flag, which is ``--fraction 0.1``, and with ``--budget 60KB``. Beside them
stand logistic regression on the frozen features (scaled; its C by five-fold cross-validation of the
training pictures), and full fine-tuning with the same recipe in every other setting, frozen statistics
among them, but 16 epochs where ``fit`` gives a part 22 and a vector 28; its rate is the best of three on
validation pictures with seed 0. A row holds one training: its accuracy on the test pictures, which nothing
else looks at, and the seconds that it took (of one that was stopped: its last part), its own start and the
test included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import sparsetune as st
from sparsetune.data import Data, Feed, Split
from sparsetune.host import describe_machine
from sparsetune.train import augmented, parted, pictures_for, predict_logits, recipe_for, train

MODEL = "tf_efficientnet_lite0"
OURS = {"no flag": [], "60 KB": ["--budget", "60KB"]}
RATES = (3e-4, 1e-3, 1e-4)
TASKS = ("photos", "tiny20", "cifar10", "digits", "kinds")
SEEDS = (0, 1, 2)
Act = Callable[[], dict[str, Any]]
GROUPS = {"n01": "birds, fish and reptiles", "n02": "mammals and insects", "n07": "food"}
LATER = {"n09": "places", "n03": "things"}
"""First letters of WordNet's numbers -> what they are."""


def cut(split: Split, classes: dict[str, list[int]], each: int, chance: np.random.Generator) -> Iterator[Any]:
    """Yield name and picture of so many of each class, drawn evenly of the old classes it is made of."""
    labels = split.labels.numpy()
    for name, numbers in classes.items():
        share = -(-each // len(numbers))
        found = [i for n in numbers for i in chance.permutation(np.flatnonzero(labels == n))[:share]]
        for place, index in enumerate(chance.permutation(found)[:each]):
            yield f"{name}/{place:03d}", split[int(index)][0]


def shaped(picture: Image.Image, chance: np.random.Generator) -> Image.Image:
    """Return the picture as a photo of another size and shape."""
    width = int(chance.integers(120, 420))
    height = int(width * chance.uniform(0.6, 1.6))
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def make(root: Path, cifar10: Path, tiny: Path) -> None:
    """Write the tasks as folders of pictures."""
    chance = np.random.default_rng(0)
    thumbnails, objects, digits = st.open_data(str(tiny)), st.open_data(str(cifar10)), st.open_data("digits")
    drawn = [int(n) for n in chance.permutation(200)]

    def named(data: Data, numbers: list[int]) -> dict[str, list[int]]:
        return {data.classes[n]: [n] for n in numbers}

    def of(letters: str) -> list[int]:
        return [n for n, name in enumerate(thumbnails.classes) if name.startswith(letters)]

    kinds = {what: of(letters) for letters, what in (GROUPS | LATER).items()}
    tasks: dict[str, tuple[Data, dict[str, list[int]], int, int]] = {
        "cifar10": (objects, named(objects, [*range(10)]), 20, 100),
        "tiny20": (thumbnails, named(thumbnails, drawn[:20]), 15, 50),
        "digits": (digits, named(digits, [*range(10)]), 20, 40),
        "kinds": (thumbnails, kinds, 50, 200),
        "photos": (thumbnails, named(thumbnails, drawn[20:26]), 40, 50),
    }
    for task, (data, classes, training, test) in tasks.items():
        if (root / task).is_dir():
            continue
        for split, pictures, each in (("train", data.train, training), ("test", data.judged, test)):
            assert pictures is not None, f"{task} has no pictures to judge by"
            for name, picture in cut(pictures, classes, each, chance):
                path = root / "new" / split / f"{name}.{'jpg' if task == 'photos' else 'png'}"
                path.parent.mkdir(parents=True, exist_ok=True)
                (shaped(picture, chance) if task == "photos" else picture).save(path)
        (root / "new").rename(root / task)


def command(folder: Path, weights: Path, seed: int, flags: list[str], out: Path) -> dict[str, Any]:
    """Run ``sparsetune fit`` and return what it came to."""
    words = ["fit", "--model", MODEL, "--init-from", str(weights), "--data", str(folder)]
    words += ["--seed", str(seed), "--out", str(out), "--resume", "--json", *flags]
    done = subprocess.run([sys.executable, "-m", "sparsetune", *words], capture_output=True, check=True)
    said = json.loads(done.stdout)
    learned = {name: said[name] for name in ("learned_parameters", "delta_bytes")}
    chosen = {"chosen": said["choice"]["name"]} if "choice" in said else {}
    epochs = {"epochs": len(said["epochs"]), "training_seconds": sum(e["seconds"] for e in said["epochs"])}
    return {"top1": said["result"]["test_top1"], **learned, **chosen, **epochs}


def opened(folder: Path, weights: Path, seed: int) -> tuple[torch.nn.Module, Data]:
    """Return the plain model and the pictures as it takes them."""
    data = st.open_data(str(folder))
    net = st.create(MODEL, num_classes=len(data.classes), checkpoint=weights, seed=seed)
    return net, pictures_for(net, data)


def full(folder: Path, weights: Path, seed: int, lr: float) -> dict[str, Any]:
    """Train everything, and return what it came to on validation and on the test."""
    net, data = opened(folder, weights, seed)
    learn = st.Learn(fraction=1.0)
    config = st.FitConfig(seed=seed, lr=lr, channels_last=False)
    config = config.following(recipe_for(net, data, config, learn))
    data = augmented(parted(data, config), config)
    with torch.no_grad():
        net.get_classifier().weight.zero_()
        net.get_classifier().bias.zero_()
    net.train()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    last = train(net, data, config, {})[-1]
    found = {"top1": last.test_top1, "validation_loss": last.validation_loss}
    return {**found, "validation_top1": last.validation_top1, "epochs": config.epochs}


def regression(folder: Path, weights: Path) -> dict[str, Any]:
    """Learn a logistic regression of the frozen features, and return its accuracy on the test."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    net, data = opened(folder, weights, 0)
    net.reset_classifier(0)
    sides = []
    for split in (data.train, data.test):
        feed = Feed(split, data.preprocessing, torch.device("cpu"), batch_size=50, channels_last=True)
        features, labels = predict_logits(net.eval(), feed.epoch())
        sides.append((features.numpy(), labels.numpy()))
    theirs = LogisticRegressionCV(Cs=np.logspace(-4, 1, 11), cv=5, max_iter=2000, use_legacy_attributes=False)
    fitted = make_pipeline(StandardScaler(), theirs).fit(*sides[0])
    return {"top1": float(fitted.score(*sides[1]))}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name in ("weights", "cifar10", "tiny-imagenet", "work", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS, help="processes may share --out")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    make(given.work, given.cifar10, given.tiny_imagenet)
    lines = given.out.read_text().splitlines() if given.out.is_file() else []
    rows = {(row["task"], row["method"], row["seed"], row.get("lr")): row for row in map(json.loads, lines)}

    def measure(task: str, method: str, seed: int, lr: float | None, act: Act) -> None:
        if (task, method, seed, lr) in rows:
            return
        began = time.monotonic()
        row = {"task": task, "method": method, "seed": seed, **({} if lr is None else {"lr": lr}), **act()}
        row |= {"seconds": time.monotonic() - began}
        rows[task, method, seed, lr] = row
        with given.out.open("a") as file:
            file.write(json.dumps({**row, "run": describe_machine()}) + "\n")
        print(json.dumps(row), flush=True)

    def ours(task: str, method: str, seed: int) -> None:
        out = given.work / "runs" / f"{task}-{method.replace(' ', '-')}-{seed}"
        flags, folder = OURS[method], given.work / task
        measure(task, method, seed, None, lambda: command(folder, given.weights, seed, flags, out))

    def whole(task: str, seed: int, lr: float) -> None:
        measure(task, "full", seed, lr, lambda: full(given.work / task, given.weights, seed, lr))

    for seed in given.seeds:
        for task in given.tasks:
            theirs = partial(regression, given.work / task, given.weights)
            measure(task, "logistic regression", 0, None, theirs)
            for method in OURS:
                ours(task, method, seed)
        for lr in RATES:
            for task in given.tasks:
                whole(task, 0, lr)
        for task in given.tasks:
            best = min(RATES, key=lambda lr: rows[task, "full", 0, lr]["validation_loss"])
            whole(task, seed, best)


if __name__ == "__main__":
    main()
