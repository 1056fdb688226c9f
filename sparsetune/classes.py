"""``meet_classes``: the classifier of a model that was trained before, made that of other class names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from sparsetune.adapt import adapted
from sparsetune.errors import ConfigError, notify
from sparsetune.layers import head_names, under
from sparsetune.seeding import Law, draw
from sparsetune.taught import taught
from sparsetune.words import listed


def meet_classes(net: nn.Module, classes: Sequence[str]) -> None:
    """Compare class names with those that a model was trained on, and say what follows where they differ.

    In another order, the rows of the classifier are put into that order. Other classes draw it anew.

    Args:
        net: An adapted model; only what is noted on it is compared.
        classes: Class names in the order of the labels to come.

    Raises:
        ConfigError: When the order is another and the classifier is frozen.
    """
    before = taught(net).classes
    if before is None or before == tuple(classes) or len(before) != len(classes):
        return
    rows = list(_rows(net, len(classes)))
    if set(before) == set(classes) and len({*before}) == len(before):
        if not rows:
            raise ConfigError(
                f"the model was trained on the classes {listed(before)} and these are {listed(classes)}: "
                "the same in another order, which a classifier that is not learned cannot follow; "
                "name them in the same order, or learn the head."
            )
        order = torch.tensor([before.index(name) for name in classes])
        for _, value in rows:
            value.copy_(value[order.to(value.device)])
        notify(
            "the classes are those that the model was trained on, in another order; "
            "the rows of its classifier were put into the new one."
        )
        return
    said = f"the model was trained on the classes {listed(before)} and not on {listed(classes)}; "
    for name, value in rows:
        bound = value[0].numel() ** -0.5 if value.dim() > 1 else 0.0
        drawn = draw(adapted(net).backbone.root.seed, name, value.shape, Law("uniform", -bound, bound))
        value.copy_(drawn)
    notify(said + ("its classifier was drawn anew." if rows else "its classifier is not learned."))


def _rows(net: nn.Module, count: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and values of each learned tensor of the classifier that has a row for each class."""
    heads = head_names(net)
    for part in adapted(net).plan:
        if part.whole and part.shape[:1] == (count,) and under(part.homes[0][0], heads):
            yield part.name, net.get_parameter(part.name).detach()
