"""What the paper's models are, without building them: learned parameters, and arithmetic of a picture."""

from __future__ import annotations

import functools
import json
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sparsetune.backbone import Backbone, Origin
from sparsetune.learn import Learn
from sparsetune.plan import plan
from sparsetune.reproduce.jobs import LEARN, Settings
from sparsetune.reproduce.sources import KNOWN, class_count
from sparsetune.zoo import skeleton


def learned_parameters(settings: Settings) -> int:
    """Return how many values are learned; by all members of an ensemble together."""
    return _planned(*_model(settings), _learn(settings))[0] * (settings["members"] or 1)


def total_parameters(settings: Settings) -> int:
    """Return how many values the model has."""
    return _planned(*_model(settings), _learn(settings))[1]


def forward_work(settings: Settings) -> int:
    """Return the floating-point operations of one picture's way through the model."""
    return _work(*_model(settings), settings.get("size") or KNOWN[settings["data"]].side)


def _model(settings: Settings) -> tuple[str, str, int]:
    return settings["model"], json.dumps(settings["model_kwargs"]), class_count(settings)


def _learn(settings: Settings) -> str:
    return json.dumps({name: settings[name] for name in LEARN})


@functools.cache
def _skeleton(model: str, kwargs: str, classes: int) -> nn.Module:
    arguments: dict[str, Any] = json.loads(kwargs) or {}
    seeded = Backbone(kind="seed")
    return skeleton(
        Origin(library="timm", name=model, kwargs=arguments, num_classes=classes, backbone=seeded)
    )


@functools.cache
def _planned(model: str, kwargs: str, classes: int, learn: str) -> tuple[int, int]:
    made = plan(_skeleton(model, kwargs, classes), Learn.from_json(json.loads(learn)))
    return made.learned_parameters, made.total_parameters


@functools.cache
def _work(model: str, kwargs: str, classes: int, side: int) -> int:
    net = _skeleton(model, kwargs, classes).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 3, side, side, device="meta"))
    return int(counter.get_total_flops())
