"""``follow``: run a plain model once and note what becomes of each channel on its way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from sparsetune.errors import ConfigError, SparsetuneError
from sparsetune.host import reason

Values = Mapping[str, Tensor]
"""Parameters and buffers by name."""
Step = Callable[[list[Tensor], Values], Tensor]
"""From the constants so far and the model's values to the next constants ``(1, channels)``."""


@dataclass(frozen=True)
class Read:
    """A convolution without groups, or a linear map: it sums over all channels of its input.

    Attributes:
        weight: Name of its weight.
        slot: Place of the input's constants.
        flows: Of the input.
    """

    weight: str
    slot: int
    flows: list[int]


@dataclass(frozen=True)
class Norm:
    """A batch norm: names of its tensors, ``None`` for those that it lacks, and its input as in ``Read``."""

    weight: str | None
    bias: str | None
    mean: str | None
    var: str | None
    slot: int
    flows: list[int]


@dataclass
class Channels:
    """What a run of a model tells.

    Attributes:
        dims: Tensor's name -> for each of its leading dimensions that runs over channels, their flows.
        live: Flows that depend on the picture, or must be computed though they do not.
        links: Flows that stay or go together.
        fixed: Flows that a convolution with groups reads as they are.
        reads: Every convolution without groups and every linear map.
        norms: Every batch norm.
        steps: What becomes of constants on their way, as functions of the model's values.
    """

    dims: dict[str, tuple[list[int], ...]] = field(default_factory=dict)
    live: set[int] = field(default_factory=set)
    links: list[list[int]] = field(default_factory=list)
    fixed: set[int] = field(default_factory=set)
    reads: list[Read] = field(default_factory=list)
    norms: list[Norm] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    _parents: list[int] = field(default_factory=list)

    @property
    def flows(self) -> range:
        """All flows."""
        return range(len(self._parents))

    def root(self, flow: int) -> int:
        """Return the flow that stands for all that have become one with ``flow``."""
        while self._parents[flow] != flow:
            self._parents[flow] = flow = self._parents[self._parents[flow]]
        return flow

    def fresh(self, count: int, live: int) -> list[int]:
        """Return new flows, of which the first ``live`` depend on the picture."""
        start = len(self._parents)
        flows = list(range(start, start + count))
        self._parents += flows
        self.live.update(flows[:live])
        return flows

    def join(self, ours: Sequence[int], theirs: Sequence[int]) -> None:
        """Make flows one, pair by pair."""
        for a, b in zip(ours, theirs, strict=True):
            self._parents[self.root(b)] = self.root(a)

    def hold(self, name: str, *dims: list[int]) -> None:
        """Note over which flows the leading dimensions of a tensor run."""
        for known, flows in zip(self.dims.setdefault(name, dims), dims, strict=True):
            self.join(known, flows)

    def constants(self, values: Values) -> list[Tensor]:
        """Return the constants ``(1, channels)`` at every place, differentiable in ``values``.

        Numbers at the places of live channels mean nothing.
        """
        found: list[Tensor] = []
        for step in self.steps:
            found.append(step(found, values))
        return found


CONVOLUTIONS = {"conv1d", "conv2d", "conv3d", "linear"}
ACTIVATIONS = {
    *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "silu", "mish", "gelu", "softplus"),
    *("hardtanh", "hardswish", "hardsigmoid", "sigmoid", "tanh"),
}
POINTWISE = ACTIVATIONS | {"add", "sub", "mul"}
OPERATORS = {"iadd": "add", "radd": "add", "isub": "sub", "imul": "mul", "rmul": "mul"}
SAME = {"clone", "contiguous", "detach", "to", "mean", "amax"} | {
    f"{kind}_pool{n}d" for kind in ("max", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)
}
"""Operations that leave a constant channel what it is, as long as they leave the channels."""
AVERAGES = {"avg_pool1d", "avg_pool2d", "avg_pool3d"}
DROPOUTS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout"}
RESHAPES = {"flatten", "reshape", "view", "squeeze", "unsqueeze"}
FORGETS = {"new_empty", "new_zeros", "new_ones", "new_full", "empty_like", "zeros_like", "ones_like"}
"""Operations whose result does not depend on the values."""

REMEDY = "keep the network as it is, or write it whole with sparsetune merge"

ARGUMENTS = {
    "conv": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "batch_norm": ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    "cat": ("tensors", "dim"),
    "average": ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"),
    "dropout": ("input", "p", "training", "inplace"),
}


def follow(net: nn.Module, inputs: Tensor, filters: Mapping[str, int]) -> Channels:
    """Run ``net`` and follow its channels.

    Args:
        net: A plain model, in the mode in which it shall be followed; its running statistics may move.
        inputs: A batch ``(N, channels, ...)`` of two or more.
        filters: Weight's name -> how many filters, the first ones, are not zero; all, where it is missing.

    Raises:
        ConfigError: When it cannot take the batch, or does what cannot be followed; the sentence names the
            module.
    """
    run = _Following(net, filters)
    handles = []
    for name, module in net.named_modules():
        handles.append(module.register_forward_pre_hook(run.entering(name)))
        handles.append(module.register_forward_hook(run.leaving))
    try:
        count = inputs.shape[1]
        run.track(inputs, run.found.fresh(count, live=count), lambda *_: inputs.new_zeros(1, count))
        with torch.no_grad(), run:
            outputs = net(inputs)
    except SparsetuneError:
        raise
    except Exception as error:
        shape = "x".join(map(str, inputs.shape))
        raise ConfigError(
            f"this {type(net).__name__} cannot take a batch of {shape} ({reason(error)}); "
            "pass one that it takes."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if id(outputs) not in run.tracks:
        raise ConfigError(
            f"this {type(net).__name__} gives a {type(outputs).__name__} that slim cannot follow; "
            "it takes models that give one tensor."
        )
    run.found.live.update(run.tracks[id(outputs)].flows)
    return run.found


@dataclass(frozen=True)
class _Track:
    """A tensor of the run; it is kept, so that its id stays its own."""

    flows: list[int]
    slot: int
    tensor: Tensor


@dataclass(frozen=True)
class _Slot:
    """Stands in a call for the constants at a place."""

    number: int


class _Following(TorchFunctionMode):
    """Sees every call of torch's functions and methods."""

    def __init__(self, net: nn.Module, filters: Mapping[str, int]) -> None:
        super().__init__()
        self.found, self.filters = Channels(), filters
        self.tracks: dict[int, _Track] = {}
        self.inside = [type(net).__name__]
        self.names = {id(value): name for name, value in (*net.named_parameters(), *net.named_buffers())}

    def entering(self, name: str) -> Callable[..., None]:
        return lambda module, _: self.inside.append(f"{name} ({type(module).__name__})")

    def leaving(self, *_: Any) -> None:
        self.inside.pop()

    def track(self, tensor: Tensor, flows: list[int], step: Step) -> None:
        self.tracks[id(tensor)] = _Track(flows, len(self.found.steps), tensor)
        self.found.steps.append(step)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = [self.tracks[id(value)] for value in tree_leaves((args, kwargs)) if id(value) in self.tracks]
        out = func(*args, **kwargs)
        name = getattr(func, "__name__", str(func)).strip("_")
        if before and name not in FORGETS and any(isinstance(value, Tensor) for value in tree_leaves(out)):
            self._hand_on(OPERATORS.get(name, name), args, kwargs, before, out)
        return out

    def _hand_on(self, name: str, args: Any, kwargs: Any, before: list[_Track], out: Any) -> None:
        x = before[0]
        shape = x.tensor.shape
        if not isinstance(out, Tensor):
            raise self._unknown(name)
        if name in CONVOLUTIONS and (name != "linear" or len(shape) == 2):
            self._convolution(_bound("conv", args, kwargs), x, out)
        elif name == "batch_norm":
            self._batch_norm(_bound("batch_norm", args, kwargs), x, out)
        elif name in POINTWISE:
            self._pointwise(name, args, kwargs, before, out)
        elif name in ("cat", "concat"):
            self._cat(_bound("cat", args, kwargs), before, out)
        elif name in RESHAPES and out.shape == (shape[0], prod(shape[1:])):
            times = prod(shape[2:])
            flows = [flow for flow in x.flows for _ in range(times)]
            self.track(out, flows, lambda found, _: found[x.slot].repeat_interleave(times, 1))
        elif name in SAME | AVERAGES | DROPOUTS | RESHAPES | {"pad"} and out.shape[:2] == shape[:2]:
            if self._spoils(name, args, kwargs):
                self.found.live.update(x.flows)
            self.track(out, x.flows, lambda found, _: found[x.slot])
        else:
            raise self._unknown(name)

    def _spoils(self, name: str, args: Any, kwargs: Any) -> bool:
        """Whether a constant is no longer the same number at every position."""
        if name in AVERAGES:
            bound = _bound("average", args, kwargs)
            padded = bound.get("padding", 0) not in (0, (0,), (0, 0), (0, 0, 0))
            return padded and bool(bound.get("count_include_pad", True))
        if name in DROPOUTS:
            bound = _bound("dropout", args, kwargs)
            return bool(bound.get("training", True)) and bound.get("p", 0.5) > 0
        return name == "pad"

    def _convolution(self, bound: dict[str, Any], x: _Track, out: Tensor) -> None:
        weight, groups = self._name(bound["weight"]), bound.get("groups", 1)
        count = len(bound["weight"])
        if weight in self.found.dims:
            raise ConfigError(f"{self.inside[-1]} is used twice, which slim cannot follow; {REMEDY}.")
        flows = self.found.fresh(count, live=self.filters.get(weight, count))
        if groups == 1:
            self.found.reads.append(Read(weight, x.slot, x.flows))
            self.found.hold(weight, flows, x.flows)
        else:
            self.found.hold(weight, flows)
            self.found.fixed.update(x.flows)
            links = zip(_pieces(flows, groups), _pieces(x.flows, groups), strict=True)
            self.found.links += [[*outputs, *inputs] for outputs, inputs in links]
        if bound.get("bias") is not None:
            self.found.hold(self._name(bound["bias"]), flows)
        self.track(out, flows, lambda _, values: values[weight].new_zeros(1, count))

    def _batch_norm(self, bound: dict[str, Any], x: _Track, out: Tensor) -> None:
        keys = ("weight", "bias", "running_mean", "running_var")
        weight, bias, mean, var = (
            self._name(bound[key]) if bound.get(key) is not None else None for key in keys
        )
        for name in (weight, bias, mean, var):
            if name is not None:
                self.found.hold(name, x.flows)
        self.found.norms.append(Norm(weight, bias, mean, var, x.slot, x.flows))
        by_batch, eps = bound.get("training", False), bound.get("eps", 1e-5)

        def step(found: list[Tensor], values: Values) -> Tensor:
            if by_batch or mean is None or var is None:
                normal = torch.zeros_like(found[x.slot])
            else:
                normal = (found[x.slot] - values[mean]) * (values[var] + eps).rsqrt()
            scaled = normal if weight is None else normal * values[weight]
            return scaled if bias is None else scaled + values[bias]

        self.track(out, x.flows, step)

    def _pointwise(self, name: str, args: Any, kwargs: Any, before: list[_Track], out: Tensor) -> None:
        slots = {id(track.tensor): track.slot for track in before}
        x, *others = before
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor) and id(value) not in slots and value.numel() > 1:
                raise self._unknown(name)
        for other in others:
            if len(other.flows) != len(x.flows) or other.tensor.dim() != x.tensor.dim():
                raise self._unknown(name)
            self.found.join(x.flows, other.flows)
        function = getattr(F, name, None) or getattr(torch, name)
        named = {key: value for key, value in kwargs.items() if key != "inplace"}
        call = tree_map(lambda value: _Slot(slots[id(value)]) if id(value) in slots else value, (args, named))

        def step(found: list[Tensor], _: Values) -> Tensor:
            args, named = tree_map(
                lambda value: found[value.number] if isinstance(value, _Slot) else value, call
            )
            made: Tensor = function(*args, **named)
            return made

        self.track(out, x.flows, step)

    def _cat(self, bound: dict[str, Any], before: list[_Track], out: Tensor) -> None:
        if bound.get("dim", 0) not in (1, 1 - out.dim()) or len(before) != len(bound["tensors"]):
            raise self._unknown("cat")
        slots = [track.slot for track in before]
        flows = [flow for track in before for flow in track.flows]
        self.track(out, flows, lambda found, _: torch.cat([found[slot] for slot in slots], 1))

    def _name(self, tensor: Tensor) -> str:
        if id(tensor) not in self.names:
            raise ConfigError(
                f"{self.inside[-1]} computes its weights from others, which slim cannot follow; {REMEDY}."
            )
        return self.names[id(tensor)]

    def _unknown(self, name: str) -> ConfigError:
        return ConfigError(
            f"{self.inside[-1]} applies '{name}', through which slim cannot follow channels; {REMEDY}."
        )


def _bound(kind: str, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip(ARGUMENTS[kind], args, strict=False)), **kwargs}


def _pieces(flows: list[int], count: int) -> list[list[int]]:
    size = len(flows) // count
    return [flows[start : start + size] for start in range(0, len(flows), size)]
