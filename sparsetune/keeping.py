"""What it takes to keep what was learned: its file, loading it again, and switching from task to task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from sparsetune.backbone import origin_of
from sparsetune.lowrank import adapter_bytes, switching
from sparsetune.saving import load, save
from sparsetune.tasks import Tasks
from sparsetune.timing import take_turns

SWITCHES = 20
"""Switches in a counted round: one is much quicker than whatever else is timed."""


def keep(models: Mapping[str, nn.Module], device: str, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Save the contestants' models, then time loading them and switching between two tasks.

    Full training's file is a checkpoint by ``torch.save``, and loading it ``torch.load`` alone, without
    building a model. Ours is a delta, and :func:`sparsetune.load` builds the model, its backbone and the
    fingerprint as well. Both end on the CPU.

    Args:
        models: The contestants' models by name; a second task is added to LoRA's.
        device: Where they are.
        rounds: Counted rounds.

    Returns:
        Bytes by ``(name, "file")``; milliseconds by ``(name, "load")`` and ``(name, "switch")``, for those
        that have such. Ours has none for a model that ``create`` did not make.
    """
    sizes: dict[tuple[str, str], list[float]] = {}
    loads: dict[tuple[str, str], Callable[[], object]] = {}
    switches: dict[tuple[str, str], Callable[[], object]] = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        whole, delta = folder / "full.pt", folder / "ours.safetensors"
        torch.save({key: value.cpu() for key, value in models["full"].state_dict().items()}, whole)
        sizes["full", "file"] = [whole.stat().st_size]
        loads["full", "load"] = lambda: torch.load(whole, weights_only=True)
        if origin_of(models["ours"]):
            save(models["ours"], delta)
            sizes["ours", "file"] = [delta.stat().st_size]
            loads["ours", "load"] = lambda: load(delta, allow_network=True)
            switches["ours", "switch"] = _switching(delta, device)
        if "lora" in models:
            sizes["lora", "file"] = [adapter_bytes(models["lora"], folder)]
            switches["lora", "switch"] = switching(models["lora"])
        return {
            **sizes,
            **take_turns(loads, "cpu", rounds=rounds, warmup=1),
            **take_turns(switches, device, rounds=rounds * SWITCHES, warmup=SWITCHES),
        }


def _switching(delta: Path, device: str) -> Callable[[], object]:
    """Switch between two tasks; that their deltas are alike changes nothing."""
    tasks = Tasks.load({"one": delta, "other": delta}, allow_network=True).to(device)
    names = cycle(("one", "other"))

    def switch() -> None:
        with tasks.use(next(names)):
            pass

    return switch
