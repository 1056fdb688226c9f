"""Published weights: how the registries of timm and torchvision name them, and the pictures they know."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import get_session  # type: ignore[attr-defined]
from timm.data import resolve_model_data_config
from timm.models import adapt_input_conv
from torch import Tensor, nn

from sparsetune.backbone.origin import origin_of
from sparsetune.errors import UnknownNameError

TORCHVISION = "torchvision/"
"""What the names of torchvision's models start with; all other names are timm's."""
HUB = ("hf-hub:", "hf_hub:")
"""What timm's names of models on the Hub start with."""
FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""Environment variable that torch.load obeys."""
COMMIT = re.compile("[0-9a-f]{40}")
"""A commit of a repository on the Hub."""
SECONDS = 5.0
"""How long the Hub may take to answer at all."""


@contextmanager
def hub_if_reachable() -> Iterator[None]:
    """Let the Hub's client look only into its cache while the Hub cannot be reached.

    Else it asks again and again, for most of a minute, before it does so.
    """
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _reachable()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _reachable() -> bool:
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # whatever its HTTP library raises, in any version
        return False
    return True


@contextmanager
def read_as_data() -> Iterator[None]:
    """Let torch take nothing but tensors from a checkpoint, whatever the library that reads it asks for."""
    before = os.environ.get(FORCED)
    os.environ[FORCED] = "1"
    try:
        yield
    finally:
        del os.environ[FORCED]
        if before is not None:
            os.environ[FORCED] = before


def pinned(name: str, revision: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments that make timm take one revision of its published weights."""
    if name.startswith(HUB):
        return f"{name.partition('@')[0]}@{revision}", {}
    config = timm.get_pretrained_cfg(name)
    where = f"{config.hf_hub_id}@{revision}"
    return name, {"pretrained_cfg_overlay": {"hf_hub_id": where, "custom_load": config.custom_load}}


def remedy(library: str, name: str, revision: str | None) -> str:
    """Say how to fetch a model's published weights."""
    if library == "torchvision":
        return how_to_fetch(None, None, weights_of(name, revision).url)
    if name.startswith(HUB):
        repository, _, pinned = name.partition(":")[2].partition("@")
        return how_to_fetch(repository, revision or pinned, None)
    config = timm.get_pretrained_cfg(name)
    return how_to_fetch(config and config.hf_hub_id, revision, config and config.url)


def how_to_fetch(repository: str | None, revision: str | None, url: str | None) -> str:
    """Return a remedy: what to fetch, of a repository on the Hub or else from a URL, and where it goes."""
    if repository:
        pin = f" --revision {revision}" if revision else ""
        return f"run `hf download {repository}{pin}` where there is a network and bring its cache (HF_HOME)"
    if url:
        return f"download {url} where there is a network and put it into {torch.hub.get_dir()}/checkpoints"
    return "name a model that has some, or leave pretrained out"


def weights_of(name: str, revision: str | None) -> Any:
    """Torchvision's published weights of a model; ``revision`` is their name, ``None`` for the best.

    Raises:
        UnknownNameError: When there are none of that name.
    """
    known = torchvision.models.get_model_weights(name)
    if revision is not None and revision not in known.__members__:
        raise UnknownNameError(f"revision of the weights of {name}", revision, known.__members__)
    return known[revision or "DEFAULT"]


def has_own_count(name: str, num_classes: int | None, revision: str | None) -> bool:
    """Whether torchvision's published weights are for ``num_classes`` classes."""
    return num_classes in (None, len(weights_of(name, revision).meta["categories"]))


def published_as(net: nn.Module, library: str, name: str, revision: str | None) -> tuple[str, str | None]:
    """Name and revision of the published values that ``net`` holds."""
    if library == "torchvision":
        return TORCHVISION + name, weights_of(name, revision).name
    config = getattr(net, "pretrained_cfg", None) or {}
    hub, _, pinned = str(config.get("hf_hub_id") or "").partition("@")
    if not hub:
        return str(config.get("url") or f"timm/{name}"), None
    files = [config.get("hf_hub_filename"), "model.safetensors", "pytorch_model.bin"]
    found = [try_to_load_from_cache(hub, file, revision=pinned or None) for file in files if file]
    commits = [Path(path).parent.name for path in found if isinstance(path, str)]
    return hub, pinned or next(iter(commits), None)


def cached_weights(source: str | None, revision: str | None) -> Path | None:
    """Return where the Hub's cache on this machine has published weights as safetensors; nothing is fetched.

    Args:
        source: Their repository, as a stranger may have named it.
        revision: Their commit, likewise.
    """
    if not source or not COMMIT.fullmatch(revision or ""):
        return None
    with suppress(ValueError, OSError):
        found = try_to_load_from_cache(source, "model.safetensors", revision=revision)
        return Path(found) if isinstance(found, str) else None
    return None


def tell_input(net: nn.Module, arguments: dict[str, Any]) -> None:
    """Let a timm model's ``pretrained_cfg`` say the input that its arguments ask for."""
    config = getattr(net, "pretrained_cfg", None) or {}
    channels, *sides = config.get("input_size", (3, 224, 224))
    size = arguments.get("img_size", sides)
    sides = [size, size] if isinstance(size, int) else size
    found = (arguments.get("in_chans", channels), *sides)
    if config and found != tuple(config["input_size"]):
        vars(net)["pretrained_cfg"] = {**config, "input_size": found}


def fitted(net: nn.Module, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fit the values of a timm model for another input size or for three channels to ``net``, as timm does.

    What timm's functions do not know comes back as it is.
    """
    config = getattr(net, "pretrained_cfg", None) or {}
    with suppress(Exception):
        family = sys.modules[timm.model_entrypoint(config["architecture"]).__module__]
        fit = getattr(family, "checkpoint_filter_fn", None) or getattr(family, "_filter_fn", None)
        if fit is not None:
            values = fit(dict(values), net)
    stems = config.get("first_conv") or ()
    for stem in [stems] if isinstance(stems, str) else stems:
        weight = values.get(f"{stem}.weight")
        if weight is None or weight.dim() != 4 or weight.shape == net.get_parameter(f"{stem}.weight").shape:
            continue
        with suppress(NotImplementedError):
            values[f"{stem}.weight"] = adapt_input_conv(config["input_size"][0], weight)
    return values


def known_pictures(net: nn.Module) -> dict[str, Any]:
    """Form of the pictures that a model is made for, as timm's ``resolve_model_data_config`` gives it.

    Args:
        net: A model that ``create`` made.

    Returns:
        ``input_size``, ``mean``, ``std``, ``interpolation``, ``crop_pct`` and ``crop_mode``; of torchvision's
        models only those with published weights of a classifier know them; the result is empty for others.
    """
    if hasattr(net, "pretrained_cfg"):
        known: dict[str, Any] = resolve_model_data_config(net)
        return known
    origin = origin_of(net)
    if origin is None or origin.library != "torchvision":
        return {}
    root = origin.backbone.root
    if root.kind not in ("pretrained", "file"):
        return {}
    form = weights_of(origin.name, root.revision).transforms()
    if not hasattr(form, "crop_size"):
        return {}
    side = form.crop_size[0]
    return {
        "input_size": (3, side, side),
        "mean": tuple(form.mean),
        "std": tuple(form.std),
        "interpolation": form.interpolation.value,
        "crop_pct": side / form.resize_size[0],
        "crop_mode": "center",
    }
