"""Tests run in several processes, so each one, and each that it starts, takes one thread."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # in nets as small as these, threads wait for each other

import loopback
import pytest
import torch
from huggingface_hub import constants
from torch import nn

import sparsetune as st

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits() -> st.Data:
    """Few enough digits that an epoch of ``tiny`` takes a blink: five steps of 64, the last one short."""
    return st.open_data("digits", train_limit=300, test_limit=100)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., nn.Module]:
    """Make a WRN-10-1 (78 thousand values) that learns a quarter of each layer."""

    def make(learn: st.Learn | None = None, **kwargs: Any) -> nn.Module:
        plain = st.create("wrn28_4", **{"depth": 10, "width": 1, "num_classes": 10, **kwargs})
        return st.adapt_(plain, learn or st.Learn(fraction=0.25))

    return make


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[loopback.Hub]:
    """A Hub on loopback; the client knows no other, has its token, and an empty cache."""
    home, endpoint = constants.HF_HOME, constants.ENDPOINT
    with loopback.running() as running:
        for name, value in list(vars(constants).items()):
            if isinstance(value, str) and name.isupper():
                moved = value.replace(endpoint, running.url)
                monkeypatch.setattr(constants, name, moved.replace(home, str(tmp_path / "hf")))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", loopback.TOKEN)
        yield running
