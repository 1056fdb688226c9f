"""Training a zeroed network on its slim shape: the same parameters and gradients, less arithmetic.

Each step makes the narrow network's tensors from the learned slices, as differentiable functions of them, and
runs the narrow network with these. So what is trained, saved and loaded is the wide network.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sparsetune.adapt import UNSENT, adapted
from sparsetune.errors import ConfigError
from sparsetune.slim import narrowed, pictures, values_of


class Slimming(nn.Module):
    """An adapted, zeroed model whose training steps run on its slim shape.

    Its parameters are the model's, and what counts is the model's mode: in evaluation the model itself runs.

    Args:
        net: The adapted model, on the device where it will be trained.
        size: Channels, height and width of a picture.

    Raises:
        ConfigError: When no filters of it are zero, or it does what cannot be followed.
    """

    def __init__(self, net: nn.Module, size: tuple[int, ...]) -> None:
        super().__init__()
        self.net = net
        self._narrowing, small = narrowed(net, pictures(net, size), training=True)
        if not self._narrowing.smaller:
            raise ConfigError("no filters of this model are zero; train it as it is.")
        setattr(self, UNSENT, [f"net.{name}" for name in getattr(net, UNSENT)])
        self._small = (small,)  # in a tuple, so that its parameters are not this module's
        self._device = self._narrowing.device.type
        self._buffers_left = {name for name, _ in small.named_buffers()} - self._narrowing.names

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures ``(N, C, H, W)`` to logits, as the wide model does; its statistics move too."""
        if not self.net.training:
            out: Tensor = self.net(x)
            return out
        tensors, constants = torch.compiler.disable(self._tensors)()
        out = functional_call(self._small[0], tensors, (x,))
        torch.compiler.disable(self._move_statistics)(tensors, constants)
        return out

    def _tensors(self) -> tuple[dict[str, Tensor], list[Tensor]]:
        values = values_of(self.net)
        with torch.autocast(self._device, enabled=False):
            tensors, constants = self._narrowing.tensors(values)
        return tensors | {name: values[name] for name in self._buffers_left}, constants

    def _move_statistics(self, tensors: dict[str, Tensor], constants: list[Tensor]) -> None:
        self._narrowing.move_statistics(values_of(self.net), tensors, constants, self._momentum())

    def _momentum(self) -> dict[str, float]:
        """For each running mean, by how much a step moves it."""
        shares = {}
        for name in self._narrowing.means:
            norm: Any = self.net.get_submodule(name.rpartition(".")[0])
            shares[name] = 1 / int(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        return shares


def slimming(net: nn.Module, size: tuple[int, ...]) -> nn.Module:
    """Return a model that trains ``net`` on its slim shape: call it where you would call ``net``.

    Outputs, gradients and running statistics are those of ``net``, up to rounding, at less time a step where
    ``net`` learned ``Learn(frozen="zero")``. :func:`fit` does this by itself.

    Args:
        net: An adapted model, on the device where it will be trained.
        size: Channels, height and width of a picture.

    Returns:
        A model with the parameters of ``net``, or ``net`` itself where it has no slim shape or some of its
        layers were put into evaluation mode.
    """
    some_rest = net.training and not all(module.training for module in net.modules())
    if adapted(net).plan.learn.frozen != "zero" or some_rest:
        return net
    try:
        return Slimming(net, size)
    except ConfigError:
        return net
