"""What the zoo run checks of one model: two functions, each for a process of its own."""

from __future__ import annotations

import copy
import resource
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from signal import ITIMER_PROF, SIGPROF, setitimer, signal
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import sparsetune as st
from sparsetune.backbone import TORCHVISION, origin_of
from sparsetune.parts import head_names, is_norm, is_sliceable

LEARN = st.Learn(fraction=0.25)
MOST_FOR_A_STEP = 40_000_000
"""Largest number of parameters with which a training step is affordable."""
MOST_FOR_A_GRADIENT = 250_000_000
LARGEST_SIDE, SMALLER_SIDE = 512, 336
"""Pixels: gradients of models for larger pictures than the first are checked at the second."""
STEP_SECONDS = 60
FLOOR = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Part of a model's largest gradient below which a parameter's is taken for rounding."""

Row = dict[str, Any]


def save_row(name: str, path: Path, covered: Iterable[str]) -> Row:
    """Create, plan, check gradients, train a step, save; return the row so far, with digests.

    Args:
        name: The model.
        path: Where its delta goes.
        covered: Kinds of layer whose gradients need no check any more.
    """
    start = time.perf_counter()
    net = st.create(name, seed=0)
    made = st.plan(net, LEARN)
    form = _form(net)
    buffers = sum(buffer.nbytes for buffer in made.buffers)
    row: Row = {
        "parameters": made.total_parameters,
        "learned": made.learned_parameters,
        "head": list(head_names(net)),
        "classes": origin_of(net).num_classes,  # type: ignore[union-attr]
        "buffer_bytes": buffers,
        "other_buffer_bytes": buffers - _norm_bytes(net),
        "stored_bytes": made.stored_bytes,
    }
    kinds = layer_kinds(net) - set(covered)
    if kinds and made.total_parameters <= MOST_FOR_A_GRADIENT:
        row |= _gradient(_smaller(net, name), name) | {"kinds": sorted(kinds)}
    st.adapt_(net, LEARN)
    _noise(net)
    row["moved"] = "by a step"
    try:
        if made.total_parameters > MOST_FOR_A_STEP:
            raise MemoryError("too large")
        with _at_most(STEP_SECONDS):
            _step(net, name)
    except Exception as error:
        row["moved"] = "by noise: " + one_line(error)
        net.zero_grad(set_to_none=True)
    st.save(net, path)
    row["file_bytes"] = path.stat().st_size
    row["ratio"] = round(row["file_bytes"] / max(made.delta_bytes, 1), 4)
    row |= digests(net, name)
    row["merged"] = _form(net) == form
    return row | {"seconds": round(time.perf_counter() - start, 1), "peak_mib": _peak()}


def load_row(name: str, path: Path) -> Row:
    """Load the delta; return its digests as :func:`save_row` does."""
    start = time.perf_counter()
    found = digests(st.load(path), name)
    return found | {"load_seconds": round(time.perf_counter() - start, 1), "load_peak_mib": _peak()}


def digests(net: nn.Module, name: str) -> Row:
    """SHA-256 of an adapted model's outputs, then of every parameter and buffer once it is merged."""
    with torch.no_grad():
        try:
            outputs: Any = net.eval()(*inputs(net, name, batch=1))
            logits = _digest(enumerate(leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)))
        except Exception as error:
            logits = "none: " + one_line(error)
    st.merge_(net)
    return {"logits": logits, "values": _digest((*net.named_parameters(), *net.named_buffers()))}


def gradient_error(net: nn.Module, name: str, dtype: torch.dtype) -> float:
    """Largest difference between the adapted and the plain net's gradients, relative to each one's largest.

    Where that is nothing but rounding (a bias that a norm takes away again), it is relative to a small part
    of the largest of all.

    Both compute in training mode with the same random numbers, from values moved a little, so that nothing
    that starts at zero hides a gradient. The plain net's gradient is whole; that of the net with all else
    detached is the slice of it.

    Raises:
        ValueError: When no learned value has a gradient.
    """
    plain = copy.deepcopy(net).to(dtype)
    _noise(plain)
    ours = st.adapt_(copy.deepcopy(plain), LEARN)
    made = st.adapted(ours).plan
    for each in (plain, ours):
        torch.manual_seed(0)
        _loss(each.train(), name, dtype).backward()
    floor = FLOOR[dtype] * max(float(p.grad.abs().max()) for p in plain.parameters() if p.grad is not None)
    if not 0 < floor < torch.inf:
        raise ValueError("no gradient, or one that is not finite")
    errors = []
    found = dict(ours.named_parameters())
    for part in (part for part in made if part.k):
        whole, sliced = plain.get_parameter(part.name).grad, found[part.name].grad
        expected = (
            torch.zeros(()) if whole is None else whole.narrow(part.dim, 0, part.k) if part.shape else whole
        )
        difference = (expected - (0 if sliced is None else sliced)).abs().max()
        errors.append(difference / max(float(expected.abs().max()), floor))
    return float(torch.stack(errors).max())


def layer_kinds(net: nn.Module) -> set[str]:
    """Each kind of layer with parameters: its class, and for a sliced layer the settings that matter."""
    return {
        _kind(module) for module in net.modules() if any(v is not None for v in module._parameters.values())
    }


def _kind(module: nn.Module) -> str:
    words = [type(module).__name__]
    if not is_sliceable(module):
        return words[0]
    groups = getattr(module, "groups", 1)
    if groups > 1:
        words.append("depthwise" if groups == getattr(module, "in_channels", 0) else "grouped")
    kernel, stride = getattr(module, "kernel_size", ()), getattr(module, "stride", ())
    words += ["pointwise"] if kernel and set(kernel) == {1} else []
    words += ["strided"] if stride and max(stride) > 1 else []
    words += ["dilated"] if max(getattr(module, "dilation", (1,))) > 1 else []
    padding = getattr(module, "padding", None)
    words += [f"padding {padding}"] if isinstance(padding, str) else []
    words += [module.padding_mode] if getattr(module, "padding_mode", "zeros") != "zeros" else []
    words += ["bias"] if isinstance(module._parameters.get("bias"), nn.Parameter) else []
    return " ".join(words)


def inputs(net: nn.Module, name: str, batch: int, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    """Random pictures of the model's own size, in the form that it takes."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator).to(dtype)

    if not name.startswith(TORCHVISION):
        channels, height, width = getattr(net, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
        return (random(batch, channels, height, width),)
    plain = name.removeprefix(TORCHVISION)
    module = torchvision.models.get_model_builder(plain).__module__
    if ".detection" in module:
        if not hasattr(net.transform, "fixed_size") or net.transform.fixed_size is None:
            net.transform.min_size = (224,)  # not their own 800, for which there is no time
        return ([random(3, 224, 256) for _ in range(batch)],)
    if ".optical_flow" in module:
        return random(batch, 3, 128, 128), random(batch, 3, 128, 128)
    if ".video" in module:
        side = 224 if plain.startswith(("mvit", "swin3d", "s3d")) else 112
        return (random(batch, 3, 16, side, side),)
    side = 299 if plain.endswith("inception_v3") else 224
    return (random(batch, 3, side, side),)


def one_line(error: BaseException) -> str:
    """An exception in at most 200 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _loss(net: nn.Module, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    given = inputs(net, name, 2, dtype)
    if isinstance(given[0], list):
        given = (*given, _targets(len(given[0]), dtype))
    leaves = [leaf for leaf in tree_leaves(net(*given)) if isinstance(leaf, Tensor) and leaf.requires_grad]
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(leaf.shape, generator=generator).to(leaf.dtype) for leaf in leaves]
    return torch.stack([(leaf * weight).mean() for leaf, weight in zip(leaves, weights, strict=True)]).sum()


def _targets(batch: int, dtype: torch.dtype) -> list[dict[str, Tensor]]:
    boxes = torch.tensor([[20.0, 30.0, 120.0, 160.0], [90.0, 40.0, 220.0, 200.0]], dtype=dtype)
    masks = torch.zeros(2, 224, 256, dtype=torch.uint8)
    masks[:, 50:150, 100:110] = 1
    points = torch.cat([boxes[:, None, :2].expand(2, 17, 2) + 15, torch.ones(2, 17, 1)], 2).float()
    labels = torch.ones(2, dtype=torch.int64)
    return [{"boxes": boxes, "labels": labels, "masks": masks, "keypoints": points} for _ in range(batch)]


def _step(net: nn.Module, name: str) -> None:
    """One step of SGD with momentum and decay; every learned value and statistic may move."""
    torch.manual_seed(2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01)
    _loss(net.train(), name).backward()
    optimizer.step()
    optimizer.zero_grad()


def _noise(net: nn.Module) -> None:
    """Move every parameter a little."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in net.parameters():
            value.add_(torch.empty_like(value).uniform_(-0.01, 0.01, generator=generator))


def _form(net: nn.Module) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    return [(key, tuple(value.shape), value.dtype) for key, value in net.state_dict().items()]


def _norm_bytes(net: nn.Module) -> int:
    """Bytes of the buffers of normalisation layers."""
    kept = set(net.state_dict())
    return sum(
        value.nbytes
        for name, module in net.named_modules()
        if is_norm(module)
        for leaf, value in module.named_buffers(recurse=False)
        if f"{name}.{leaf}" in kept
    )


def _digest(tensors: Iterable[tuple[Any, Tensor]]) -> str:
    digest = sha256()
    for name, value in tensors:
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _gradient(net: nn.Module, name: str, dtype: torch.dtype = torch.float64) -> Row:
    """The check in float64; in float32 where a model's own code cannot."""
    try:
        with _at_most(2 * STEP_SECONDS):
            return {"gradient": gradient_error(net, name, dtype), "gradient_dtype": str(dtype)[6:]}
    except Exception as error:
        if dtype == torch.float64:
            return _gradient(net, name, torch.float32)
        return {"gradient_failed": one_line(error)}


def _smaller(net: nn.Module, name: str) -> nn.Module:
    """The model for smaller pictures, where its own take more memory than a gradient check can have."""
    config = getattr(net, "pretrained_cfg", {})
    if config.get("input_size", (0,))[-1] <= LARGEST_SIDE:
        return net
    try:
        smaller = st.create(name, seed=0, img_size=SMALLER_SIDE)
    except st.SparsetuneError:
        return net
    smaller.pretrained_cfg = {**config, "input_size": (3, SMALLER_SIDE, SMALLER_SIDE)}
    return smaller


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"longer than {seconds} s of work")

    signal(SIGPROF, stop)
    setitimer(ITIMER_PROF, seconds)
    try:
        yield
    finally:
        setitimer(ITIMER_PROF, 0)
