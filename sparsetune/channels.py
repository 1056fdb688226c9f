"""``follow``: run a plain model once and learn where each channel comes from and who reads it.

A channel that a zero filter gives is a constant, whatever the picture: the same number at every position.
Pointwise operations, batch norm, pooling and sums of such channels give constants again. So each tensor on
its way is followed as a list of *flows*, one a channel: a number that a convolution or linear map gives out
and that everything else hands on. Beside the pictures a second, tiny computation is recorded: what a constant
becomes on its way, as functions of the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from sparsetune.errors import ConfigError

Values = Mapping[str, Tensor]
"""Parameters and buffers by name."""
Step = Callable[[list[Tensor], Values], Tensor]
"""From the constants so far and the model's values to the next constants ``(1, channels)``."""

POINTWISE = frozenset(
    "relu relu6 leaky_relu elu celu selu silu mish gelu hardtanh hardswish hardsigmoid sigmoid logsigmoid "
    "softplus softsign tanh clamp abs square neg add mul sub div".split()
)
SAME = frozenset("clone contiguous detach to float double".split())
POOLS = frozenset(f"{kind}_pool{n}d" for kind in ("max", "adaptive_avg", "adaptive_max") for n in (1, 2, 3))
AVERAGES = frozenset(f"avg_pool{n}d" for n in (1, 2, 3))
RESHAPES = frozenset("flatten reshape view squeeze unsqueeze".split())
REDUCTIONS = frozenset("mean amax sum".split())
CONVOLUTIONS = frozenset(f"conv{n}d" for n in (1, 2, 3))
DROPOUTS = frozenset("dropout dropout1d dropout2d dropout3d feature_dropout alpha_dropout".split())
IGNORED = frozenset("new_empty new_zeros new_ones new_full zeros_like ones_like empty_like".split())
OPERATORS = {
    "iadd": "add", "radd": "add", "imul": "mul", "rmul": "mul", "isub": "sub", "truediv": "div",
    "itruediv": "div",
}  # fmt: skip


@dataclass(frozen=True)
class Read:
    """A convolution or linear map that sums over all channels of its input.

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
    """A batch norm: names of its tensors (``None`` for those that it lacks), and its input."""

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
        fixed: Flows that a grouped convolution reads, so that their constants cannot be folded into it.
        reads: Every convolution without groups and every linear map.
        norms: Every batch norm.
        steps: The computation of the constants.
    """

    dims: dict[str, tuple[list[int], ...]] = field(default_factory=dict)
    live: set[int] = field(default_factory=set)
    links: list[list[int]] = field(default_factory=list)
    fixed: set[int] = field(default_factory=set)
    reads: list[Read] = field(default_factory=list)
    norms: list[Norm] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)

    def root(self, flow: int) -> int:
        """Return the flow that stands for all that were summed with ``flow``."""
        while self.parent[flow] != flow:
            self.parent[flow] = flow = self.parent[self.parent[flow]]
        return flow

    def constants(self, values: Values) -> list[Tensor]:
        """Return the constants at every place, differentiable; those of live channels mean nothing."""
        found: list[Tensor] = []
        for step in self.steps:
            found.append(step(found, values))
        return found


def follow(net: nn.Module, inputs: Tensor, filters: Mapping[str, int]) -> Channels:
    """Run ``net`` on ``inputs`` and follow its channels.

    Args:
        net: A plain model, in the mode in which it shall be followed; running statistics move in training.
        inputs: Two pictures or more.
        filters: Weight's name -> how many of its filters are not zero; for the others, all.

    Raises:
        ConfigError: When it does what cannot be followed; the sentence names the module.
    """
    run = _Following(net, filters)
    handles = []
    for name, module in net.named_modules():
        handles.append(module.register_forward_pre_hook(run.entering(name)))
        handles.append(module.register_forward_hook(run.leaving))
    try:
        run.track(inputs, run.fresh(inputs.shape[1], live=inputs.shape[1]), lambda *_: inputs[:1, :, 0, 0] * 0)
        with torch.no_grad(), run:
            outputs = net(inputs)
    finally:
        for handle in handles:
            handle.remove()
    track = run.tracks.get(id(outputs))
    if track is None:
        raise ConfigError(f"{type(net).__name__} gives a {type(outputs).__name__}, not one tensor of logits.")
    run.found.live |= set(track.flows)
    return run.found


@dataclass(frozen=True)
class _Track:
    flows: list[int]
    slot: int
    tensor: Tensor  # alive, so that its id stays its own


class _Following(TorchFunctionMode):
    def __init__(self, net: nn.Module, filters: Mapping[str, int]) -> None:
        super().__init__()
        self.found = Channels()
        self.tracks: dict[int, _Track] = {}
        self.filters = filters
        self.inside = [type(net).__name__]
        self.names = {id(value): name for name, value in (*net.named_parameters(), *net.named_buffers())}

    def entering(self, name: str) -> Callable[..., None]:
        return lambda module, _: self.inside.append(f"{name} ({type(module).__name__})")

    def leaving(self, *_: Any) -> None:
        self.inside.pop()

    def fresh(self, count: int, live: int) -> list[int]:
        start = len(self.found.parent)
        flows = list(range(start, start + count))
        self.found.parent += flows
        self.found.live |= set(flows[:live])
        return flows

    def track(self, tensor: Tensor, flows: list[int], step: Step) -> None:
        self.tracks[id(tensor)] = _Track(flows, len(self.found.steps), tensor)
        self.found.steps.append(step)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = [self.tracks[id(a)] for a in tree_leaves((args, kwargs)) if id(a) in self.tracks]
        shapes = [tuple(track.tensor.shape) for track in before]
        out = func(*args, **kwargs)
        name = getattr(func, "__name__", "").strip("_")
        if before and isinstance(out, (Tensor, tuple, list)) and any(
            isinstance(a, Tensor) for a in tree_leaves(out)
        ) and name not in IGNORED:
            if not isinstance(out, Tensor):
                raise self._unknown(name)
            self._hand_on(OPERATORS.get(name, name), args, kwargs, before, shapes, out)
        return out

    def _hand_on(
        self, name: str, args: Any, kwargs: Any, before: list[_Track], shapes: list[Any], out: Tensor
    ) -> None:
        x, shape = before[0], shapes[0]
        if name in CONVOLUTIONS:
            self._convolution(_bound(CONV, args, kwargs), x, out)
        elif name == "linear" and len(shape) == 2:
            self._convolution(_bound(CONV, args, kwargs), x, out)
        elif name == "batch_norm":
            self._batch_norm(_bound(NORM, args, kwargs), x, out)
        elif name in POINTWISE:
            self._pointwise(name, args, kwargs, before, shapes, out)
        elif name in {"cat", "concat"} and _bound(CAT, args, kwargs).get("dim", 0) in (1, 1 - out.dim()):
            slots = [track.slot for track in before]
            if len(before) != len(_bound(CAT, args, kwargs)["tensors"]):
                raise self._unknown(name)
            flows = [flow for track in before for flow in track.flows]
            self.track(out, flows, lambda found, _: torch.cat([found[i] for i in slots], 1))
        elif name in RESHAPES and shape[:2] == out.shape[:2]:
            self._same(x, out)
        elif name in RESHAPES and tuple(out.shape) == (shape[0], math.prod(shape[1:])):
            times = math.prod(shape[2:])
            flows = [flow for flow in x.flows for _ in range(times)]
            self.track(out, flows, lambda found, _: found[x.slot].repeat_interleave(times, 1))
        elif name in REDUCTIONS - {"sum"} and shape[:2] == out.shape[:2] and len(shape) > 2:
            self._same(x, out)
        elif name in SAME | POOLS:
            self._same(x, out)
        elif name in AVERAGES:
            pool = _bound(AVERAGE, args, kwargs)
            if pool.get("padding", 0) not in (0, (0, 0), [0, 0]) and pool.get("count_include_pad", True):
                self.found.live |= set(x.flows)
            self._same(x, out)
        elif name in DROPOUTS:
            drop = _bound(DROP, args, kwargs)
            if drop.get("training", True) and drop.get("p", 0.5) > 0:
                self.found.live |= set(x.flows)
            self._same(x, out)
        elif name == "pad" and shape[:2] == out.shape[:2]:
            self.found.live |= set(x.flows)
            self._same(x, out)
        else:
            raise self._unknown(name)

    def _same(self, x: _Track, out: Tensor) -> None:
        self.track(out, x.flows, lambda found, _: found[x.slot])

    def _convolution(self, bound: dict[str, Any], x: _Track, out: Tensor) -> None:
        weight, groups = self._name(bound["weight"]), bound.get("groups", 1)
        count = bound["weight"].shape[0]
        flows = self.fresh(count, live=self.filters.get(weight, count))
        if groups == 1:
            if weight in self.found.dims:
                raise ConfigError(f"{self.inside[-1]} shares its weight '{weight}'; slim cannot follow that.")
            self.found.reads.append(Read(weight, x.slot, x.flows))
            self._dims(weight, flows, x.flows)
        else:
            self._dims(weight, flows)
            self.found.fixed |= set(x.flows)
            for out_group, in_group in zip(_pieces(flows, groups), _pieces(x.flows, groups), strict=True):
                self.found.links.append([*out_group, *in_group])
        if bound.get("bias") is not None:
            self._dims(self._name(bound["bias"]), flows)
        self.track(out, flows, lambda _, values: values[weight].new_zeros(1, count))

    def _batch_norm(self, bound: dict[str, Any], x: _Track, out: Tensor) -> None:
        names = [
            None if bound.get(key) is None else self._name(bound[key])
            for key in ("weight", "bias", "running_mean", "running_var")
        ]
        for name in names:
            if name is not None:
                self._dims(name, x.flows)
        weight, bias, mean, var = names
        self.found.norms.append(Norm(*names, x.slot, x.flows))
        eps = bound.get("eps", 1e-5)

        def step(found: list[Tensor], values: Values) -> Tensor:
            out = found[x.slot]
            if bound.get("training") or mean is None or var is None:
                out = out * 0
            else:
                out = (out - values[mean]) * (values[var] + eps).rsqrt()
            out = out if weight is None else out * values[weight]
            return out if bias is None else out + values[bias]

        self.track(out, x.flows, step)

    def _pointwise(
        self, name: str, args: Any, kwargs: Any, before: list[_Track], shapes: list[Any], out: Tensor
    ) -> None:
        slots = {id(track.tensor): track.slot for track in before}
        others = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor) and id(a) not in slots]
        flows = before[0].flows
        fits = all(len(t.flows) == len(flows) and len(s) == out.dim() for t, s in zip(before, shapes, strict=True))
        if not fits or any(other.numel() > 1 for other in others):
            raise self._unknown(name)
        for track in before[1:]:
            self._union(flows, track.flows)
        function = getattr(F, name, None) or getattr(torch, name)
        places = tree_map(lambda a: _Slot(slots[id(a)]) if id(a) in slots else a, (args, kwargs))

        def step(found: list[Tensor], _: Values) -> Tensor:
            arguments, named = tree_map(lambda a: found[a.number] if isinstance(a, _Slot) else a, places)
            named = {key: value for key, value in named.items() if key not in ("inplace", "out")}
            made: Tensor = function(*arguments, **named)
            return made

        self.track(out, flows, step)

    def _union(self, ours: Sequence[int], theirs: Sequence[int]) -> None:
        for a, b in zip(ours, theirs, strict=True):
            self.found.parent[self.found.root(b)] = self.found.root(a)

    def _dims(self, name: str, *dims: list[int]) -> None:
        if name not in self.found.dims:
            self.found.dims[name] = dims
        for known, flows in zip(self.found.dims[name], dims, strict=True):
            self._union(known, flows)

    def _name(self, tensor: Tensor) -> str:
        if id(tensor) not in self.names:
            raise ConfigError(
                f"the weights of {self.inside[-1]} are computed from others, which slim cannot follow; "
                "keep the network as it is."
            )
        return self.names[id(tensor)]

    def _unknown(self, name: str) -> ConfigError:
        return ConfigError(
            f"{self.inside[-1]} applies '{name}', through which slim cannot follow channels; "
            "keep the network as it is."
        )


@dataclass(frozen=True)
class _Slot:
    number: int


CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
CAT = ("tensors", "dim")
AVERAGE = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
DROP = ("input", "p", "training", "inplace")


def _bound(names: tuple[str, ...], args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _pieces(flows: list[int], count: int) -> Iterator[list[int]]:
    size = len(flows) // count
    return (flows[i : i + size] for i in range(0, len(flows), size))
