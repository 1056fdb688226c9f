"""An adapted model in timm's training loop: its optimiser, schedule, averaging and checkpoints.

Run: python examples/timm_loop.py [epochs]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from timm import utils
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.nn import functional as F

import sparsetune as st
from sparsetune.data import loader


def validate(net: nn.Module, data: st.Data) -> float:
    """Return the top-1 accuracy on the test pictures, in percent as timm counts it."""
    top1 = utils.AverageMeter()
    net.eval()
    with torch.inference_mode():
        for x, y in loader(data.test, data.preprocessing, batch_size=512):
            top1.update(utils.accuracy(net(x), y)[0].item(), len(x))
    return top1.avg


def main(epochs: int = 3) -> float:
    """Train WRN-10-2 at 25 % on the embedded digits; return the loaded average's test accuracy."""
    data = st.open_data("digits")
    net = st.create("wrn28_4", depth=10, width=2, num_classes=len(data.classes), seed=0)
    st.adapt_(net, st.Learn(fraction=0.25))

    optimizer = create_optimizer_v2(net, opt="adamw", lr=3e-3, weight_decay=0.05)
    scheduler, epochs = create_scheduler_v2(optimizer, sched="cosine", num_epochs=epochs, warmup_epochs=0)
    ema = utils.ModelEmaV3(net, decay=0.99, use_warmup=True)
    with tempfile.TemporaryDirectory() as folder:
        saver = utils.CheckpointSaver(
            net, optimizer, model_ema=ema, checkpoint_dir=folder, recovery_dir=folder
        )
        updates = 0
        for epoch in range(epochs):
            net.train()
            for x, y in loader(data.train, data.preprocessing, batch_size=64, train=True, epoch=epoch):
                F.cross_entropy(net(x), y).backward()
                utils.dispatch_clip_grad(net.parameters(), value=1.0, mode="norm")
                optimizer.step()
                optimizer.zero_grad()
                updates += 1
                ema.update(net, step=updates)
            saver.save_checkpoint(epoch, metric=validate(ema.module, data))
            scheduler.step(epoch + 1)

        path = Path(folder) / "digits.safetensors"
        st.save(ema.module, path, classes=data.classes, preprocessing=data.preprocessing)
        accuracy = validate(st.load(path), data) / 100
        print(f"delta {path.stat().st_size / 1024:.0f} KiB, test accuracy {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
