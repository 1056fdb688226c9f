"""Initial values: of a model just built, from a seed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsetune.errors import BackboneError
from sparsetune.layers import STORED
from sparsetune.observe import Observation, Stretch
from sparsetune.seeding import draw, draw_


def draw_initial(net: nn.Module, seen: Observation, seed: int) -> None:
    """Draw every random tensor of ``net`` whose law was observed; note the other ones as ``STORED``.

    Args:
        net: The model, just built.
        seen: What was observed meanwhile.
        seed: Seed of the values.

    Raises:
        BackboneError: When a random buffer follows no law and is not among those that a file holds.
    """
    tensors: dict[str, Tensor] = {**dict(net.named_buffers()), **dict(net.named_parameters())}
    persistent = net.state_dict().keys()
    for name, reason in (unknown := seen.unknown(net)).items():
        if name not in persistent:
            raise BackboneError(
                f"the initial values of '{name}' cannot be rebuilt from a seed ({reason}), nor be saved; "
                "use pretrained weights or a checkpoint, or adapt_ a model that you built yourself."
            )
    setattr(net, STORED, tuple(unknown))
    for name, stretches in seen.laws(net).items():
        for stretch in stretches:
            _draw_stretch(tensors[name].detach(), seed, name, stretch)


def _draw_stretch(tensor: Tensor, seed: int, name: str, stretch: Stretch) -> None:
    start, stop = stretch.start, stretch.stop
    if stop - start < tensor.numel():
        tensor.view(-1)[start:stop] = draw(seed, name, (stop,), stretch.law)[start:]
    elif tensor.is_contiguous() and (tensor.dtype, tensor.device.type) == (torch.float32, "cpu"):
        draw_(tensor, seed, name, stretch.law)
    else:
        tensor.copy_(draw(seed, name, tensor.shape, stretch.law))
