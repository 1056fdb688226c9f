"""``try_out``: a short training of one candidate, judged by pictures that it did not see."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from sparsetune.adapt import adapt_
from sparsetune.config import FitConfig
from sparsetune.data import Data, Feed, Split, balanced, count_steps
from sparsetune.errors import DataError, DivergedError
from sparsetune.inference import predict_logits
from sparsetune.learn import Learn
from sparsetune.processes import Processes
from sparsetune.training import fit

SLOW = ("momentum", "sgd", "nesterov", "yellowfin")
"""Optimisers that trials do not take: under them a low-rank sum starts slowly, for one of its factors starts
at zero, and short trials would tell little of it."""


def try_out(
    net: nn.Module,
    learn: Learn,
    data: Data,
    held: Split,
    config: FitConfig,
    steps: int,
    group: Processes,
) -> tuple[Tensor, float] | None:
    """Train a copy of a plain model for a few steps and judge it.

    The trial has the whole schedule of ``config`` in its few steps, and AdamW in place of SGD. It is judged
    with the normalisation of each batch, since so few steps settle no running statistics.

    Args:
        net: A plain model; it is not changed.
        learn: What the copy learns.
        data: Its training pictures are learned, as many as ``steps`` take, evenly of each class.
        held: Pictures to judge by.
        config: The training that the trial stands for.
        steps: Training steps.
        group: The processes that train.

    Returns:
        The cross-entropy of each picture held, in nats, ``(N,)`` in float64, and the share classified
        rightly; ``None`` where the training diverged.

    Raises:
        ConfigError: As ``fit`` raises.
        DataError: When there are no training pictures, or one cannot be read.
    """
    if data.train is None:
        raise DataError(f"{data.name} has no training pictures; a trial needs some.")
    part, config = data.train, replace(config, compile=False, epochs=1)
    if config.opt in SLOW:
        config = replace(config, opt="adamw", lr=config.lr / 10)
    wanted = steps * config.batch_size
    if wanted < len(part):
        part = balanced(part, wanted, config.seed, "the trial's limit")
    else:
        config = replace(config, epochs=steps // count_steps(len(part), config.batch_size))
    net = adapt_(copy.deepcopy(net), learn)
    unread = held.take(np.arange(1))  # fit tests; judged are all, here
    judged = Feed(
        held, data.preprocessing, group.device, batch_size=config.batch_size, workers=config.workers
    )
    try:
        fit(net, replace(data, train=part, test=unread, validation=None), config)
        logits, labels = predict_logits(_unsettled(net), judged.epoch(config.seed))
    except DivergedError:
        return None
    losses = F.cross_entropy(logits.double(), labels, reduction="none")
    if not torch.isfinite(losses).all():
        return None
    return losses, (logits.argmax(1) == labels).double().mean().item()


def _unsettled(net: nn.Module) -> nn.Module:
    """Let batch norms go by the batch in evaluation too."""
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean = module.running_var = None
    return net
