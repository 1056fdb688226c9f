"""Models by name: the only place that builds timm's and torchvision's."""

from __future__ import annotations

import json
import reprlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from fnmatch import fnmatchcase
from functools import partial
from inspect import signature
from pathlib import Path
from threading import get_ident
from typing import Any

import timm
import torch
import torchvision
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from sparsetune.backbone.observe import BUILDING, Memory, draw_initial, observing
from sparsetune.backbone.origin import (
    MADE,
    ORIGIN,
    file_digest,
    load_checkpoint,
    structure,
    take_values,
)
from sparsetune.backbone.pretrained import (
    HUB,
    TORCHVISION,
    fitted,
    has_own_count,
    hub_if_reachable,
    pinned,
    published_as,
    read_as_data,
    remedy,
    tell_input,
    weights_of,
)
from sparsetune.backbone.seeding import check_seed
from sparsetune.backbone.source import Backbone, Origin
from sparsetune.errors import BackboneError, ConfigError, SparsetuneError, UnknownNameError
from sparsetune.parts import HEAD, STORED, head_names

RESERVED = frozenset(
    {
        "cache_dir",
        "checkpoint",
        "checkpoint_path",
        "device",
        "dtype",
        "name",
        "num_classes",
        "pretrained",
        "pretrained_backbone",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "pretrained_model_args",
        "pretrained_strict",
        "revision",
        "scriptable",
        "seed",
        "weights",
        "weights_backbone",
    }
)
"""Constructor arguments that reach the network or the disk, or that ``create`` sets itself."""

LARGEST = 1 << 20
"""Largest sum of all numbers among a model's arguments."""
MOST_PARAMETERS = 10_000
"""Most parameter tensors that a model may have; the largest of timm 1.0.31 has 1,853."""


def plain_arguments(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the model ``name`` as a delta file gives them back; tuples become lists.

    Raises:
        ConfigError: When one is reserved, or no plain JSON value, or all together ask for too much.
    """
    reserved = sorted(RESERVED & set(arguments))
    if reserved:
        raise ConfigError(f"model argument '{reserved[0]}' cannot be passed to {name}; leave it out.")
    shown = reprlib.repr(arguments)
    try:
        plain: dict[str, Any] = json.loads(json.dumps(arguments, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"arguments {shown} of {name} cannot stand in a delta file ({error}); give plain numbers, texts "
            "and lists, or build the model yourself and call adapt_(net, learn, Backbone.from_module(net))."
        ) from error
    if sum(min(number, 2 * LARGEST) for number in numbers(plain)) > LARGEST:
        raise ConfigError(f"the numbers in arguments {shown} of {name} sum up to more than {LARGEST}.")
    return plain


def numbers(value: Any) -> Iterator[float]:
    """Yield the size of every number inside a plain JSON value."""
    if isinstance(value, (int, float)):
        yield abs(value)
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)


def without_memory(build: Callable[[], nn.Module]) -> nn.Module:
    """Return what ``build`` builds, on the meta device as far as it can be; it may be called twice.

    Raises:
        ConfigError: When the model has more than ``MOST_PARAMETERS`` parameter tensors.
    """
    with BUILDING, torch.random.fork_rng(devices=[]), _few_parameters():
        try:
            with torch.device("meta"):
                return build()
        except Exception as error:
            if not isinstance(error.__cause__, NotImplementedError):
                raise
        with _EmptyOnMeta():
            return build()


class _EmptyOnMeta(TorchFunctionMode):
    """Makes uninitialised tensors without memory, for constructors that compute with small real ones."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return func(*args, **({**kwargs, "device": "meta"} if func is torch.empty else kwargs))


@contextmanager
def _few_parameters() -> Iterator[None]:
    count, thread = 0, get_ident()

    def check(*_: Any) -> None:
        nonlocal count
        count += get_ident() == thread
        if count > MOST_PARAMETERS:
            raise ConfigError(f"the model described has more than {MOST_PARAMETERS} parameter tensors.")

    handle = register_module_parameter_registration_hook(check)
    try:
        yield
    finally:
        handle.remove()


def names(pattern: str | None = None) -> list[str]:
    """Return the names of models that can be created, sorted; those that match ``pattern`` if given.

    Args:
        pattern: Such as ``wrn*`` or ``*resnet18``; a word without wildcards matches anywhere in a name.
    """
    known = [*timm.list_models(), *(TORCHVISION + name for name in torchvision.models.list_models())]
    if pattern is None:
        return sorted(known)
    if not any(sign in pattern for sign in "*?["):
        pattern = f"*{pattern}*"
    return sorted(name for name in known if fnmatchcase(name, pattern))


def create(
    name: str,
    *,
    num_classes: int | None = None,
    seed: int = 0,
    pretrained: bool = False,
    revision: str | None = None,
    checkpoint: str | Path | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build an ordinary timm or torchvision model on a backbone that can be rebuilt.

    Random initial values are drawn from sparsetune's own generator: the same bytes on every machine. Which
    distribution each tensor has is observed while the library builds the model; constants stay as they are.

    Args:
        name: ``resnet18`` (timm), ``torchvision/resnet18``, ``hf-hub:…``, or one of ours such as ``wrn28_4``.
        num_classes: Class count; ``None`` for the model's own.
        seed: Seed of the random values.
        pretrained: Take the library's published weights. A classifier for another class count is seeded.
        revision: Of the published weights: a commit of their hub repository, or torchvision's name for them;
            ``None`` for the latest.
        checkpoint: A whole checkpoint in safetensors format to take values from, likewise. For a timm model
            with other ``img_size`` or ``in_chans``, timm's own functions fit it.
        **kwargs: Arguments of the model's constructor, plain JSON values, such as ``img_size``, ``in_chans``.

    Returns:
        The plain model, in training mode, on the CPU.

    Raises:
        UnknownNameError: When there is no such model.
        ConfigError: When arguments do not fit.
        BackboneError: When the model cannot be built, or weights cannot be had or do not fit.
    """
    if pretrained and checkpoint is not None:
        raise ConfigError(f"pretrained=True and checkpoint='{checkpoint}' both give the weights; keep one.")
    if num_classes is not None and (type(num_classes) is not int or num_classes < 0):
        raise ConfigError(f"num_classes {num_classes!r} is not a whole number of 0 or more.")
    library, plain_name = _split(name)
    kwargs = plain_arguments(name, kwargs)
    sha256 = None if checkpoint is None else file_digest(checkpoint)
    with observing(check_seed(seed)) as seen:
        net = _build(library, plain_name, num_classes, kwargs, pretrained, revision)
        count = num_classes if num_classes is not None else _count(net, plain_name, library)
        if library == "torchvision":
            setattr(net, HEAD, _class_layers(plain_name, count, kwargs))
        if checkpoint is not None:
            load_checkpoint(net, checkpoint, fitted if library == "timm" else None)
        elif pretrained and library == "torchvision" and not has_own_count(plain_name, num_classes, revision):
            _take_published(net, plain_name, kwargs, revision)
    draw_initial(net, seen, seed)
    if checkpoint is not None:
        backbone = Backbone(kind="file", seed=seed, source=Path(checkpoint).name, sha256=sha256)
    elif pretrained:
        source, revision = published_as(net, library, plain_name, revision)
        backbone = Backbone(kind="pretrained", seed=seed, source=source, revision=revision)
    else:
        backbone = Backbone(kind="seed", seed=seed)
    origin = Origin(library=library, name=plain_name, kwargs=kwargs, num_classes=count, backbone=backbone)
    setattr(net, ORIGIN, origin)
    setattr(net, MADE, structure(net))
    return net


def recreate(origin: Origin, checkpoint: str | Path | None = None) -> nn.Module:
    """Build the model that ``origin`` describes, again.

    Args:
        origin: How it was made.
        checkpoint: A file with the values of a ``file`` backbone, or of a ``pretrained`` one in place of the
            published weights. It may be another file than then; whether its values are the same, the
            fingerprint tells.

    Raises:
        BackboneError: When the checkpoint of a ``file`` backbone is missing.
    """
    root = origin.backbone.root
    if root.kind == "file" and (checkpoint is None or not Path(checkpoint).is_file()):
        raise BackboneError(
            f"the backbone is the checkpoint '{root.source}' (SHA-256 {root.sha256}), which is not at "
            "hand; pass its path as backbone (--backbone on the command line)."
        )
    published = root.kind == "pretrained" and checkpoint is None
    return create(
        _full_name(origin),
        num_classes=origin.num_classes,
        seed=root.seed,
        pretrained=published,
        revision=root.revision,
        checkpoint=checkpoint if root.kind in ("file", "pretrained") else None,
        **origin.kwargs,
    )


def skeleton(origin: Origin, most: int | None = None) -> nn.Module:
    """Build the model that ``origin`` describes without memory for its values (on the meta device).

    Args:
        origin: How it was made.
        most: Bytes that building it may take, with values; ``None`` for any number.

    Raises:
        UnknownNameError: When there is no such model.
        ConfigError: When its arguments do not fit, or ask for too much.
        BackboneError: When building it takes more than ``most`` bytes.
    """
    library, name = _split(_full_name(origin))
    kwargs = plain_arguments(name, origin.kwargs)
    with observing(memory=None if most is None else Memory(most)) as seen:
        net = without_memory(lambda: _build(library, name, origin.num_classes, kwargs))
    if library == "torchvision":
        setattr(net, HEAD, _class_layers(name, origin.num_classes, kwargs))
    if origin.backbone.root.kind == "seed":
        setattr(net, STORED, tuple(seen.unknown(net)))
    return net


def _full_name(origin: Origin) -> str:
    """The name that ``create`` takes."""
    return (TORCHVISION if origin.library == "torchvision" else "") + origin.name


def _split(name: str) -> tuple[str, str]:
    if name.startswith(TORCHVISION):
        plain, known = name.removeprefix(TORCHVISION), torchvision.models.list_models()
        if plain not in known:
            raise UnknownNameError("model", name, [TORCHVISION + item for item in known])
        return "torchvision", plain
    if not name.startswith(HUB) and not timm.is_model(name):
        raise UnknownNameError("model", name, names(), "`sparsetune models` lists them all.")
    if not name.startswith(HUB):
        try:
            timm.get_pretrained_cfg(name)
        except RuntimeError as error:
            known = timm.list_pretrained(f"{name.partition('.')[0]}.*")
            raise UnknownNameError("pretrained model", name, known) from error
    return "timm", name


def _build(
    library: str,
    name: str,
    num_classes: int | None,
    kwargs: dict[str, Any],
    pretrained: bool = False,
    revision: str | None = None,
) -> nn.Module:
    counted = num_classes is not None and (library == "timm" or num_classes > 0)
    arguments = {**kwargs, "num_classes": num_classes} if counted else dict(kwargs)
    fetch = remedy(library, name, revision) if pretrained else ""
    fetched = pretrained or name.startswith(HUB)
    reading = read_as_data() if fetched else nullcontext()
    with BUILDING, _explaining(name, arguments, fetch), reading, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The default weight initialization")  # ours replaces it
        if library == "timm":
            exact, pin = pinned(name, revision) if pretrained and revision else (name, {})
            with hub_if_reachable() if fetched else nullcontext():
                net: nn.Module = timm.create_model(exact, pretrained=pretrained, **pin, **arguments)
            tell_input(net, arguments)
            return net
        builder = torchvision.models.get_model_builder(name)
        weights: dict[str, Any] = {
            given: None for given in ("weights", "weights_backbone") if given in signature(builder).parameters
        }
        if pretrained and has_own_count(name, num_classes, revision):
            weights = {"weights": weights_of(name, revision)}
        made: nn.Module = builder(**weights, **arguments)
        return made


def _take_published(net: nn.Module, name: str, kwargs: dict[str, Any], revision: str | None) -> None:
    """Copy torchvision's published values into a model with another class count (its builder refuses)."""
    with observing():
        published = _build("torchvision", name, None, kwargs, True, revision)
    take_values(net, published.state_dict(), f"the published {name}")


@contextmanager
def _explaining(name: str, arguments: dict[str, Any], fetch: str) -> Iterator[None]:
    """Turn what a library raises into one sentence; ``fetch`` is the remedy where weights are asked for."""
    try:
        yield
    except SparsetuneError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        if fetch:
            raise BackboneError(f"pretrained weights of {name} cannot be had ({reason}); {fetch}.") from error
        raise ConfigError(f"{name} cannot be built with {reprlib.repr(arguments)} ({reason}).") from error


def _count(net: nn.Module, name: str, library: str) -> int:
    """The model's own class count, 0 if it has none."""
    if library == "torchvision":
        return len(weights_of(name, None).meta.get("categories", ()))
    own = getattr(net, "num_classes", None)
    heads = [net.get_submodule(head) for head in head_names(net)]
    return own if type(own) is int else int(getattr(heads[-1], "out_features", 0)) if heads else 0


def _class_layers(name: str, count: int, kwargs: dict[str, Any]) -> tuple[str, ...]:
    """Names of a torchvision model's modules whose shape depends on the class count."""
    if not count:
        return ()
    fewer, more = (
        without_memory(partial(_build, "torchvision", name, classes, kwargs)).state_dict()
        for classes in (count, count + 1)
    )
    changed = [key for key, value in fewer.items() if value.shape != more[key].shape]
    return tuple(dict.fromkeys(key.rpartition(".")[0] for key in changed))
