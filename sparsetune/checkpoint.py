"""The state of a training in one safetensors file: what it takes to go on as if never stopped."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsetune.errors import StorageError
from sparsetune.files import write_bytes

KEY = "sparsetune.training"


@dataclass
class Position:
    """Where a training stands.

    Attributes:
        epoch: Epochs finished.
        step: Steps taken in the epoch after those.
        loss: Sum of the training loss over the pictures of those steps.
        correct: How many of them were classified rightly.
        history: A record for each finished epoch.
    """

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    correct: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


def write_checkpoint(
    path: Path, config: dict[str, Any], position: Position, net: nn.Module, optimizer: Optimizer
) -> None:
    """Write learned values, optimiser state, random state and position; the file appears whole or not at all.

    Args:
        path: The file.
        config: Settings that must be the same for the training to go on.
        position: Where the training stands.
        net: The adapted model.
        optimizer: Its optimiser.

    Raises:
        StorageError: When the file cannot be written.
    """
    tensors: dict[str, Tensor] = {"rng.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    tensors |= {f"net.{name}": value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    numbers = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"opt.{index}.{name}"] = value.detach().cpu().contiguous()
            else:
                numbers[f"{index}.{name}"] = value
    value = {"config": config, "position": vars(position), "numbers": numbers}
    write_bytes(path, to_bytes(tensors, metadata={KEY: json.dumps(value)}))


def read_checkpoint(path: Path, config: dict[str, Any], net: nn.Module, optimizer: Optimizer) -> Position:
    """Put a training back where :func:`write_checkpoint` left it.

    Args:
        path: The file.
        config: The settings now.
        net: The adapted model, as at the start.
        optimizer: A fresh optimiser for it.

    Returns:
        Where the training stands.

    Raises:
        StorageError: When the file is damaged or comes from a training with other settings.
    """
    try:
        with safe_open(path, framework="pt") as file:
            value = json.loads((file.metadata() or {})[KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise StorageError(
            f"{path} is not an intact checkpoint ({error}); remove it to start anew."
        ) from error
    differing = [name for name in config if value["config"].get(name) != config[name]]
    if differing:
        name = differing[0]
        raise StorageError(
            f"{path} is from a training with {name} = {value['config'].get(name)!r}, not {config[name]!r}; "
            "resume with its settings, or choose another --out."
        )
    net.load_state_dict({name[4:]: tensor for name, tensor in tensors.items() if name.startswith("net.")})
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        if name.startswith("opt."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    for name, number in value["numbers"].items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = number
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["rng.cpu"])
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    return Position(**value["position"])
