"""The processes of a training: this one alone, or several that a launcher such as ``torchrun`` started."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from torch import Tensor

from sparsetune.errors import ConfigError
from sparsetune.host import pick_device

SHARED = (PartialState, AcceleratorState, GradientState)
"""What accelerate keeps for the whole process."""
PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
"""One device a process and the whole model on each."""


class Processes:
    """Who computes: this process' device, its share of each batch, and how all of them agree.

    Args:
        accelerator: Of accelerate, as :func:`processes` makes it.
        device: Where this process computes.
    """

    def __init__(self, accelerator: Accelerator, device: torch.device) -> None:
        self.accelerator, self.device = accelerator, device
        self.index: int = accelerator.process_index
        self.count: int = accelerator.num_processes

    @property
    def share(self) -> tuple[int, int]:
        """This process' index and the number of processes: which rows of a batch are its own."""
        return self.index, self.count

    @property
    def is_main(self) -> bool:
        """Whether this process decides, and writes the files."""
        return self.index == 0

    def total(self, values: list[float]) -> list[float]:
        """Return the sum of each value over the processes, so that all go on with the same."""
        if self.count == 1:
            return values
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        found: list[float] = self.accelerator.reduce(sums, "sum").tolist()
        return found

    def all_of(self, value: Tensor) -> list[Tensor]:
        """Return the ``value`` of each process, in order; they may differ in shape."""
        return [value] if self.count == 1 else list(gather_object([value]))

    def from_main(self, value: Any) -> Any:
        """Return the main process' ``value``; the others wait for it."""
        return value if self.count == 1 else broadcast_object_list([value])[0]

    def wait(self) -> None:
        """Return once every process has come here."""
        self.accelerator.wait_for_everyone()

    def share_main(self, tensors: list[Tensor]) -> None:
        """Overwrite ``tensors`` by the main process' values."""
        if self.count > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, 0)


def _leave() -> None:
    """Take apart the group of processes: its threads can abort an interpreter that ends (torch PR 179291)."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def processes(device: str | None, precision: str | None) -> Iterator[Processes]:
    """Join the processes of a training for as long as the context lasts.

    accelerate keeps its settings for the whole process; a user's own are set aside and put back.

    Args:
        device: As for :func:`pick_device`; of several processes each takes the one of its number.
        precision: Mixed precision, ``bf16`` or ``fp16``; ``None`` for full.

    Raises:
        ConfigError: When there is no such device, it cannot compute so, or the processes were started to
            split the model.
    """
    picked = pick_device(device)
    if precision == "fp16" and picked.type == "cpu":
        raise ConfigError("amp 'fp16' needs a GPU; choose bf16, or leave it out.")
    if picked.index is not None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ConfigError(f"device '{device}' is one for all processes; say {picked.type}, or leave it out.")
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    kept = [(state, dict(state._shared_state)) for state in SHARED]
    for state in SHARED:
        state._shared_state.clear()
    try:
        accelerator = Accelerator(
            cpu=picked.type == "cpu", mixed_precision=precision or "no", device_placement=False
        )
        if accelerator.distributed_type not in PLAIN:
            raise ConfigError(
                f"accelerate is set up for {accelerator.distributed_type.value}, but fit keeps the whole "
                "model in each process; launch it with torchrun, or with `accelerate launch --multi_gpu`."
            )
        yield Processes(accelerator, picked if accelerator.num_processes == 1 else accelerator.device)
        if alone and accelerator.num_processes > 1:
            atexit.register(_leave)
    finally:
        for state, values in kept:
            state._shared_state.clear()
            state._shared_state.update(values)
