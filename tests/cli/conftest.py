from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inline import Inline
from PIL import Image
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from sparsetune.cli import app

SHORT = "fit --model test_resnet --fraction 0.25 --train-limit 200 --test-limit 50 --epochs 2 --lr 0.05"


@dataclass(frozen=True)
class Result:
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def call(*words: str | Path, code: int = 0) -> Result:
    """Run the command line in this process; the first argument is split into words.

    Any exception but its own exit fails.
    """
    split = [*str(words[0]).split(), *map(str, words[1:])] if words else []
    result = CliRunner().invoke(app, split)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    assert "\x1b" not in result.output
    return Result(result.stdout, result.stderr)


def refuse(*words: str | Path, code: int = 2) -> str:
    """Run the command line; return its one sentence of complaint, without ``error:``."""
    result = call(*words, code=code)
    assert result.out == ""
    lines = [line for line in result.err.splitlines() if not line.startswith("learning ")]
    assert len(lines) == 1, result.err
    assert lines[0].startswith("error: ")
    assert lines[0][-1] in ".?"
    return lines[0].removeprefix("error: ")


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def sparsetune() -> Callable[..., Result]:
    return call


@pytest.fixture(scope="session")
def refused() -> Callable[..., str]:
    return refuse


@pytest.fixture(scope="session")
def deltas(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two deltas over one backbone, trained on digits with different seeds."""
    folder = tmp_path_factory.mktemp("deltas")
    for seed in "01":
        call(SHORT, "--seed", seed, "--out", folder / seed)
    return [folder / seed / "delta.safetensors" for seed in "01"]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageFolder tree of two classes, JPEG and PNG; its name and those of its pictures hold spaces."""
    folder = tmp_path_factory.mktemp("p") / "my [red] pictures"
    digits = load_digits()
    for label, kind in ((3, "jpg"), (4, "png")):
        (folder / f"class {label}").mkdir(parents=True)
        for number, index in enumerate(np.flatnonzero(digits.target == label)[:20]):
            grey = Image.fromarray((digits.images[index] * 15.9).astype("uint8"))
            grey.resize((16, 16)).convert("RGB").save(folder / f"class {label}" / f"no {number}.{kind}")
    return folder


@pytest.fixture(scope="session")
def in_process() -> Callable[[], AbstractContextManager[None]]:
    """While the block lasts, studies do their jobs in this process, and none has to import torch."""

    @contextmanager
    def doing() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sparsetune.cli.batch.Processes", lambda _, place: Inline(place))
            yield

    return doing
