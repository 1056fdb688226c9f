"""``slim``: a zeroed network as a physically smaller one that computes the same."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from sparsetune.adapt import adapted, merge_
from sparsetune.backbone import ORIGIN
from sparsetune.errors import ConfigError
from sparsetune.following import follow
from sparsetune.narrow import Narrowing, narrow_

TOLERANCE = 1e-5
"""Largest difference of outputs, relative to the largest of them, that a slim network may show."""


def slim(net: nn.Module, inputs: Tensor | None = None) -> nn.Module:
    """Return a plain model without the filters that ``frozen="zero"`` made zero; ``net`` is unchanged.

    It has the same class and layers, only narrower, and in evaluation mode the same outputs on every input.
    Filters that are zero give constants; one in each layer stays and stands for all, so that padding is
    exact too.

    Args:
        net: An adapted model with ``Learn(frozen="zero")`` along ``out``.
        inputs: A batch such as the model takes; by default random pictures of its own size.

    Returns:
        The slim model, in evaluation mode.

    Raises:
        ConfigError: When the model is not adapted so, does what cannot be followed, or its slim form
            would differ by more than 1e-5 of the largest output.
    """
    small = narrowed(net, pictures(net, input_size(net)) if inputs is None else inputs, training=False)[1]
    small.__dict__.pop(ORIGIN, None)
    return small


def narrowed(net: nn.Module, inputs: Tensor, *, training: bool) -> tuple[Narrowing, nn.Module]:
    """Return which channels of an adapted model stay, and the narrow plain model; ``net`` is unchanged.

    Args:
        net: An adapted, zeroed model.
        inputs: A batch such as it takes.
        training: Whether the narrow model shall compute the same in training mode, or in evaluation mode.

    Raises:
        ConfigError: As :func:`slim` does.
    """
    made = adapted(net).plan
    if made.learn.frozen != "zero" or made.learn.dim != "out":
        raise ConfigError(
            f"this model learned {made.learn.describe()}, so no filters of it are zero; "
            "slim is for Learn(..., frozen='zero') along out."
        )
    plain = merge_(copy.deepcopy(net)).train(training)
    inputs = inputs if len(inputs) > 1 else torch.cat([inputs, inputs])
    filters = {part.name: part.k for part in made if part.layer and not part.whole}
    with torch.no_grad():
        values = values_of(net)
        narrowing = Narrowing(follow(copy.deepcopy(plain), inputs, filters), values)
        tensors, _ = narrowing.tensors(values)
        small = narrow_(copy.deepcopy(plain), tensors)
        _check_same(plain, small, inputs)
    return narrowing, small


def values_of(net: nn.Module) -> dict[str, Tensor]:
    """Return an adapted model's tensors under the plain model's names; of a slice what is learned."""
    return {**dict(net.named_buffers()), **dict(net.named_parameters())}


def input_size(net: nn.Module) -> tuple[int, ...]:
    """Return channels, height and width of a model's pictures: timm models say it."""
    size = (getattr(net, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
    return tuple(size)


def pictures(net: nn.Module, size: tuple[int, ...]) -> Tensor:
    """Return two random pictures ``(2, *size)``, always the same, where and as ``net``'s values are."""
    value = next(value for value in values_of(net).values() if value.is_floating_point())
    return torch.randn(2, *size, generator=torch.Generator().manual_seed(0)).to(value.device, value.dtype)


def _check_same(plain: nn.Module, small: nn.Module, inputs: Tensor) -> None:
    """Compare the two in float64, where rounding hides nothing, and without dropout."""
    outputs = []
    for net in (plain, small):
        twin = copy.deepcopy(net).cpu().double()
        for module in twin.modules():
            if isinstance(module, _DropoutNd):
                module.eval()
        outputs.append(twin(inputs.cpu().double()))
    wanted, found = outputs
    difference, largest = (found - wanted).abs().max().item(), wanted.abs().max().item()
    if not difference <= TOLERANCE * largest:
        raise ConfigError(
            f"the outputs of the slim {type(plain).__name__} would differ by {difference:.2g}, the largest "
            f"being {largest:.2g}; keep the network as it is."
        )
