"""What the scripts here that time whole training steps share."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsetune.host import describe_machine


def pictures(batch_size: int, size: int) -> Tensor:
    """Return random pictures, always the same."""
    return torch.randn(batch_size, 3, size, size, generator=torch.Generator().manual_seed(0))


def step_of(net: nn.Module, model: Callable[..., Tensor], x: Tensor) -> Callable[[], None]:
    """Return a whole training step: forward, loss, backward, SGD with momentum and decay.

    Args:
        net: Has the parameters.
        model: What is called: ``net``, or another form of it.
        x: A batch of pictures.
    """
    net.train()
    y = torch.randint(10, (len(x),), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def seconds(action: Callable[[], None]) -> float:
    """Time one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def add_options(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Add the options that all have."""
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)


def write_rows(rows: list[dict[str, Any]], out: Path | None) -> None:
    """Print the rows with the machine that they are of, and write them if there is a file to write."""
    text = json.dumps({**describe_machine(), "rows": rows}, indent=2)
    print(text)
    if out:
        out.write_text(text + "\n")
