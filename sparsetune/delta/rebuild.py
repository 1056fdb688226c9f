"""From what a delta file says of itself to its model, distrusting every word."""

from __future__ import annotations

import json
import reprlib
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsetune.backbone import (
    GENERATOR_VERSION,
    HUB,
    Backbone,
    Origin,
    cached_weights,
    numbers,
    plain_arguments,
    recreate,
    skeleton,
)
from sparsetune.delta.header import Header
from sparsetune.errors import BackboneError, ConfigError, DeltaError, SparsetuneError, UnknownNameError
from sparsetune.host import CONFIG, json_from, size, taken_bytes, usable_bytes
from sparsetune.parts import Plan, plan, under
from sparsetune.sliced import adapt_, adapted, put_stored

LIBRARIES = ("sparsetune", "torch", "timm", "torchvision", "numpy", "safetensors")

USUAL = {
    "depth": 256,
    "embed_dim": 4096,
    "growth_rate": 512,
    "img_size": 1024,
    "in_chans": 1024,
    "num_heads": 256,
    "patch_size": 256,
    "width": 256,
}
"""Arguments of constructors whose cost is known, up to these numbers."""
FEW = 64
"""What all other numbers among the arguments may sum up to, for a model to be built without a trial."""
PATIENCE = 60
"""Seconds that such a trial may take."""
TOO_MUCH, WRONG = 3, 4
REFUSALS: dict[int, type[SparsetuneError]] = {TOO_MUCH: BackboneError, WRONG: ConfigError}
"""Exit code of a trial -> what sparsetune refuses the arguments with."""
TRIAL = (
    "import json, sys; given = json.load(sys.stdin); sys.path[:] = given.pop('path'); "
    "from sparsetune.delta.rebuild import try_out; try_out(**given)"
)
_TRIED: set[str] = set()
"""Architectures that were built well in a process of their own."""
_REBUILT: set[str] = set()
"""Models that this process found to be rebuilt rightly: fit asks before a training, and save after it."""


def rebuild(
    header: Header,
    path: str | Path,
    backbone: str | Path | None,
    allow_network: bool,
    max_bytes: int | None = None,
) -> nn.Module:
    """Build a header's model on its backbone, after all that can be checked without memory.

    Args:
        header: What the file at ``path`` says of itself; it may be a stranger's.
        path: The file.
        backbone: A checkpoint with the values of a ``file`` backbone, by default one of its name beside the
            file, where its run had it, or here; or of a ``pretrained`` one, which is then not fetched.
        allow_network: Let published weights and architectures be fetched; what the Hub's cache on this
            machine has is read without that.
        max_bytes: Memory that all of it may take; half of what is free if left out.

    Raises:
        SparsetuneError: When the model cannot be built, does not fit the file, or asks for too much.
    """
    root = header.backbone.root
    if header.library not in ("timm", "torchvision") or root.kind == "module":
        raise DeltaError(
            f"{path} is a delta of the user's own model {header.model}; "
            "build that and pass it as load(path, module=...)."
        )
    if root.kind == "pretrained" and backbone is None and not allow_network:
        backbone = cached_weights(root.source, root.revision)
    published = root.kind == "pretrained" and backbone is None
    if not allow_network and (published or header.model.startswith(HUB)):
        what = f"the pretrained weights {root.source}" if published else header.model
        raise BackboneError(
            f"{path} stands on {what}; pass allow_network=True (--allow-network) to let that be fetched"
            + (", or a checkpoint of them as backbone (--backbone)." if published else ".")
        )
    if root.generator != GENERATOR_VERSION:
        raise BackboneError(
            f"{path} was made with generator {root.generator} of seeded values and this sparsetune has "
            f"{GENERATOR_VERSION}; install sparsetune=={header.versions.get('sparsetune', 'unknown')}."
        )
    limit = usable_bytes(max_bytes)
    try:
        empty = described(header.origin, limit)
        made = plan(empty, header.learn)
    except (ConfigError, UnknownNameError) as error:
        _, wrote, here = _versions(header)
        if wrote != here:
            error.args = (f"{str(error).removesuffix('.')}; {other_versions(header)}.",)
        raise
    check_fit(header, made)
    _check_memory(header, empty, limit)
    if root.kind == "file" and backbone is None:
        backbone = _nearby(Path(path).parent, Path(root.source or "").name)
    return recreate(header.origin, backbone)


def _nearby(folder: Path, name: str) -> Path:
    """Where a checkpoint of that name lies: beside a delta, where the run says that wrote it, or here.

    What is found is believed by its checksum, and what is not found is named as if it lay beside the delta.
    """
    places = [folder / name, Path(name)]
    with suppress(OSError, ValueError, LookupError, TypeError):
        began = Path(json_from((folder / CONFIG).read_text())["init_from"])
        places.insert(1, began.parent / name)
    return next((place for place in places if place.is_file()), places[0])


def described(origin: Origin, limit: int | None) -> nn.Module:
    """Build a stranger's model without its values, within bounds of memory and time.

    Raises:
        SparsetuneError: As :func:`try_out_elsewhere` and ``skeleton`` raise.
    """
    try_out_elsewhere(origin, limit)
    return skeleton(origin, limit)


def try_out_elsewhere(origin: Origin, limit: int | None) -> None:
    """Build an unusual architecture in a process of its own first, whose memory and time have an end.

    A constructor may do anything with its arguments before torch hears of it.

    Args:
        origin: How the model was made.
        limit: Bytes that the process may take beyond those that it starts with.

    Raises:
        BackboneError: When that process did not come to an end in time, or was out of memory.
    """
    kwargs = plain_arguments(origin.name, origin.kwargs)
    unusual = [value for name, value in kwargs.items() if not _is_usual(name, value)]
    words = {
        "library": origin.library,
        "name": origin.name,
        "kwargs": kwargs,
        "num_classes": origin.num_classes,
    }
    key = json.dumps(words, sort_keys=True)
    if sum(numbers(unusual)) <= FEW or key in _TRIED or not sys.executable:
        return
    given = json.dumps({"words": words, "limit": limit, "path": sys.path})
    what = f"{origin.name} with {reprlib.repr(kwargs)}"
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", TRIAL], input=given, capture_output=True, text=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired as error:
        raise BackboneError(
            f"{what} takes more than {PATIENCE} s to build; do not load the file unless you know its author."
        ) from error
    if done.returncode in REFUSALS:
        raise REFUSALS[done.returncode](" ".join(done.stdout.split()))
    if done.returncode:
        raise BackboneError(
            f"{what} could not be built in a process that may take "
            f"{'any memory' if limit is None else size(limit)} (exit code {done.returncode}); "
            "do not load the file unless you know its author."
        )
    _TRIED.add(key)


def try_out(words: dict[str, Any], limit: int | None) -> None:
    """Build the model that ``words`` describe, with limited memory, and print what is wrong with it."""
    with suppress(ImportError, ValueError):
        import resource  # there is none on Windows

        taken = taken_bytes("VmData")
        if limit is not None and taken is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (taken + limit, taken + limit))
    try:
        skeleton(Origin(**words, backbone=Backbone(kind="file")), limit)
    except UnknownNameError:
        return  # whoever asks has registered it
    except SparsetuneError as error:
        print(error)
        sys.exit(TOO_MUCH if isinstance(error, BackboneError) else WRONG)


def _is_usual(name: str, value: object) -> bool:
    return isinstance(value, (int, float)) and abs(value) <= USUAL.get(name, 0)


def check_rebuilds(
    origin: Origin, made: Plan, fingerprint: str, dtype: torch.dtype, stored: Mapping[str, Tensor]
) -> None:
    """Make sure that ``origin`` gives a model's layers and, if from a seed, its frozen values.

    Layers may be replaced after ``create``, and values trained or rounded before ``adapt_``.

    Args:
        origin: How the model was made, and the backbone that it is said to stand on.
        made: Its plan.
        fingerprint: Of its frozen values.
        dtype: Of its frozen values.
        stored: Frozen values that the file holds.

    Raises:
        DeltaError: When they differ.
    """
    key = repr((origin, made.learn, made.parts, fingerprint, dtype))
    if origin.name.startswith(HUB) or key in _REBUILT:
        return
    drawn = origin.backbone.root.kind == "seed"
    again = recreate(origin).to(dtype) if drawn else skeleton(origin)
    if plan(again, made.learn).parts != made.parts:
        what = f"the layers are not those of {origin.name}"
    else:
        put_stored(again, made, stored)
        if not drawn or adapted(adapt_(again, made.learn)).fingerprint == fingerprint:
            _REBUILT.add(key)
            return
        what = f"the frozen values are not those of {origin.backbone.describe()}"
    raise DeltaError(
        f"{what}, so no file could give this model back; adapt_ a model as create() made it, or call "
        "adapt_(net, learn, Backbone.from_module(net)) and keep its whole checkpoint."
    )


def check_fit(header: Header, made: Plan, heads: tuple[str, ...] = (), classes: int = 0) -> None:
    """Compare name, shape and kind of every tensor of a file with what a plan expects.

    Args:
        header: What the file says of itself.
        made: The plan of the model that it is for.
        heads: Modules whose number of outputs may follow from the file's class count instead.
        classes: The class count of the plan's model.

    Raises:
        DeltaError: When one is missing, too many, or another.
    """
    expected = {name: (shape, torch.float32) for part in made for name, shape in part.learned.items()}
    expected |= {buffer.name: (buffer.shape, buffer.dtype) for buffer in made.buffers}
    for part in made:
        if part.k and part.shape and classes and under(part.homes[0][0], heads):
            outputs = part.shape[0] * header.num_classes // classes
            expected[part.name] = (outputs, *part.shape[1:]), torch.float32
    found = {entry.name: entry for entry in header.entries}
    expected |= {
        part.frozen_name: (part.frozen_shape, torch.float32)
        for part in made
        if not part.whole and part.frozen_name in found
    }
    for name, (shape, dtype) in expected.items():
        if name not in found:
            problem = f"it lacks '{name}', which {header.model} expects with shape {shape}"
        elif found[name].shape != shape:
            problem = f"it holds '{name}' with shape {found[name].shape}; {header.model} expects {shape}"
        elif not _same_kind(found[name].type, dtype):
            problem = f"it holds '{name}' as {found[name].dtype}; {header.model} expects {dtype}"
        else:
            continue
        raise DeltaError(f"{problem}; {other_versions(header)}.")
    for name in found.keys() - expected.keys():
        raise DeltaError(f"it holds '{name}', which {header.model} does not learn; {other_versions(header)}.")


def other_versions(header: Header) -> str:
    """Return a remedy: the library's version that wrote a file, if it is not the one here."""
    library, wrote, here = _versions(header)
    if wrote != here:
        return f"it was saved with {library} {wrote} and this is {here}: install {library}=={wrote}"
    return f"it was saved with this {library} ({here}), so the file or the model is not the right one"


def same_backbone(header: Header) -> str:
    """Return a remedy for a backbone with another fingerprint than the header's."""
    root = header.backbone.root
    if root.kind == "module":
        return f"pass a {header.model} with the values that it held when it was adapted"
    if root.kind == "file":
        return f"pass the checkpoint with SHA-256 {root.sha256}, or another one with its values"
    return other_versions(header)


def _versions(header: Header) -> tuple[str, str, str]:
    """The library that has the model, its version that wrote the file, and its version here."""
    library = header.library if header.library in LIBRARIES else "timm"
    return library, header.versions.get(library, "unknown"), version(library)


def _same_kind(found: torch.dtype, expected: torch.dtype) -> bool:
    """Whether values may be put in place of others: any floating dtype for another, else the same."""
    return found == expected or (found.is_floating_point and expected.is_floating_point)


def _check_memory(header: Header, empty: nn.Module, limit: int | None) -> None:
    """Refuse what would not fit, in the dtype of the file, with its values and the largest tensor twice."""
    width = max(4, getattr(torch, header.dtype).itemsize)  # it is built in float32
    tensors = {id(value): value for value in (*empty.parameters(), *empty.buffers())}.values()
    sizes = [v.numel() * (width if v.is_floating_point() else v.element_size()) for v in tensors]
    needed = sum(sizes) + max(sizes, default=0) + _value_bytes(header)
    _check_bytes(f"it asks for a {type(empty).__name__} that takes", needed, limit)


def check_values(header: Header, max_bytes: int | None) -> None:
    """Refuse a file whose values would not fit into memory; ``max_bytes`` is as of :func:`rebuild`.

    Raises:
        BackboneError: When they would not.
    """
    _check_bytes("it holds values that take", _value_bytes(header), usable_bytes(max_bytes))


def _value_bytes(header: Header) -> int:
    """How much memory a file's values take once they are read."""
    return sum(entry.numel * entry.type.itemsize for entry in header.entries)


def _check_bytes(what: str, needed: int, limit: int | None) -> None:
    if limit is not None and needed > limit:
        raise BackboneError(
            f"{what} {size(needed)}, more than the {size(limit)} that it may take here; load it on a "
            "larger machine, or allow more (max_bytes, --max-memory)."
        )
