"""The one place that decides which pictures and which classes of a data set a model sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import nn

from sparsetune.backbone import Law, draw, known_pictures, origin_of
from sparsetune.data import Data, Preprocessing
from sparsetune.errors import ConfigError, notify
from sparsetune.host import listed
from sparsetune.parts import ADAPTED, head_names, under
from sparsetune.sliced import Adapted, adapted, taught

DATAS, MODELS, BEFORE, YOURS = "the data's own", "the model's", "as it was trained before", "as you gave it"
"""Where preprocessing comes from."""


def pictures_for(net: nn.Module, data: Data) -> Data:
    """Give data the preprocessing under which a model's values were trained.

    Preprocessing that the user put in the place of :func:`open_data`'s stays. Else it is what the model was
    trained with before, if it was. Else it is that of the backbone where its values were trained (published
    weights, or a checkpoint of a model that has some), crop and aspect ratio included, and the data's own
    over a random one. Thumbnails, all of one size below the model's, are enlarged as they are. A size that
    ``open_data`` was given stays. Grey pictures go to a model of one channel.

    Args:
        net: A model, plain or adapted.
        data: What it shall learn.

    Returns:
        The data; its random crop keeps its share of the picture.

    Raises:
        ConfigError: When the model takes neither one channel nor three.
    """
    if data.default is None or data.preprocessing != data.default:
        return data if data.decided else replace(data, decided=YOURS)
    form, source = data.default, DATAS
    if known := taught(net).preprocessing:
        form, source = known, BEFORE
    elif wanted := known_pictures(net):
        kind = _kind(net)
        ours = type(net).__module__.startswith("sparsetune.")
        trained = kind in ("pretrained", "file") and not ours
        if trained or _config(net).get("fixed_input_size"):
            form = replace(form, size=(form.size[0], *wanted["input_size"][1:]))
        if trained or (kind == "theirs" and not ours):
            mean, std = tuple(wanted["mean"]), tuple(wanted["std"])
            form, source = replace(form, mean=mean, std=std, interpolation=wanted["interpolation"]), MODELS
        if trained:
            form = replace(form, **_crop(wanted, data))
        form = _in_channels(form, wanted["input_size"][0])
    if data.sized:
        form = replace(form, size=(form.size[0], *data.default.size[1:]))
    pad = data.augment.pad * min(form.size[1:]) // min(data.default.size[1:])
    return replace(data, preprocessing=form, decided=source, augment=replace(data.augment, pad=pad))


def _crop(wanted: dict[str, Any], data: Data) -> dict[str, Any]:
    """The model's crop; thumbnails, all of one size below the model's, are taken whole."""
    native, side = data.native, min(wanted["input_size"][1:])
    if native is not None and max(native) < side:
        return {} if native[0] == native[1] else {"crop_mode": "center"}
    return {"crop_pct": float(wanted.get("crop_pct") or 1), "crop_mode": wanted.get("crop_mode") or "center"}


def _config(net: nn.Module) -> dict[str, Any]:
    return getattr(net, "pretrained_cfg", None) or {}


def _kind(net: nn.Module) -> str:
    """The kind of a model's backbone; ``theirs`` for one that the user built with timm."""
    origin, state = origin_of(net), getattr(net, ADAPTED, None)
    if origin is None:
        return "theirs"
    return (state.backbone if isinstance(state, Adapted) else origin.backbone).root.kind


def _in_channels(form: Preprocessing, channels: int) -> Preprocessing:
    """Preprocessing to so many channels, with the mean of the statistics where these are fewer or more."""
    if channels == form.size[0]:
        return form
    if channels not in (1, 3):
        raise ConfigError(
            f"the model takes {channels} channels, and pictures have 1 or 3; create it with in_chans=3."
        )
    mean, std = ((fmean(values),) * channels for values in (form.mean, form.std))
    return replace(form, size=(channels, *form.size[1:]), mean=mean, std=std)


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
