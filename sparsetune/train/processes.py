"""The processes of a training: this one alone, or several that a launcher such as ``torchrun`` started."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from torch import Tensor

from sparsetune.errors import ConfigError
from sparsetune.host import pick_device, reason

SHARED = (PartialState, AcceleratorState, GradientState)
"""What accelerate keeps for the whole process."""
PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
"""One device a process and the whole model on each."""
PROJECT = "sparsetune"
"""What a library that is told a training's numbers calls it."""


def _places(folder: Path) -> dict[str, str]:
    """Return what such libraries are told by the environment where a user says nothing else: to stay here."""
    folder = folder.absolute()
    return {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(folder),
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        "MLFLOW_TRACKING_URI": (folder / "mlruns").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TRACKIO_DIR": str(folder / "trackio"),
        "GRADIO_ANALYTICS_ENABLED": "False",
    }


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

    @contextmanager
    def logging(self, settings: Mapping[str, Any]) -> Iterator[None]:
        """Tell the libraries that the processes were made with of a training, for as long as it lasts.

        They stay on this machine and write into the folder, unless their own environment variables say
        otherwise; what they print goes to stderr.

        Args:
            settings: Plain JSON values.

        Raises:
            ConfigError: When one cannot start.
        """
        names = self.accelerator.log_with
        if not names or not self.is_main:
            yield
            return
        simple = (bool, int, float, str, type(None))
        told = {name: v if isinstance(v, simple) else str(v) for name, v in settings.items()}
        with _environment(_places(Path(self.accelerator.project_dir))):
            try:
                with redirect_stdout(sys.stderr):
                    self.accelerator.init_trackers(PROJECT, told)
            except Exception as error:  # anything, for they are other people's
                raise ConfigError(
                    f"log {', '.join(map(str, names))} cannot start ({reason(error)}); leave it out."
                ) from error
            try:
                yield
            finally:
                with redirect_stdout(sys.stderr):
                    for tracker in self.accelerator.trackers:
                        tracker.finish()

    def log(self, epoch: int, numbers: Mapping[str, Any]) -> None:
        """Tell them the numbers of an epoch."""
        if self.accelerator.trackers:
            self.accelerator.log(dict(numbers), step=epoch)

    def share_main(self, tensors: list[Tensor]) -> None:
        """Overwrite ``tensors`` by the main process' values."""
        if self.count > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, 0)


def _leave() -> None:
    """Take apart the group of processes: its threads can abort an interpreter that ends (torch PR 179291)."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Interrupts:
    """Ctrl-C and SIGTERM, held back until a step is whole and saved; a second one is not held back.

    Where the process has no handler of its own that would raise, or in another thread than the main one,
    nothing is held back.
    """

    def __init__(self) -> None:
        self.pending = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if current_thread() is main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if callable(before := signal.getsignal(number)):
                    self._before[number] = before
                    signal.signal(number, self._note)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        if self.pending and kind is None:
            self._before[self.pending](self.pending, None)

    def _note(self, number: int, frame: Any) -> None:
        if self.pending:
            self._before[number](number, frame)
        self.pending = number


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that are not set, for as long as the context lasts."""
    new = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


@contextmanager
def processes(
    device: str | None, precision: str | None, log: Sequence[str] = (), folder: Path | None = None
) -> Iterator[Processes]:
    """Join the processes of a training for as long as the context lasts.

    accelerate keeps its settings for the whole process; a user's own are set aside and put back.

    Args:
        device: As for :func:`pick_device`; of several processes each takes the one of its number.
        precision: Mixed precision, ``bf16`` or ``fp16``; ``None`` for full.
        log: Libraries that :meth:`Processes.logging` tells of the training.
        folder: Where they write; ``runs`` if left out.

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
            cpu=picked.type == "cpu",
            mixed_precision=precision or "no",
            device_placement=False,
            log_with=[*dict.fromkeys(log)] or None,
            project_dir=folder or "runs",
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
