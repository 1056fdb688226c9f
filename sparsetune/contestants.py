"""The ways to train that the bench compares, each as a model of its own over the same backbone."""

from __future__ import annotations

import copy

import torch
from torch import nn

from sparsetune.adapt import adapt_
from sparsetune.errors import ConfigError
from sparsetune.learn import Learn
from sparsetune.lowrank import lora
from sparsetune.plan import Plan, plan


def contestants(net: nn.Module, learn: Learn) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Make the models: ``full`` training, ``ours``, ``masked`` gradients, and PEFT's ``lora``.

    Args:
        net: A plain model; it is copied, not changed.
        learn: What is learned by all but full training; LoRA learns about as many values.

    Returns:
        The models by name, and why others are missing.
    """
    made = plan(net, learn)
    found = {"full": copy.deepcopy(net), "ours": adapt_(copy.deepcopy(net), learn)}
    missing = {}
    if learn.rank is None:
        found["masked"] = _masked(copy.deepcopy(net), made)
    else:
        missing["masked"] = "no mask makes a gradient one of low rank."
    try:
        found["lora"] = lora(copy.deepcopy(net), made)
    except ConfigError as error:
        missing["lora"] = str(error)
    return found, missing


def learned_parameters(name: str, model: nn.Module, made: Plan) -> int:
    """Return how many values a contestant learns; of masked gradients those that the masks leave."""
    if name == "masked":
        return made.learned_parameters
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _masked(net: nn.Module, made: Plan) -> nn.Module:
    """What users write today: every gradient is computed whole, then the frozen part is zeroed."""
    parameters = dict(net.named_parameters())
    for part in made:
        if part.k == 0:
            parameters[part.name].requires_grad_(False)
        elif part.partial:
            mask = torch.zeros(part.shape)
            mask.narrow(part.dim, 0, part.k).fill_(1)
            name = "mask " + part.name.replace(".", " ")
            net.register_buffer(name, mask, persistent=False)
            parameters[part.name].register_hook(lambda grad, name=name: grad * net.get_buffer(name))
    return net
