"""Text: what sort of thing WordNet defines, told by a transformer over random values. An experiment of ours.

The paper leaves "non-vision tasks" open (Section 5). This has its shape: a network rebuilt from a seed, of
whose layers a part is learned. The text is real and needs no download: timm ships the entries of WordNet that
name ImageNet-22k's classes, and WordNet's numbers keep animals, artefacts, food, persons and plants apart.
"""

from __future__ import annotations

import functools
import hashlib
import re
import time
import zlib
from dataclasses import dataclass
from typing import Any

import torch
from timm.data import ImageNetInfo
from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from sparsetune.backbone import create
from sparsetune.delta import save
from sparsetune.errors import DivergedError
from sparsetune.host import DELTA
from sparsetune.sliced import adapt_, adapted
from sparsetune.spec import Learn
from sparsetune.studies.intervals import packed
from sparsetune.studies.jobs import LEARN, Result, kind
from sparsetune.studies.store import Task

TEXT, TRANSFORMER = "definitions", "definitions_transformer"
SORTS = {
    "animal": (1_314_000, 2_665_900),
    "artefact": (2_665_900, 4_616_000),
    "food": (7_556_000, 7_942_000),
    "person": (9_605_000, 11_410_000),
    "plant": (11_530_000, 13_222_000),
}
"""From which of WordNet's numbers to which."""
TRAIN, TEST = 1_500, 300
"""Entries of each sort; food has 1,851."""
LENGTH, VOCABULARY = 32, 8_192
"""Words of an entry that are read, and how many numbers words share; 0 stands where none is left."""


@dataclass(frozen=True)
class Definitions:
    """Entries as numbers of words, and their sorts; both splits have equally many of each.

    Attributes:
        words: ``(N, LENGTH)`` int64.
        labels: ``(N,)`` int64.
        test: The same two of test entries.
        code: Tells these entries from others.
    """

    words: Tensor
    labels: Tensor
    test: tuple[Tensor, Tensor]
    code: str
    classes: tuple[str, ...] = (*SORTS,)

    def digest(self) -> str:
        """Sixteen hexadecimal digits, other ones for other entries."""
        return self.code


@functools.cache
def definitions() -> Definitions:
    """Read the entries; which of them are test entries, their content decides."""
    info: Any = ImageNetInfo("imagenet22k")
    names = info.label_names()
    entries = {int(name[1:]): info.label_name_to_description(name, detailed=True) for name in names}
    sides: tuple[list[str], list[str]] = ([], [])
    for low, high in SORTS.values():
        texts = {text for number, text in entries.items() if low <= number < high}
        ordered = sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())
        sides[0].extend(ordered[TEST : TEST + TRAIN])
        sides[1].extend(ordered[:TEST])
    code = hashlib.sha256("\n".join(sides[0] + sides[1]).encode()).hexdigest()[:16]
    train, test = (
        (torch.tensor([numbers(text) for text in side]), torch.arange(len(SORTS)).repeat_interleave(each))
        for side, each in zip(sides, (TRAIN, TEST), strict=True)
    )
    return Definitions(*train, test, code)


def numbers(text: str) -> list[int]:
    """Return the numbers of a text's first words, filled up with zeros."""
    words = re.findall(r"[a-z]+", text.lower())[:LENGTH]
    return [1 + zlib.crc32(word.encode()) % (VOCABULARY - 1) for word in words] + [0] * (LENGTH - len(words))


class DefinitionsTransformer(nn.Module):
    """Word and place vectors, four blocks of self-attention, the mean over words, one linear classifier.

    Args:
        num_classes: Sorts.
        width: Length of a word's vector.
        depth: Blocks.
    """

    def __init__(self, num_classes: int = len(SORTS), width: int = 64, depth: int = 4) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.words = nn.Embedding(VOCABULARY, width)
        self.places = nn.Embedding(LENGTH, width)
        self.blocks = nn.Sequential(*(Block(width, num_heads=4, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.head

    def forward(self, words: Tensor) -> Tensor:
        """Map numbers of words ``(N, LENGTH)`` to logits ``(N, num_classes)``."""
        told = (words > 0).unsqueeze(-1)
        x = self.norm(self.blocks((self.words(words) + self.places.weight) * told))
        logits: Tensor = self.head((x * told).sum(1) / told.sum(1).clamp_min(1))
        return logits


default_cfgs = generate_default_cfgs({TRANSFORMER: {"num_classes": len(SORTS), "classifier": "head"}})


@register_model
def definitions_transformer(pretrained: bool = False, **kwargs: Any) -> DefinitionsTransformer:
    """Four blocks of width 64; ``width`` and ``depth`` give any other."""
    kept = {name: value for name, value in kwargs.items() if name in ("num_classes", "width", "depth")}
    return DefinitionsTransformer(**kept)


@kind("text", trains=True)
def tell_sorts(task: Task) -> Result | None:
    """Train by AdamW and a cosine from the rate to zero, and judge it. What is interrupted starts anew."""
    began, settings, texts = time.monotonic(), task.settings, definitions()
    torch.manual_seed(settings["seed"])
    net = create(TRANSFORMER, seed=settings["seed"], **settings["model_kwargs"] or {})
    adapt_(net, Learn(**{name: settings[name] for name in LEARN}))
    learned = [value for value in net.parameters() if value.requires_grad]
    opt = torch.optim.AdamW(learned, lr=settings["lr"], weight_decay=settings["weight_decay"])
    steps = settings["epochs"] * -(-len(texts.labels) // settings["batch_size"])
    sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
    for _ in range(settings["epochs"]):
        for batch in torch.randperm(len(texts.labels)).split(settings["batch_size"]):
            if task.budget is not None and time.monotonic() - began > task.budget:
                return None
            loss = F.cross_entropy(net(texts.words[batch]), texts.labels[batch])
            if not torch.isfinite(loss):
                raise DivergedError(f"the loss is {loss.item()}.")
            opt.zero_grad()
            loss.backward()
            opt.step()
            sched.step()
    with torch.no_grad():
        logits = net.eval()(texts.test[0])
    right = logits.argmax(1) == texts.test[1]
    task.folder.mkdir(parents=True, exist_ok=True)
    save(net, task.folder / DELTA, classes=texts.classes)
    made = adapted(net).plan
    return {
        "top1": right.double().mean().item(),
        "loss": F.cross_entropy(logits, texts.test[1]).item(),
        "right": packed(right),
        "test_pictures": len(right),
        "seconds": time.monotonic() - began,
        "learned_parameters": made.learned_parameters,
        "total_parameters": made.total_parameters,
        "delta_bytes": (task.folder / DELTA).stat().st_size,
    }
