"""ROOM backbone."""

from sparsetune.backbone.origin import (
    MADE,
    ORIGIN,
    Backbone,
    Layer,
    Origin,
    changed,
    file_digest,
    fingerprint,
    origin_of,
    structure,
)
from sparsetune.backbone.outputs import check_classifier, logits_of, loss_of
from sparsetune.backbone.pretrained import HUB, TORCHVISION, known_pictures
from sparsetune.backbone.seeding import GENERATOR_VERSION, Law, draw
from sparsetune.backbone.zoo import create, names, plain_arguments, recreate, skeleton

__all__ = [
    "Backbone",
    "GENERATOR_VERSION",
    "HUB",
    "Law",
    "Layer",
    "MADE",
    "ORIGIN",
    "Origin",
    "TORCHVISION",
    "changed",
    "check_classifier",
    "create",
    "draw",
    "file_digest",
    "fingerprint",
    "known_pictures",
    "logits_of",
    "loss_of",
    "names",
    "origin_of",
    "plain_arguments",
    "recreate",
    "skeleton",
    "structure",
]
