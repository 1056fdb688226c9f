"""Run a model over batches without learning."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn


def predict_logits(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return a classifier's outputs over all batches, in evaluation mode; modes are restored after.

    Args:
        net: A classifier.
        batches: Pairs of pictures ``(B, C, H, W)`` and labels ``(B,)``.

    Returns:
        Logits ``(N, classes)`` in float32 and labels ``(N,)``, on the CPU.
    """
    device = next((t.device for t in chain(net.parameters(), net.buffers())), torch.device("cpu"))
    training = [module for module in net.modules() if module.training]
    net.eval()
    logits, labels = [], []
    try:
        with torch.inference_mode():
            for x, y in batches:
                logits.append(net(x.to(device, non_blocking=True)).float().cpu())
                labels.append(y)
    finally:
        for module in training:
            module.training = True
    return torch.cat(logits), torch.cat(labels)
