"""What a model gives back, read as a classifier's: its logits, and those of auxiliary heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsetune.errors import ConfigError

AUXILIARY = {1: 0.4, 2: 0.3}
"""What each of so many auxiliary heads counts in the loss: as Inception-v3 and GoogLeNet are trained."""


def logits_of(output: Any) -> Tensor:
    """Return the main logits ``(B, classes)`` in what a model gave back.

    Args:
        output: Logits; a named tuple or an object with them as ``logits``; or a tuple or list of logits of
            the same shape, the main ones first.

    Raises:
        ConfigError: When it holds no logits, as that of a detector or of a model that gives features.
    """
    return _heads(output)[0]


def loss_of(output: Any, labels: Tensor, smoothing: float = 0.0, weights: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy of what a classifier gave back; each auxiliary head counts a share.

    Args:
        output: As for :func:`logits_of`.
        labels: Classes ``(B,)``, or the shares of all classes in each picture, ``(B, classes)``.
        smoothing: Share of each label that is spread over all classes.
        weights: What a picture of each class counts, ``(classes,)``; ``None`` for 1. Of a mixed picture each
            share counts as its class does.

    Raises:
        ConfigError: As :func:`logits_of` raises.
    """
    main, *others = _heads(output)
    shares = labels.dim() > 1
    if shares:
        labels = labels if weights is None else labels * weights
        labels = labels.lerp(labels.mean(1, keepdim=True), smoothing)

    def one(logits: Tensor) -> Tensor:
        if shares:
            return F.cross_entropy(logits, labels)
        if weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=smoothing)
        each = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
        return (each * weights[labels]).mean()

    loss = one(main)
    for logits in others:
        loss = loss + AUXILIARY.get(len(others), 0.3) * one(logits)
    return loss


def device_of(net: nn.Module) -> torch.device:
    """Return where a model's values are."""
    return next((t.device for t in chain(net.parameters(), net.buffers())), torch.device("cpu"))


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for as long as the context lasts."""
    training = [module for module in net.modules() if module.training]
    net.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def check_classifier(net: nn.Module, size: tuple[int, ...], count: int, name: str) -> None:
    """Make sure that a model classifies, into as many classes as the data has, by running it on two pictures.

    A model that cannot be run so is passed over: the first step says why.

    Args:
        net: A model; its mode and its values are left as they are.
        size: Channels, height and width of a picture.
        count: Classes.
        name: What to call the data.

    Raises:
        ConfigError: When it gives no logits, or not so many.
    """
    try:
        with evaluating(net), torch.no_grad():
            output = net(torch.zeros(2, *size, device=device_of(net)))
    except Exception:
        return
    width = logits_of(output).shape[1]
    if width != count:
        raise ConfigError(
            f"the model has {width} outputs but {name} has {count} classes; "
            f"create it with num_classes={count}."
        )


def _heads(output: Any) -> list[Tensor]:
    """The main logits, then those of auxiliary heads."""
    heads = [output]
    if isinstance(getattr(output, "logits", None), Tensor):
        named: dict[str, Any] = getattr(output, "_asdict", dict)()
        others = [value for name, value in named.items() if name.startswith("aux_logits")]
        heads = [output.logits, *(value for value in others if value is not None)]
    elif isinstance(output, (tuple, list)) and output:
        heads = list(output)
    first = heads[0]
    if all(isinstance(head, Tensor) and head.dim() == 2 and head.shape == first.shape for head in heads):
        return heads
    raise ConfigError(
        f"the model gives {_described(output)} where a classifier gives logits of shape (pictures, classes); "
        "pass a classifier, or a module whose forward returns the logits."
    )


def _described(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} of {', '.join(map(str, output)) or 'nothing'}"
    if isinstance(output, (tuple, list)):
        kinds = dict.fromkeys(_described(item) for item in output[:3])
        return f"a {type(output).__name__} of {' and '.join(kinds) or 'nothing'}"
    return f"a {type(output).__name__}"
