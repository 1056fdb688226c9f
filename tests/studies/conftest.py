from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inline import Inline

from sparsetune.studies.jobs import DEFAULTS, Job, job
from sparsetune.studies.store import Place, Row

SMALL = {
    **DEFAULTS,
    "model": "wrn28_4",
    "model_kwargs": {"depth": 10, "width": 1},
    "data": "digits",
    "train_limit": 100,
    "test_limit": 50,
    "epochs": 1,
    "batch_size": 32,
    "fraction": 0.25,
}
"""A training that takes a blink: WRN-10-1 on a hundred digits."""

ABOUT = {
    "date": "2026-01-01",
    "processor": "a processor",
    "threads": 1,
    "accelerator": None,
    "versions": {"torch": "2"},
    "commit": "abc",
    "data": {"name": "digits", "lossy": False},
}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, {})


@pytest.fixture
def inline(place: Place) -> Inline:
    return Inline(place)


@pytest.fixture(scope="session")
def small() -> Callable[..., Job]:
    """Make a small job; ``kind`` and all else may differ."""
    return lambda **differing: job({**SMALL, **differing})


@pytest.fixture(scope="session")
def row() -> Callable[..., Row]:
    """Make a result by hand."""

    def make(job: Job, about: dict[str, Any] | None = None, **result: Any) -> Row:
        return Row(job.id, job.settings, result, {**ABOUT, **(about or {})})

    return make
