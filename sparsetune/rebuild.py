"""From what a delta file says of itself to its model, distrusting every word."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from sparsetune.adapt import adapt_, adapted
from sparsetune.backbone import Origin
from sparsetune.errors import BackboneError, DeltaError
from sparsetune.header import DTYPES, Header
from sparsetune.plan import Plan, plan
from sparsetune.seeding import GENERATOR_VERSION
from sparsetune.zoo import HUB, recreate, skeleton

LIBRARIES = ("sparsetune", "torch", "timm", "torchvision", "numpy", "safetensors")


def rebuild(header: Header, path: str | Path, backbone: str | Path | None, allow_network: bool) -> nn.Module:
    """Build a header's model on its backbone, after all that can be checked without memory.

    Args:
        header: What the file at ``path`` says of itself; it may be a stranger's.
        path: The file.
        backbone: The checkpoint of a ``file`` backbone; by default one of its name beside the file.
        allow_network: Let published weights and architectures be fetched.

    Raises:
        SparsetuneError: When the model cannot be built, does not fit the file, or asks for too much.
    """
    root = header.backbone.root
    if header.library not in ("timm", "torchvision") or root.kind == "module":
        raise DeltaError(
            f"{path} is a delta of the user's own model {header.model}; "
            "build that and pass it as load(path, module=...)."
        )
    if not allow_network and (root.kind == "pretrained" or header.model.startswith(HUB)):
        what = f"the pretrained weights {root.source}" if root.kind == "pretrained" else header.model
        raise BackboneError(
            f"{path} stands on {what}; pass allow_network=True (--allow-network) to let that be fetched."
        )
    if root.generator != GENERATOR_VERSION:
        raise BackboneError(
            f"{path} was made with generator {root.generator} of seeded values and this sparsetune has "
            f"{GENERATOR_VERSION}; install sparsetune=={header.versions.get('sparsetune', 'unknown')}."
        )
    empty = skeleton(header.origin)
    check_fit(header, plan(empty, header.learn))
    _check_memory(empty)
    if root.kind == "file" and backbone is None:
        backbone = Path(path).parent / Path(root.source or "").name
    return recreate(header.origin, backbone)


def check_rebuilds(origin: Origin, made: Plan, fingerprint: str, dtype: torch.dtype) -> None:
    """Make sure that ``origin`` gives a model's layers and, if from a seed, its frozen values.

    Layers may be replaced after ``create``, and values trained or rounded before ``adapt_``.

    Args:
        origin: How the model was made, and the backbone that it is said to stand on.
        made: Its plan.
        fingerprint: Of its frozen values.
        dtype: Of its frozen values.

    Raises:
        DeltaError: When they differ.
    """
    if origin.name.startswith(HUB):
        return
    drawn = origin.backbone.root.kind == "seed"
    again = recreate(origin).to(dtype) if drawn else skeleton(origin)
    if plan(again, made.learn).parts != made.parts:
        what = f"the layers are not those of {origin.name}"
    elif drawn and adapted(adapt_(again, made.learn)).fingerprint != fingerprint:
        what = f"the frozen values are not those of {origin.backbone.describe()}"
    else:
        return
    raise DeltaError(
        f"{what}, so no file could give this model back; adapt_ a model as create() made it, or call "
        "adapt_(net, learn, Backbone.from_module(net)) and keep its whole checkpoint."
    )


def check_fit(header: Header, made: Plan) -> None:
    """Compare name, shape and kind of every tensor of a file with what a plan expects.

    Raises:
        DeltaError: When one is missing, too many, or another.
    """
    expected = {part.name: (part.learned_shape, torch.float32) for part in made if part.k}
    expected |= {buffer.name: (buffer.shape, buffer.dtype) for buffer in made.buffers}
    found = {entry.name: entry for entry in header.entries}
    for name, (shape, dtype) in expected.items():
        if name not in found:
            problem = f"it lacks '{name}', which {header.model} expects with shape {shape}"
        elif found[name].shape != shape:
            problem = f"it holds '{name}' with shape {found[name].shape}; {header.model} expects {shape}"
        elif not _same_kind(DTYPES[found[name].dtype], dtype):
            problem = f"it holds '{name}' as {found[name].dtype}; {header.model} expects {dtype}"
        else:
            continue
        raise DeltaError(f"{problem}; {other_versions(header)}.")
    for name in found.keys() - expected.keys():
        raise DeltaError(f"it holds '{name}', which {header.model} does not learn; {other_versions(header)}.")


def other_versions(header: Header) -> str:
    """Return a remedy: the library's version that wrote a file, if it is not the one here."""
    library = header.library if header.library in LIBRARIES else "timm"
    wrote, here = header.versions.get(library, "unknown"), version(library)
    if wrote != here:
        return f"it was saved with {library} {wrote} and this is {here}: install {library}=={wrote}"
    return f"it was saved with this {library} ({here}), so the file or the model is not the right one"


def _same_kind(found: torch.dtype, expected: torch.dtype) -> bool:
    """Whether values may be put in place of others: any floating dtype for another, else the same."""
    return found == expected or (found.is_floating_point and expected.is_floating_point)


def _check_memory(empty: nn.Module) -> None:
    needed = sum(value.numel() * value.element_size() for value in empty.state_dict().values())
    try:
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return
    if needed > max(available, total // 2):
        raise BackboneError(
            f"it asks for a {type(empty).__name__} of {needed / 2**30:.1f} GiB, more than this machine's "
            f"{available / 2**30:.1f} GiB of free memory; load it on a larger one."
        )
