"""``adapt_`` and ``merge_``: make a model learn only its slices, and make it plain again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_pre_hook

from sparsetune.backbone import MADE, Backbone, Layer, changed, fingerprint, origin_of, structure
from sparsetune.data import Preprocessing, Seen
from sparsetune.errors import ConfigError, DeltaError
from sparsetune.parts import ADAPTED, Part, Plan, plain_name, plan, unwrapped
from sparsetune.sliced.kind import Kind, frozen_rest, rest_name
from sparsetune.sliced.module import hold_statistics_, let_statistics_go_, partly_, unslice_
from sparsetune.sliced.slices import Slice
from sparsetune.sliced.spread import Spread
from sparsetune.sliced.sums import LowRank
from sparsetune.spec import Learn

TAUGHT = "_sparsetune_taught"
"""Attribute of a model: what it was trained on."""
RETIRED = "_sparsetune_retired"
"""Attribute of a parameter that is no longer its model's: name of the function that took it out."""
UNSENT = "_ddp_params_and_buffers_to_ignore"
"""Attribute by which ``DistributedDataParallel`` knows what it shall not send between processes."""
CHANGING = {
    "reset_classifier": "replace a head that the plan names",
    "set_input_size": "change layers that the plan names",
    "prune_intermediate_layers": "take away layers that the plan names",
}
"""timm's methods that change a model's layers, and what they would do."""
ROUNDED = (torch.float32, torch.bfloat16, torch.float16)
"""Dtypes that may hold less than a model's own."""
KINDS: tuple[type[Kind], ...] = (LowRank, Spread, Slice)
"""Every kind of partly learned parameter; the first that takes a part has it. ``Slice`` takes any ``k``."""


@dataclass(frozen=True)
class Adapted:
    """What ``adapt_`` leaves on a model.

    Attributes:
        plan: What is learned.
        backbone: Where the frozen values come from.
        fingerprint: SHA-256 over the frozen values, in hexadecimal.
        dtype: Floating dtype of the frozen values that the fingerprint covers.
        rounded: The fingerprints that they have where the model is cast to a dtype that holds less.
        plain: The plain modules' parameters in order, and whether each requires a gradient.
        layers: What the plain modules were.
    """

    plan: Plan
    backbone: Backbone
    fingerprint: str
    dtype: torch.dtype
    rounded: dict[torch.dtype, str]
    plain: dict[str, dict[str, bool]]
    layers: dict[str, Layer]


@dataclass(frozen=True)
class Taught:
    """What a model was trained on.

    Attributes:
        classes: Class names in the order of the outputs; ``None`` where they are not known.
        preprocessing: What the pictures went through; likewise.
        default: What ``open_data`` gave in its place, where ``fit`` decided for another.
        seen: What is known of the pictures that gave the learned values.
    """

    classes: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    default: Preprocessing | None = None
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
            learn complex values, or its backbone is not what ``learn.frozen`` states. An optimiser made of
            the plain model's parameters raises it on its next step: make that after ``adapt_``.
        DeltaError: When ``create`` made the model and its layers were changed since, and no ``backbone`` is
            given.
        UnknownNameError: When a pattern of ``learn`` matches no layer.
    """
    if isinstance(net, DistributedDataParallel):
        raise ConfigError(
            "this model is wrapped in DistributedDataParallel, which would go on sending the parameters of "
            "before; adapt_ the model first and wrap it then."
        )
    given, net = net, unwrapped(net)
    made, source = prepared(net, learn, backbone)
    dtype = _one_dtype([net.get_parameter(part.name) for part in made if not part.whole] or net.parameters())
    freeze_(net, made, source, dtype, fingerprint(to_freeze(net, made)))
    return given


def prepared(net: nn.Module, learn: Learn, backbone: Backbone | None) -> tuple[Plan, Backbone]:
    """Return a plain model's plan and its backbone, of which a delta can be made; nothing is changed.

    Raises:
        SparsetuneError: As :func:`adapt_` raises.
    """
    made = plan(net, learn)
    origin = origin_of(net)
    source = backbone or (origin.backbone if origin else Backbone.from_module(net))
    then = getattr(net, MADE, None) if source.root.kind != "module" else None
    if origin and then and (other := changed(then, net, shapes=True)):
        raise DeltaError(
            f"{other}: the layers are not those of {origin.name}, so no file could give this model back; "
            "adapt_ a model as create() made it, or call adapt_(net, learn, Backbone.from_module(net)) and "
            "keep its whole checkpoint."
        )
    _refuse_meta(net.parameters())
    _refuse_complex(net, made)
    return made, _agreed(learn, source)


def to_freeze(
    net: nn.Module, made: Plan, dtype: torch.dtype | None = None, stored: Mapping[str, Tensor] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yield what :func:`frozen_values` will once a plain model is adapted.

    Args:
        net: The plain model.
        made: Its plan.
        dtype: To which floating values are cast before; ``None`` leaves them.
        stored: Values that :func:`put_stored` puts there before.
    """
    for part in made:
        if part.whole:
            continue
        value = net.get_parameter(part.name).detach()
        rest = value.narrow(part.dim, part.k, part.size - part.k) if part.k else value
        rest = (stored or {}).get(part.frozen_name, rest)
        if made.learn.frozen == "zero" and part.layer:
            rest = torch.zeros_like(rest)
        yield part.name, _cast(rest, dtype)
    for each in made.statistics:
        yield each.name, _cast(net.get_buffer(each.name), dtype)


def freeze_(net: nn.Module, made: Plan, source: Backbone, dtype: torch.dtype, found: str) -> None:
    """Adapt a plain model as planned.

    Args:
        net: The plain model.
        made: Its plan.
        source: Its backbone.
        dtype: Floating dtype of what is frozen.
        found: Fingerprint of that.
    """
    layers = structure(net)
    less = [each for each in ROUNDED if each != dtype and each.itemsize <= dtype.itemsize]
    rounded = {each: fingerprint(to_freeze(net, made, each)) for each in less}
    plain = {
        name: {leaf: value is not None and value.requires_grad for leaf, value in module._parameters.items()}
        for name, module in net.named_modules()
    }
    for part in made:
        if not part.whole:
            _freeze_rest(net, part, zero=made.learn.frozen == "zero" and part.layer)
    for module in _holding_statistics(net, made):
        hold_statistics_(module)
    setattr(net, ADAPTED, Adapted(made, source, found, dtype, rounded, plain, layers))
    setattr(net, UNSENT, [*getattr(net, UNSENT, []), *_frozen_names(made)])
    for name in CHANGING:
        if hasattr(net, name):
            setattr(net, name, partial(_refuse_change, name))


def merge_(net: nn.Module) -> nn.Module:
    """Make an adapted model plain again, in place; ``state_dict`` then has the plain model's keys in order.

    Args:
        net: A model that ``adapt_`` changed.

    Returns:
        ``net``, with the values that it computes now.

    Raises:
        ConfigError: When the model is not adapted, or its layers were replaced since; it is then as before.
    """
    given, net = net, unwrapped(net)
    state = adapted(net)
    check_tensors(net)
    learned = dict(learned_values(net, state.plan))
    for name in (name for part in state.plan if part.partial for name in part.learned):
        _retire(learned[name], "merge_")
    for module in _holding_statistics(net, state.plan):
        let_statistics_go_(module)
        module.train(net.training)
    frozen = set(_frozen_names(state.plan))
    setattr(net, UNSENT, [name for name in getattr(net, UNSENT) if name not in frozen])
    if not getattr(net, UNSENT):
        delattr(net, UNSENT)
    for name in CHANGING:
        net.__dict__.pop(name, None)
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
    return given


def adapted(net: nn.Module) -> Adapted:
    """Return what ``adapt_`` left on ``net``.

    Raises:
        ConfigError: When the model is not adapted.
    """
    found = getattr(unwrapped(net), ADAPTED, None)
    if not isinstance(found, Adapted):
        raise ConfigError(
            f"this {type(net).__name__} is not adapted; call sparsetune.adapt_(net, Learn(...)) first."
        )
    return found


def taught(net: nn.Module) -> Taught:
    """Return what is noted on a model."""
    found = getattr(net, TAUGHT, None)
    return found if isinstance(found, Taught) else Taught()


def teach(net: nn.Module, what: Taught) -> None:
    """Note on a model what it was trained on."""
    setattr(net, TAUGHT, what)


def frozen_values(net: nn.Module, made: Plan) -> Iterator[tuple[str, Tensor]]:
    """Yield name and frozen values of an adapted model: of each parameter, then running statistics."""
    for part in made:
        module, leaf = next(_homes(net, part))
        if part.partial:
            yield part.name, frozen_rest(module, leaf)
        elif part.k == 0:
            yield part.name, module.get_buffer(leaf)
    for each in made.statistics:
        yield each.name, net.get_buffer(each.name)


def check_tensors(net: nn.Module) -> None:
    """Make sure that an adapted model has the tensors that were planned, and no other parameters.

    Raises:
        ConfigError: When it has not.
    """
    made = adapted(net).plan
    learned = {name for name, _ in learned_values(net, made)}
    shapes = {buffer.name: buffer.shape for buffer in (*made.buffers, *made.statistics)}
    for part in made:
        if not part.whole:
            name, leaf = part.homes[0]
            held = rest_name(leaf) if part.partial else leaf
            shapes[f"{name}.{held}".lstrip(".")] = part.frozen_shape
    found = {
        plain_name(name): tuple(value.shape) for name, value in net.named_buffers(remove_duplicate=False)
    }
    problems = [f"'{name}' is gone or of another shape" for name in shapes if found.get(name) != shapes[name]]
    parameters = {plain_name(name) for name, _ in net.named_parameters()}
    problems += [f"'{name}' is a parameter that adapt_ did not plan" for name in sorted(parameters - learned)]
    if problems:
        raise ConfigError(f"{problems[0]}: its layer was replaced since; do that before adapt_.")


def check_layers(net: nn.Module) -> None:
    """Make sure that an adapted model is still what it was when it was adapted.

    Raises:
        ConfigError: When it is not.
    """
    check_tensors(net)
    if other := changed(adapted(net).layers, net, shapes=False):
        raise ConfigError(f"{other} when adapt_ planned it; do that before adapt_.")


def check_frozen(net: nn.Module) -> tuple[str, torch.dtype]:
    """Return fingerprint and floating dtype of an adapted model's frozen values, which are the backbone's.

    Raises:
        DeltaError: When they are not: neither as they were nor as a cast to another dtype makes them.
        ConfigError: When they have several dtypes.
    """
    state = adapted(net)
    dtype = frozen_dtype(net, state.plan)
    values = list(frozen_values(net, state.plan))
    found = fingerprint(values)
    if dtype == state.dtype or dtype in state.rounded:
        same = found == state.rounded.get(dtype, state.fingerprint)
    else:
        back = [(name, _cast(value, state.dtype)) for name, value in values]
        exact = all(
            torch.equal(_cast(old, dtype), now) for (_, old), (_, now) in zip(back, values, strict=True)
        )
        same = exact and fingerprint(back) == state.fingerprint
    if not same:
        raise DeltaError(
            "frozen values changed since adapt_, so the backbone cannot give this model back; "
            "find what wrote to them, or save a whole checkpoint after sparsetune.merge_(net)."
        )
    return found, dtype


def _cast(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    return value.to(dtype) if dtype and value.is_floating_point() else value


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
    _refuse_meta(found)
    return next(iter(dtypes), torch.float32)


def _refuse_meta(values: Iterable[Tensor]) -> None:
    if any(value.is_meta for value in values):
        raise ConfigError("the model is on the meta device and holds no values; build it on a real device.")


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
    parameter = module.get_parameter(leaf)
    _retire(parameter, "adapt_")
    whole = parameter.detach()
    if zero:
        whole.narrow(part.dim, part.k, part.size - part.k).zero_()
    if part.partial:
        kind = next(found for each in KINDS if (found := each.of(part)))
        learned, frozen = kind.start(part, whole)
        for module, leaf in homes:
            partly_(module, leaf, kind, learned, frozen)
    else:
        for module, leaf in homes:
            del module._parameters[leaf]
            module.register_buffer(leaf, whole, persistent=False)


def _frozen_names(made: Plan) -> Iterator[str]:
    """Yield the names of all buffers that hold frozen values."""
    for part in made:
        if not part.whole:
            for module, leaf in part.homes:
                yield f"{module}.{rest_name(leaf) if part.partial else leaf}".lstrip(".")
    for each in made.statistics:
        yield each.name


def _holding_statistics(net: nn.Module, made: Plan) -> list[nn.Module]:
    """The modules whose running statistics stay."""
    names = dict.fromkeys(each.name.rpartition(".")[0] for each in made.statistics)
    return [net.get_submodule(name) for name in names]


def _retire(parameter: nn.Parameter, by: str) -> None:
    """Note that a function, ``by`` its name, took a parameter out of its model."""
    setattr(parameter, RETIRED, by)
    _watch()


@cache
def _watch() -> None:
    """Look at every optimiser's parameters before each of its steps, from now on."""
    register_optimizer_step_pre_hook(_refuse_retired)


def _refuse_retired(optimizer: Any, *_: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if (by := getattr(parameter, RETIRED, None)) is not None:
                raise ConfigError(
                    f"this {type(optimizer).__name__} was made before {by}, which put other parameters in "
                    f"place of some of its own, so they never move; make it after {by}, from its parameters."
                )


def _refuse_change(name: str, *_: Any, **__: Any) -> None:
    raise ConfigError(
        f"{name} would {CHANGING[name]}; call it before adapt_, or after sparsetune.merge_(net), or better: "
        "create the model with the right num_classes and img_size."
    )


def _homes(net: nn.Module, part: Part) -> Iterator[tuple[nn.Module, str]]:
    for module_name, leaf in part.homes:
        yield net.get_submodule(module_name), leaf
