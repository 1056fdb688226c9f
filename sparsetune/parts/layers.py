"""What a module of a model is: a layer that can be sliced, a normalisation layer, the head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parallel import DataParallel, DistributedDataParallel

ADAPTED = "_sparsetune_adapted"
"""Attribute of a model that is adapted."""
HEAD = "_sparsetune_head"
"""Attribute of a model whose builder knows the classifier's modules: their names."""
STORED = "_sparsetune_stored"
"""Attribute of a model: names of parameters whose initial values no seed gives, so that deltas hold them."""

COMPILED = "_orig_mod"
"""Name of the module inside the one that ``torch.compile`` gives."""

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Site:
    """A parameter and where it stands.

    Attributes:
        name: Its name among ``named_parameters``.
        homes: Every ``(module name, attribute)`` that holds it; more than one where it is shared.
        module: The first module that holds it.
        parameter: The parameter.
    """

    name: str
    homes: tuple[tuple[str, str], ...]
    module: nn.Module
    parameter: nn.Parameter

    @property
    def module_name(self) -> str:
        """Name of the first module that holds it."""
        return self.homes[0][0]


def plain_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class that a sliced module had before it was sliced."""
    plain: type[nn.Module] = kind.__dict__.get("_plain", kind)
    return plain


def plain_name(name: str) -> str:
    """Return a module's or tensor's name without what ``torch.compile`` puts into it."""
    return ".".join(piece for piece in name.split(".") if piece != COMPILED)


def sites(net: nn.Module) -> Iterator[Site]:
    """Yield every parameter of ``net`` once, in the order of ``named_parameters``."""
    homes: dict[int, list[tuple[str, str]]] = {}
    modules = {plain_name(name): module for name, module in net.named_modules()}
    for module_name, module in modules.items():
        for leaf, parameter in module._parameters.items():
            homes.setdefault(id(parameter), []).append((module_name, leaf))
    for name, parameter in net.named_parameters():
        places = tuple(homes[id(parameter)])
        yield Site(plain_name(name), places, modules[places[0][0]], parameter)


def is_norm(module: nn.Module) -> bool:
    """Whether ``module`` normalises activations and scales them by learned values.

    torch has a class for some; of any other the name of its class says so (timm's ``RmsNorm``) and all
    parameters of its own are vectors.
    """
    if isinstance(module, NORMS):
        return True
    own = [value for value in module._parameters.values() if value is not None]
    named = "norm" in type(module).__name__.lower()
    return named and bool(own) and all(value.dim() == 1 for value in own)


def keeps_statistics(module: nn.Module) -> bool:
    """Whether ``module`` normalises by running statistics in evaluation mode."""
    return any(name.startswith("running_") and value is not None for name, value in module._buffers.items())


def statistics_names(net: nn.Module) -> frozenset[str]:
    """Return the names of all running statistics, with the counts of batches beside them."""
    return frozenset(
        f"{plain_name(name)}.{leaf}".lstrip(".")
        for name, module in net.named_modules()
        if keeps_statistics(module)
        for leaf in module._buffers
    )


def is_sliceable(module: nn.Module) -> bool:
    """Whether ``module`` has filters: a convolution, a linear map, an attention's input projections.

    A weight that is computed from other parameters (weight norm, spectral norm) is not the module's own.
    """
    own = isinstance(module, nn.MultiheadAttention) or "weight" in module._parameters
    return own and isinstance(module, (_ConvNd, nn.Linear, nn.MultiheadAttention))


def is_depthwise(module: nn.Module) -> bool:
    """Whether each filter of ``module`` sees one channel alone."""
    return isinstance(module, _ConvNd) and module.groups == module.in_channels > 1


def head_names(net: nn.Module) -> tuple[str, ...]:
    """Return the names of the classifier's modules.

    timm models say which module classifies (``get_classifier``); of a torchvision model it is every layer
    whose shape depends on the number of classes; of any other model it is the last linear layer in order of
    construction. A model without any of these has no head.
    """
    told: tuple[str, ...] | None = getattr(net, HEAD, None)
    if told is not None:
        return told
    names = {id(module): plain_name(name) for name, module in net.named_modules()}
    get_classifier = getattr(net, "get_classifier", None)
    if callable(get_classifier):
        found = get_classifier()
        modules = found if isinstance(found, (tuple, list)) else [found]
        heads = [names[id(module)] for module in modules if id(module) in names]
        if heads:
            return tuple(heads)
    linears = [plain_name(name) for name, module in net.named_modules() if isinstance(module, nn.Linear)]
    return tuple(linears[-1:])


def unwrapped(net: nn.Module) -> nn.Module:
    """Return the model in what ``torch.compile``, ``DataParallel`` or ``DistributedDataParallel`` gave."""
    while True:
        inside = net._modules.get(COMPILED)
        if isinstance(net, (DataParallel, DistributedDataParallel)):
            inside = net.module
        if inside is None:
            return net
        net = inside


def under(name: str, modules: Iterable[str]) -> bool:
    """Whether a module of that name is one of ``modules``, or inside one."""
    return any(name == module or name.startswith(module + ".") for module in modules)
