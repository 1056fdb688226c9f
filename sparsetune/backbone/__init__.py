"""Where frozen values come from: a seed, published weights, a checkpoint, or zero.

Imports ``parts``.

- ``zoo``: ``create``, a model by its name on its backbone, and the same again from what a file says.
- ``source``: ``Backbone`` and ``Origin``, which tell where values come from; ``origin``: those of a model,
  fingerprints, checkpoints.
- ``seeding``: the generator, the same bytes everywhere; ``observe``: which law each tensor of a model
  follows, seen while it is built.
- ``pretrained``: published weights; ``outputs``: what a model returns, as logits and loss.
- ``models``: the paper's networks, which timm knows once it is imported.

A weight starts in ``zoo``, which has ``observe`` watch the constructor and ``seeding`` draw the values.
"""

from typing import TYPE_CHECKING

from sparsetune.host import lazily

if TYPE_CHECKING:
    from sparsetune.backbone.observe import drawn_head
    from sparsetune.backbone.origin import (
        MADE,
        ORIGIN,
        Layer,
        changed,
        file_digest,
        fingerprint,
        origin_of,
        structure,
    )
    from sparsetune.backbone.outputs import check_classifier, device_of, evaluating, logits_of, loss_of
    from sparsetune.backbone.pretrained import HUB, TORCHVISION, cached_weights, known_pictures
    from sparsetune.backbone.seeding import Law, draw, draw_below, draw_signs
    from sparsetune.backbone.source import GENERATOR_VERSION, Backbone, Origin
    from sparsetune.backbone.zoo import create, names, numbers, plain_arguments, recreate, skeleton
else:
    __getattr__ = lazily(__name__)

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
    "cached_weights",
    "changed",
    "check_classifier",
    "create",
    "device_of",
    "draw",
    "draw_below",
    "draw_signs",
    "drawn_head",
    "evaluating",
    "file_digest",
    "fingerprint",
    "known_pictures",
    "logits_of",
    "loss_of",
    "names",
    "origin_of",
    "numbers",
    "plain_arguments",
    "recreate",
    "skeleton",
    "structure",
]
