"""``adapt_`` and ``merge_``: make a model learn only its slices, and make it plain again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sparsetune.backbone import Backbone, fingerprint, origin_of
from sparsetune.errors import ConfigError
from sparsetune.layers import ADAPTED
from sparsetune.learn import Learn
from sparsetune.part import Part
from sparsetune.plan import Plan, plan
from sparsetune.seeding import Law, draw
from sparsetune.seen import Seen
from sparsetune.sliced import factor_, slice_, unslice_
from sparsetune.wholes import frozen_rest, rest_name

UNSENT = "_ddp_params_and_buffers_to_ignore"
"""Attribute by which ``DistributedDataParallel`` knows what it shall not send between processes."""
RESET = "reset_classifier"
"""timm's method that replaces a model's head."""
ROW = 3.0
"""Length of the rows of a low-rank sum's first ``A``. The first step of ``B`` moves the weight by its
gradient within the rows' span, times the square of their length; LoRA's own have 0.58, and start slowly."""


@dataclass(frozen=True)
class Adapted:
    """What ``adapt_`` leaves on a model.

    Attributes:
        plan: What is learned.
        backbone: Where the frozen values come from.
        fingerprint: SHA-256 over the frozen values, in hexadecimal.
        dtype: Floating dtype of the frozen values that the fingerprint covers.
        plain: The plain modules' parameters in order, and whether each requires a gradient.
        seen: What is known of the pictures that gave the learned values.
    """

    plan: Plan
    backbone: Backbone
    fingerprint: str
    dtype: torch.dtype
    plain: dict[str, dict[str, bool]]
    seen: Seen | None = None


def adapt_(net: nn.Module, learn: Learn, backbone: Backbone | None = None) -> nn.Module:
    """Make ``net`` learn only the slices that ``learn`` names, in place.

    The model keeps its class, its forward and its features. Its ``parameters()`` are then the learned
    slices and nothing else, so frozen values cannot move, whatever the optimiser does. ``state_dict`` lists
    the slices under the plain model's names.

    Args:
        net: A plain model that holds its backbone's values.
        learn: Which slices are learned.
        backbone: Where the values come from, for a model that ``create`` did not make.

    Returns:
        ``net``.

    Raises:
        ConfigError: When the model is adapted already, holds no values or values of several dtypes, would
            learn complex values, or its backbone is not what ``learn.frozen`` states.
        UnknownNameError: When a pattern of ``learn`` matches no layer.
    """
    made = plan(net, learn)
    origin = origin_of(net)
    source = backbone or (origin.backbone if origin else Backbone.from_module(net))
    source = _agreed(learn, source)
    _refuse_complex(net, made)
    dtype = _one_dtype([net.get_parameter(part.name) for part in made if not part.whole] or net.parameters())
    plain = {
        name: {leaf: value is not None and value.requires_grad for leaf, value in module._parameters.items()}
        for name, module in net.named_modules()
    }
    for part in made:
        if not part.whole:
            _freeze_rest(net, part, zero=learn.frozen == "zero" and part.layer)
    found = fingerprint(frozen_values(net, made))
    setattr(net, ADAPTED, Adapted(made, source, found, dtype, plain))
    setattr(net, UNSENT, [*getattr(net, UNSENT, []), *_frozen_names(made)])
    if hasattr(net, RESET):
        setattr(net, RESET, _refuse_reset)
    return net


def merge_(net: nn.Module) -> nn.Module:
    """Make an adapted model plain again, in place; ``state_dict`` then has the plain model's keys in order.

    Args:
        net: A model that ``adapt_`` changed.

    Returns:
        ``net``, with the values that it computes now.

    Raises:
        ConfigError: When the model is not adapted.
    """
    state = adapted(net)
    frozen = set(_frozen_names(state.plan))
    setattr(net, UNSENT, [name for name in getattr(net, UNSENT) if name not in frozen])
    if not getattr(net, UNSENT):
        delattr(net, UNSENT)
    net.__dict__.pop(RESET, None)
    for part in state.plan:
        homes = list(_homes(net, part))
        for module, leaf in homes:
            if part.partial:
                unslice_(module, leaf)
            elif not part.whole:
                value = module.get_buffer(leaf)
                delattr(module, leaf)
                module.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
        shared = homes[0][0].get_parameter(homes[0][1])
        for module, leaf in homes:
            module._parameters[leaf] = shared
    for name, leaves in state.plain.items():
        parameters = net.get_submodule(name)._parameters
        for leaf, requires_grad in leaves.items():
            parameters[leaf] = parameter = parameters.pop(leaf)
            if parameter is not None:
                parameter.requires_grad_(requires_grad)
    delattr(net, ADAPTED)
    return net


def adapted(net: nn.Module) -> Adapted:
    """Return what ``adapt_`` left on ``net``.

    Raises:
        ConfigError: When the model is not adapted.
    """
    found = getattr(net, ADAPTED, None)
    if not isinstance(found, Adapted):
        raise ConfigError(
            f"this {type(net).__name__} is not adapted; call sparsetune.adapt_(net, Learn(...)) first."
        )
    return found


def note(net: nn.Module, seen: Seen | None) -> None:
    """Leave on an adapted model what is known of the pictures that gave its learned values."""
    setattr(net, ADAPTED, replace(adapted(net), seen=seen))


def frozen_values(net: nn.Module, made: Plan) -> Iterator[tuple[str, Tensor]]:
    """Yield name and frozen values of every parameter of an adapted model that is not learned whole."""
    for part in made:
        module, leaf = next(_homes(net, part))
        if part.partial:
            yield part.name, frozen_rest(module, leaf)
        elif part.k == 0:
            yield part.name, module.get_buffer(leaf)


def stored_values(net: nn.Module, made: Plan) -> dict[str, Tensor]:
    """Return the frozen values of an adapted model that no seed gives, by the names that a delta has."""
    stored = {part.name: part.frozen_name for part in made if part.stored}
    return {stored[name]: value for name, value in frozen_values(net, made) if name in stored}


def put_stored(net: nn.Module, made: Plan, values: Mapping[str, Tensor]) -> None:
    """Put frozen values that :func:`stored_values` gave into a plain model."""
    with torch.no_grad():
        for part in made:
            if not part.whole and part.frozen_name in values:
                rest = net.get_parameter(part.name).narrow(part.dim, part.k, part.size - part.k)
                rest.copy_(values[part.frozen_name])


def learned_values(net: nn.Module, made: Plan) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield name and value of everything that an adapted model learns."""
    for part in made:
        for name, shape in part.learned.items():
            module, _ = next(_homes(net, part))
            parameter = module._parameters.get(name.rpartition(".")[2])
            if parameter is None or parameter.shape != shape:
                found = "gone" if parameter is None else f"of shape {tuple(parameter.shape)}"
                raise ConfigError(
                    f"'{name}' is {found}, but adapt_ planned {shape}: its layer was "
                    "replaced since; do that before adapt_."
                )
            yield name, parameter


def frozen_dtype(net: nn.Module, made: Plan) -> torch.dtype:
    """Return the floating dtype of an adapted model's frozen values, or learned ones if none is frozen.

    Raises:
        ConfigError: When frozen values have several.
    """
    values = [value for _, value in frozen_values(net, made)]
    return _one_dtype(values or [value for _, value in learned_values(net, made)])


def _one_dtype(values: Iterable[Tensor]) -> torch.dtype:
    found = [value for value in values if value.is_floating_point()]
    dtypes = {value.dtype for value in found}
    if len(dtypes) > 1:
        raise ConfigError(
            f"frozen values have several dtypes ({', '.join(sorted(map(str, dtypes)))}); "
            "move the whole model to one, as net.float()."
        )
    if any(value.is_meta for value in found):
        raise ConfigError("the model is on the meta device and holds no values; build it on a real device.")
    return next(iter(dtypes), torch.float32)


def _refuse_complex(net: nn.Module, made: Plan) -> None:
    for part in made:
        if part.learned and (dtype := net.get_parameter(part.name).dtype).is_complex:
            raise ConfigError(
                f"'{part.name}' would be learned but has dtype {dtype}, which a delta cannot hold; freeze it "
                "with a fraction below 1, or keep it as real values (torch.view_as_real)."
            )


def _agreed(learn: Learn, backbone: Backbone) -> Backbone:
    if learn.frozen == "zero":
        return backbone.zeroed()
    drawn = backbone.root.kind == "seed"
    if (learn.frozen == "pretrained" and drawn) or (
        learn.frozen == "random" and backbone.kind in ("pretrained", "file")
    ):
        remedy = (
            "create the model with pretrained=True"
            if drawn
            else "create the model without pretrained weights"
        )
        raise ConfigError(
            f"frozen='{learn.frozen}' was asked for, but the backbone is {backbone.describe()}; {remedy}."
        )
    return backbone


def _freeze_rest(net: nn.Module, part: Part, zero: bool) -> None:
    homes = list(_homes(net, part))
    module, leaf = homes[0]
    whole = module.get_parameter(leaf).detach()
    if zero:
        whole.narrow(part.dim, part.k, part.size - part.k).zero_()
    if part.rank:
        factors = _factors(whole, part)
        for module, leaf in homes:
            factor_(module, leaf, *factors, whole)
    elif part.partial:
        learned, rest = _parts(whole, part)
        for module, leaf in homes:
            slice_(module, leaf, part.dim, learned, rest)
    else:
        for module, leaf in homes:
            del module._parameters[leaf]
            module.register_buffer(leaf, whole, persistent=False)


def _parts(whole: Tensor, part: Part) -> tuple[nn.Parameter, Tensor]:
    """Learned slice and frozen rest: filters stay in ``whole``'s memory, other slices get their own."""
    parts = whole.data.narrow(part.dim, 0, part.k), whole.data.narrow(part.dim, part.k, part.size - part.k)
    learned, rest = parts if part.dim == 0 else (value.clone() for value in parts)
    return nn.Parameter(learned), rest


def _factors(whole: Tensor, part: Part) -> tuple[nn.Parameter, nn.Parameter]:
    """Initial ``A``, uniform with rows of length about ``ROW``, and ``B``, which is zero."""
    (name, inputs), (_, outputs) = part.learned.items()
    bound = ROW * (3 / torch.Size(inputs[1:]).numel()) ** 0.5
    a = draw(0, name, inputs, Law("uniform", -bound, bound)).to(whole)
    return nn.Parameter(a), nn.Parameter(whole.new_zeros(outputs))


def _frozen_names(made: Plan) -> Iterator[str]:
    """Yield the names of all buffers that hold frozen values."""
    for part in made:
        if not part.whole:
            for module, leaf in part.homes:
                yield f"{module}.{rest_name(leaf) if part.partial else leaf}".lstrip(".")


def _refuse_reset(*_: Any, **__: Any) -> None:
    raise ConfigError(
        "reset_classifier would replace a head that the plan names; call it before adapt_, or after "
        "sparsetune.merge_(net), or better: create the model with the right num_classes."
    )


def _homes(net: nn.Module, part: Part) -> Iterator[tuple[nn.Module, str]]:
    for module_name, leaf in part.homes:
        yield net.get_submodule(module_name), leaf
