"""What two processes do in tests/train/test_processes.py: ``together.py FOLDER CASE...``, under torchrun."""

from __future__ import annotations

import atexit
import json
import os
import sys
from pathlib import Path

import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

import sparsetune as st

TRAFFIC = {"reduced": 0, "broadcast": 0, "steps": 0}
LOOK: list[list] = []


def note(logits: torch.Tensor, labels: torch.Tensor) -> None:
    LOOK[:] = [logits.tolist(), labels.tolist()]


class Counting(DistributedDataParallel):
    """DDP that counts the bytes that it sends."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_comm_hook(None, self._reduce)
        self.register_forward_pre_hook(lambda *_: TRAFFIC.update(steps=TRAFFIC["steps"] + 1))

    @staticmethod
    def _reduce(state, bucket):
        TRAFFIC["reduced"] += bucket.buffer().nbytes
        return allreduce_hook(state, bucket)

    def _distributed_broadcast_coalesced(self, tensors, *args, **kwargs):
        TRAFFIC["broadcast"] += sum(tensor.nbytes for tensor in tensors)
        super()._distributed_broadcast_coalesced(tensors, *args, **kwargs)


def vit() -> torch.nn.Module:
    """Without batch normalisation, so that the rows of a batch do not see each other."""
    net = st.create("test_vit", num_classes=10, img_size=32)
    return st.adapt_(net, st.Learn(fraction=0.25))


def wrn() -> torch.nn.Module:
    net = st.create("wrn28_4", depth=10, width=1, num_classes=10, drop_rate=0.3)
    return st.adapt_(net, st.Learn(fraction=0.25))


def digits(size: int) -> st.Data:
    """Batches of 64, 64 and 5, so that the processes' shares differ."""
    return st.open_data("digits", train_limit=133, test_limit=50, size=size)


CONFIG = st.FitConfig(epochs=2, batch_size=64, lr=0.05, device="cpu")


def case(name: str, folder: Path) -> tuple[torch.nn.Module, list[st.Epoch]]:
    """Train as ``name`` says; return the model and its history."""
    if name == "vit":
        net = vit()
        return net, st.fit(net, digits(32), CONFIG, looked=note)
    if name == "accumulated":
        net = vit()
        halves = CONFIG.but(batch_size=32, grad_accum_steps=2, model_ema=True, model_ema_decay=0.5)
        return net, st.fit(net, digits(32), halves)
    if name == "wrn":
        net = wrn()
        return net, st.fit(net, digits(8), CONFIG)
    while True:
        net = wrn()
        history = st.fit(net, digits(8), CONFIG, checkpoint=folder / "stopped", resume=True, time_budget=0.0)
        if len(history) == CONFIG.epochs:
            return net, history


if __name__ == "__main__":
    torch.nn.parallel.DistributedDataParallel = Counting
    folder, index = Path(sys.argv[1]), int(os.environ["RANK"])
    atexit.register(lambda: print("joined" if torch.distributed.is_initialized() else "left"))
    for name in sys.argv[2:]:
        TRAFFIC.update(dict.fromkeys(TRAFFIC, 0))
        net, history = case(name, folder)
        told = [{**record.to_json(), "seconds": 0} for record in history]
        (folder / f"{name}-{index}.json").write_text(
            json.dumps({"history": told, "traffic": TRAFFIC, "look": LOOK})
        )
        torch.save(net.state_dict(), folder / f"{name}-{index}.pt")
