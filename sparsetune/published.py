"""Published weights: ask for them without long waits, and say how to fetch those that cannot be had."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from huggingface_hub import constants
from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""Environment variable that torch.load obeys."""
SECONDS = 5.0
"""How long the Hub may take to answer at all."""


@contextmanager
def hub_if_reachable() -> Iterator[None]:
    """Let the Hub's client look only into its cache while the Hub cannot be reached.

    Else it asks again and again, for most of a minute, before it does so.
    """
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _reachable()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def read_as_data() -> Iterator[None]:
    """Let torch take nothing but tensors from a checkpoint, whatever the library that reads it asks for."""
    before = os.environ.get(FORCED)
    os.environ[FORCED] = "1"
    try:
        yield
    finally:
        del os.environ[FORCED]
        if before is not None:
            os.environ[FORCED] = before


def how_to_fetch(repository: str | None, revision: str | None, url: str | None) -> str:
    """Return a remedy: what to fetch where there is a network, and where to put it.

    Args:
        repository: On the Hub, if the weights are there.
        revision: Of the repository; ``None`` for the latest.
        url: Of a file, if they are at no repository.
    """
    if repository:
        pin = f" --revision {revision}" if revision else ""
        return f"run `hf download {repository}{pin}` where there is a network and bring its cache (HF_HOME)"
    if url:
        return f"download {url} where there is a network and put it into {torch.hub.get_dir()}/checkpoints"
    return "name a model that has some, or leave pretrained out"


def _reachable() -> bool:
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # whatever its HTTP library raises, in any version
        return False
    return True
