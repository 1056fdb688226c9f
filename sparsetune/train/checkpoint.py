"""The state of a training in one safetensors file: what it takes to go on as if never stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from sparsetune.errors import StorageError
from sparsetune.host import read_sealed, reason, sealed_bytes, shown, write_bytes
from sparsetune.train.history import Epoch, records_from

KEY = "sparsetune.training"
WRONG = (LookupError, ValueError, TypeError, AttributeError, RuntimeError, AssertionError)
"""What states raise that are not of the kind that a part expects."""
DATA, COUNT, DIGEST = "data", "train_count", "data_digest"
"""Settings that say which pictures these are; where there is a digest the name says nothing more."""


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


class Stateful(Protocol):
    """Whatever gives and takes its state: a model, an optimiser, a gradient scaler."""

    def state_dict(self) -> Any:
        """Return the state: tensors and plain values, nested."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Take such a state back."""


class Best:
    """A model's values after its best epoch so far, on the CPU; what is frozen is not among them."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.values: dict[str, Tensor] = {}

    def note(self) -> None:
        """Take the values as they are now."""
        self.values = {k: v.detach().to("cpu", copy=True) for k, v in self.net.state_dict().items()}

    def restore(self) -> None:
        """Put them back."""
        self.net.load_state_dict(self.values)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the values."""
        return self.values

    def load_state_dict(self, state: dict[str, Tensor], /) -> None:
        """Take values that :meth:`state_dict` gave."""
        self.values = state


class Average:
    """Moving averages of what a training moves, as timm's ``ModelEmaV3`` with warm-up keeps them.

    Args:
        values: Learned parameters and running statistics; counters among them are not averaged.
        decay: What an average keeps of itself in a step, once it has warmed up.
    """

    def __init__(self, values: Sequence[Tensor], decay: float) -> None:
        self.values, self.decay, self.steps = values, decay, 0
        self.means = [_fine(value).detach().clone() for value in values]
        self._own: list[Tensor] = []

    @torch.no_grad()
    def update(self) -> None:
        """Take a step's values in; the first ones are the averages at the start."""
        weight = max(1 - self.decay, (1 + self.steps) ** (-2 / 3))
        self.steps += 1
        for mean, value in zip(self.means, self.values, strict=True):
            if mean.is_floating_point():
                mean.lerp_(_fine(value), weight)
            else:
                mean.copy_(value)

    @torch.no_grad()
    def put(self) -> None:
        """Put the averages in the place of the values."""
        self._own = [value.detach().clone() for value in self.values]
        torch._foreach_copy_(list(self.values), self.means)

    @torch.no_grad()
    def back(self) -> None:
        """Put the values back that :meth:`put` took away."""
        torch._foreach_copy_(list(self.values), self._own)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages, and of how many steps they are."""
        return {"means": self.means, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take averages that :meth:`state_dict` gave."""
        self.steps = state["steps"]
        torch._foreach_copy_(self.means, state["means"])


def _fine(value: Tensor) -> Tensor:
    """A value in at least 32 bits, in which small changes add up."""
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value


def random_state() -> Tensor:
    """Return torch's random state, the CPU's and behind it the current GPU's, as bytes."""
    state = torch.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state()]) if torch.cuda.is_available() else state


def _set_random_state(state: Tensor) -> None:
    """Go back to a :func:`random_state`; a GPU's is dropped where there is none, and left where none was."""
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size])
    if len(state) > size and torch.cuda.is_available():
        torch.cuda.set_rng_state(state[size:])


def write_checkpoint(
    path: Path,
    config: dict[str, Any],
    position: Position,
    parts: Mapping[str, Stateful],
    states: Sequence[Tensor],
) -> None:
    """Write the parts' states, the random states and the position; the file appears whole or not at all.

    Args:
        path: The file.
        config: Settings that must be the same for the training to go on.
        position: Where the training stands.
        parts: Model, optimiser and all else that a step changes, by name.
        states: The :func:`random_state` of each process that trains.

    Raises:
        StorageError: When the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    state: dict[str, Any] = {"random": list(states)}
    state |= {name: part.state_dict() for name, part in parts.items()}
    value = {"config": config, "position": vars(position), "state": _pack(state, tensors)}
    write_bytes(path, sealed_bytes(tensors, {KEY: json.dumps(value)}, KEY))


def read_checkpoint(
    path: Path, config: dict[str, Any], parts: Mapping[str, Stateful], process: int = 0
) -> Position:
    """Put a training back where :func:`write_checkpoint` left it.

    Args:
        path: The file.
        config: The settings now.
        parts: As at the start of the training, by the same names.
        process: Which of several processes this is; one that was not there before keeps its random state.

    Returns:
        Where the training stands.

    Raises:
        StorageError: When the file is damaged or comes from a training with other settings or other data.
    """
    value, position, tensors = _read(path)
    before = value["config"]
    passed = DIGEST if before.get(DIGEST) is None else DATA
    differing = [name for name in config if name != passed and before.get(name) != config[name]]
    if differing:
        name = differing[0]
        what = f"with {name} = {shown(repr(before.get(name)))}, not {config[name]!r}"
        remedy = "resume with its settings"
        if DIGEST in differing and name in (COUNT, DIGEST):
            what = f"{what if name == COUNT else 'with other pictures or labels'}; its data has changed since"
            remedy = "bring that back"
        raise StorageError(f"{path} is from a training {what}; {remedy}, or choose another --out.")
    with _intact(path):
        state = _unpack(value["state"], tensors)
        for name, part in parts.items():
            if isinstance(part, torch.optim.Optimizer):
                _check_optimizer(part, state[name])
            part.load_state_dict(state[name])
        if process < len(state["random"]):
            _set_random_state(state["random"][process])
    return position


def _check_optimizer(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Refuse a state of other parameters: ``load_state_dict`` takes it, and the next step fails.

    Raises:
        ValueError: When it is one.
    """
    for group, saved in zip(optimizer.state_dict()["param_groups"], state["param_groups"], strict=True):
        if saved["params"] != group["params"]:
            raise ValueError("its optimiser is of other parameters")
        if wrong := [name for name, value in saved.items() if not _alike(value, group.get(name, value))]:
            raise ValueError(f"{wrong[0]} of its optimiser is {str(saved[wrong[0]])[:50]!r}")
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    for number, values in state["state"].items():
        count = parameters[number].numel()
        if any(
            (count % size if size else count)
            for value in values.values()
            if isinstance(value, Tensor)
            for size in value.shape
        ):
            raise ValueError(f"what its optimiser knows of parameter {number} is not of that one's shape")


def _alike(one: Any, other: Any) -> bool:
    """Whether two settings of an optimiser are of one kind."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_alike, one, other))
    numbers = (int, float)
    return type(one) is type(other) or (type(one) in numbers and type(other) in numbers)


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings that a checkpoint is of; nothing where there is none.

    Raises:
        StorageError: When the file is damaged.
    """
    settings: dict[str, Any] = _read(path)[0]["config"] if path.is_file() else {}
    return settings


def read_history(path: Path) -> list[Epoch]:
    """Return the record of each epoch that a checkpoint knows to be finished.

    Raises:
        StorageError: When the file is damaged.
    """
    return records_from(_read(path)[1].history)


def _read(path: Path) -> tuple[dict[str, Any], Position, dict[str, Tensor]]:
    with _intact(path):
        texts, tensors = read_sealed(path, KEY)
        value = json.loads(texts[KEY])
        position = Position(**value["position"])
        counts = (position.epoch, position.step, position.correct)
        if not isinstance(value["config"], dict) or not all(type(n) is int and n >= 0 for n in counts):
            raise ValueError("it does not say where the training stands")
        if len(records_from(position.history)) != position.epoch:
            raise ValueError("its history is not that of its epochs")
        return value, position, tensors


@contextmanager
def _intact(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file leads to into one error."""
    try:
        yield
    except (SafetensorError, OSError, *WRONG) as error:
        raise StorageError(
            f"{path} is not an intact checkpoint ({reason(error)}); remove it to start anew."
        ) from error


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Turn nested state into JSON values; its tensors are numbered and put aside."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"mapping": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, tuple):
        return {"tuple": [_pack(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_pack(item, tensors) for item in value]
    return value


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        if "tuple" in value:
            return tuple(_unpack(item, tensors) for item in value["tuple"])
        if "dtype" in value:
            if not isinstance(found := getattr(torch, value["dtype"]), torch.dtype):
                raise ValueError(f"{str(value['dtype'])[:50]!r} is no dtype")
            return found
        return {key: _unpack(item, tensors) for key, item in value["mapping"]}
    return value
