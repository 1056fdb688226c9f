"""Run a model over batches without learning."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn

from sparsetune.outputs import logits_of


def predict_logits(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return a classifier's outputs over all batches, in evaluation mode; modes are restored after.

    Args:
        net: A classifier.
        batches: Pairs of pictures ``(B, C, H, W)`` and labels ``(B,)``.

    Returns:
        Logits ``(N, classes)`` in float32 and labels ``(N,)``, on the CPU; without batches both are empty.

    Raises:
        ConfigError: When it gives no logits.
    """
    device = next((t.device for t in chain(net.parameters(), net.buffers())), torch.device("cpu"))
    training = [module for module in net.modules() if module.training]
    net.eval()
    logits, labels = [torch.empty(0, 0)], [torch.empty(0, dtype=torch.int64)]
    try:
        with torch.inference_mode():
            for x, y in batches:
                logits.append(logits_of(net(x.to(device, non_blocking=True))).float().cpu())
                labels.append(y)
    finally:
        for module in training:
            module.training = True
    return joined_rows(logits), torch.cat(labels)


def joined_rows(pieces: list[Tensor]) -> Tensor:
    """Concatenate along the first dimension; pieces without rows need not have the others' columns."""
    return torch.cat([piece for piece in pieces if len(piece)] or pieces[:1])
