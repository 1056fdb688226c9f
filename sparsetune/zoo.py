"""Models by name: the only place that asks timm's and torchvision's registries."""

from __future__ import annotations

from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

import sparsetune.models  # noqa: F401  (registers the paper's networks with timm)
from sparsetune.backbone import ORIGIN, Backbone, Origin
from sparsetune.errors import BackboneError, ConfigError, SparsetuneError, UnknownNameError
from sparsetune.layers import head_names
from sparsetune.observe import Observation, observing
from sparsetune.seeding import draw

TORCHVISION = "torchvision/"
HUB = ("hf-hub:", "hf_hub:")
RESERVED = frozenset(
    {
        "cache_dir",
        "checkpoint_path",
        "num_classes",
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "pretrained_strict",
        "scriptable",
        "weights",
        "weights_backbone",
    }
)
"""Constructor arguments that reach the network or the disk, or that ``create`` sets itself."""


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
        checkpoint: A whole checkpoint in safetensors format to take values from, likewise.
        **kwargs: Arguments of the model's constructor.

    Returns:
        The plain model, in training mode, on the CPU.

    Raises:
        UnknownNameError: When there is no such model.
        ConfigError: When arguments do not fit.
        BackboneError: When the model cannot be built, or weights cannot be had or do not fit.
    """
    if pretrained and checkpoint is not None:
        raise ConfigError(f"pretrained=True and checkpoint='{checkpoint}' both give the weights; keep one.")
    library, plain_name = _split(name)
    with observing() as seen:
        net = _build(library, plain_name, num_classes, kwargs, pretrained)
    _draw_random(net, seen, seed)
    count = num_classes if num_classes is not None else int(getattr(net, "num_classes", 0)) or _count(net)
    if checkpoint is not None:
        backbone = Backbone(kind="file", seed=seed, source=Path(checkpoint).name, sha256=_digest(checkpoint))
        _load_checkpoint(net, Path(checkpoint))
    elif pretrained:
        backbone = Backbone(kind="pretrained", seed=seed, source=_published(net, library, plain_name))
    else:
        backbone = Backbone(kind="seed", seed=seed)
    origin = Origin(library=library, name=plain_name, kwargs=kwargs, num_classes=count, backbone=backbone)
    setattr(net, ORIGIN, origin)
    return net


def recreate(origin: Origin, checkpoint: str | Path | None = None) -> nn.Module:
    """Build the model that ``origin`` describes, again.

    Args:
        origin: How it was made.
        checkpoint: The file of a ``file`` backbone.

    Raises:
        BackboneError: When ``checkpoint`` is missing or is another file than then.
    """
    root = origin.backbone.root
    if root.kind == "file":
        if checkpoint is None or not Path(checkpoint).is_file():
            raise BackboneError(
                f"the backbone is the checkpoint '{root.source}' (SHA-256 {root.sha256}), which is not at "
                "hand; pass its path as backbone (--backbone on the command line)."
            )
        found = _digest(checkpoint)
        if found != root.sha256:
            raise BackboneError(
                f"{checkpoint} has SHA-256 {found}, but the backbone is a file with {root.sha256}; "
                "pass that file."
            )
    prefix = TORCHVISION if origin.library == "torchvision" else ""
    return create(
        prefix + origin.name,
        num_classes=origin.num_classes,
        seed=root.seed,
        pretrained=root.kind == "pretrained",
        checkpoint=checkpoint if root.kind == "file" else None,
        **origin.kwargs,
    )


def skeleton(origin: Origin) -> nn.Module:
    """Build the model that ``origin`` describes without memory for its values (on the meta device)."""
    with torch.device("meta"):
        return _build(origin.library, origin.name, origin.num_classes, origin.kwargs, pretrained=False)


def _split(name: str) -> tuple[str, str]:
    if name.startswith(TORCHVISION):
        plain, known = name.removeprefix(TORCHVISION), torchvision.models.list_models()
        if plain not in known:
            raise UnknownNameError("model", name, [TORCHVISION + item for item in known])
        return "torchvision", plain
    if not name.startswith(HUB) and not timm.is_model(name):
        raise UnknownNameError("model", name, names(), "`sparsetune models` lists them all.")
    return "timm", name


def _build(
    library: str, name: str, num_classes: int | None, kwargs: dict[str, Any], pretrained: bool
) -> nn.Module:
    reserved = sorted(RESERVED & set(kwargs))
    if reserved:
        raise ConfigError(
            f"model argument '{reserved[0]}' cannot be passed to {name}; create() sets it itself."
        )
    arguments = dict(kwargs) if num_classes is None else {**kwargs, "num_classes": num_classes}
    try:
        if library == "torchvision":
            weights = "DEFAULT" if pretrained else None
            net: nn.Module = torchvision.models.get_model(name, weights=weights, **arguments)
        else:
            net = timm.create_model(name, pretrained=pretrained, **arguments)
    except SparsetuneError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        if pretrained:
            raise BackboneError(
                f"pretrained weights of {name} cannot be had ({reason}); fetch them once where there is a "
                "network, or leave pretrained out."
            ) from error
        raise ConfigError(f"{name} cannot be built with {arguments} ({reason}).") from error
    return net


def _draw_random(net: nn.Module, seen: Observation, seed: int) -> None:
    unknown = seen.unknown(net)
    if unknown:
        name, reason = next(iter(unknown.items()))
        raise BackboneError(
            f"the initial values of '{name}' cannot be rebuilt from a seed ({reason}); "
            "use pretrained weights or a checkpoint, or adapt_ a model that you built yourself."
        )
    tensors: dict[str, Tensor] = {**dict(net.named_buffers()), **dict(net.named_parameters())}
    with torch.no_grad():
        for name, law in seen.laws(net).items():
            tensors[name].copy_(draw(seed, name, tensors[name].shape, law))


def _load_checkpoint(net: nn.Module, path: Path) -> None:
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BackboneError(f"{path} is not a readable safetensors checkpoint ({error}).") from error
    heads = head_names(net)
    expected = net.state_dict()
    for name in list(found):
        under_head = any(name.startswith(head + ".") for head in heads)
        if under_head and name in expected and expected[name].shape != found[name].shape:
            found[name] = expected[name]
    for name, value in expected.items():
        if name not in found:
            raise BackboneError(
                f"{path} lacks '{name}', which the model expects with shape {tuple(value.shape)}."
            )
        if found[name].shape != value.shape:
            raise BackboneError(
                f"{path} holds '{name}' with shape {tuple(found[name].shape)}; "
                f"the model expects {tuple(value.shape)}."
            )
    extra = sorted(set(found) - set(expected))
    if extra:
        raise BackboneError(f"{path} holds '{extra[0]}', which the model does not have.")
    net.load_state_dict(found)


def _digest(path: str | Path) -> str:
    digest = sha256()
    try:
        with Path(path).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise BackboneError(f"checkpoint {path} cannot be read: {error.strerror}.") from error
    return digest.hexdigest()


def _published(net: nn.Module, library: str, name: str) -> str:
    config = getattr(net, "pretrained_cfg", None) or {}
    return str(config.get("hf_hub_id") or config.get("url") or f"{library}/{name}")


def _count(net: nn.Module) -> int:
    heads = [net.get_submodule(name) for name in head_names(net)]
    return int(getattr(heads[-1], "out_features", 0)) if heads else 0
