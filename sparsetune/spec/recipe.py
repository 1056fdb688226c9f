"""``Recipe``: how ``fit`` trains where it is not told; one for random backbones and one for trained ones.

Over trained weights four things decide: enough steps, a head that starts small, statistics that stay, and
preprocessing that is the backbone's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sparsetune.spec.learn import Learn

STEPS = 300
"""Steps that a training over a trained backbone takes at least, as far as its epochs allow."""
EPOCHS = 5, 16
"""Fewest and most epochs there; of very few pictures there are more,"""
PART, VECTOR = 1.4, 1.75
"""How many times as many steps, and most epochs, a part of each layer gets, and a spread vector: they learn
more slowly, and a part's step takes less."""
FEW_STEPS, MOST_EPOCHS = 100, 50
"""until there are so many steps, or so many epochs."""
WARMUP = 0.1
"""Share of the epochs in which the learning rate rises there."""


@dataclass(frozen=True)
class Recipe:
    """Settings that ``fit`` takes where they are left out.

    Attributes:
        name: What to call it.
        settings: Of ``FitConfig``, by name; it has defaults for those that are not here.
        zero_head: Whether a classifier that was drawn anew starts at zero.
        frozen_statistics: Whether running statistics stay at the backbone's, unless ``Learn`` says otherwise.
        words: What to tell, such as that there are too few training pictures to hope for much.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    zero_head: bool = False
    frozen_statistics: bool = False
    words: tuple[str, ...] = ()


PAPER = Recipe("paper")
"""The paper's, for random and zero backbones: the defaults of ``FitConfig``."""
SUBSPACE = Recipe("subspace", {"opt": "adam", "lr": 0.1, "weight_decay": 0.0, "batch_size": 32})
"""For a vector spread over random weights, which have further to go than trained ones."""
TRANSFER = Recipe(
    "transfer",
    {
        "opt": "adamw",
        "lr": "auto",
        "batch_size": 16,
        "weight_decay": 0.01,
        "smoothing": 0.1,
        "scale": 0.35,
        "val_share": 0.1,
    },
    zero_head=True,
    frozen_statistics=True,
)
"""For published weights and checkpoints."""
CHANGING = "aa", "reprob", "mixup", "cutmix"
"""Settings by which training pictures do not stay as they are."""
FEWEST = 5
"""Pictures of a class below which a transfer is a gamble."""


HEAD = {"aug": False, "scale": None, "views": 1}
"""Where the classifier alone is learned: of pictures as they are, so that nothing before it runs twice."""


def transfer(pictures: int, classes: int, settings: Mapping[str, Any], learn: Learn) -> Recipe:
    """Return ``TRANSFER`` for so many training pictures.

    Args:
        pictures: How many there are.
        classes: Of how many classes.
        settings: Those that are given, which epochs are counted by.
        learn: What is learned.
    """
    head_alone = learn.head_alone
    longer = 1.0 if head_alone or learn.everything else PART if learn.dimensions is None else VECTOR
    batch = settings.get("batch_size", TRANSFER.settings["batch_size"]) * settings.get("grad_accum_steps", 1)
    batch = min(batch, pictures)
    least, most = EPOCHS
    most = max(int(longer * most), min(math.ceil(FEW_STEPS * batch / pictures), MOST_EPOCHS))
    epochs = settings.get("epochs", min(max(least, math.ceil(longer * STEPS * batch / pictures)), most))
    words: tuple[str, ...] = ()
    if pictures < FEWEST * classes:
        wanted = f"{FEWEST * classes:,} or more would make a difference."
        words = (f"{pictures:,} training pictures of {classes:,} classes are very few; {wanted}",)
    alone = HEAD if head_alone and not any(settings.get(name) for name in CHANGING) else {}
    said = {**TRANSFER.settings, **alone, "epochs": epochs, "warmup_epochs": round(WARMUP * epochs, 2)}
    return replace(TRANSFER, settings=said, words=words)
