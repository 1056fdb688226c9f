"""PEFT's LoRA: with as many learned values as ours has in each layer, or of one rank for all layers."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sparsetune.errors import ConfigError
from sparsetune.host import reason
from sparsetune.parts import Plan, plan
from sparsetune.spec import Learn

_KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def lora(net: nn.Module, made: Plan) -> nn.Module:
    """Let PEFT adapt a model: LoRA on its layers; normalisation and classifier are learned where ours does.

    Args:
        net: A plain model; it is changed.
        made: Our plan for it.

    Returns:
        PEFT's model around ``net``.

    Raises:
        ConfigError: When PEFT is not installed, or cannot adapt the model.
    """
    chosen = ranks(net, made)
    if not chosen:
        raise ConfigError("no layer learns enough for one rank; give a larger fraction.")
    patterns = {f"^{re.escape(name)}": rank for name, rank in chosen.items()}
    return _peft(net, made, [*chosen], rank_pattern=patterns)


def uniform_lora(net: nn.Module, rank: int, layers: Sequence[str] | None = None) -> nn.Module:
    """Let PEFT adapt a model as its users do: one rank for its layers; normalisation and head learned whole.

    Initial values are drawn from torch's random state; ``lora_alpha`` is the rank, so no sum is scaled.

    Args:
        net: A plain model; it is changed.
        rank: Of each convolution and linear map but the head.
        layers: Module-name patterns of the layers that get an adapter; all of them if left out.

    Returns:
        PEFT's model around ``net``.

    Raises:
        ConfigError: When PEFT is not installed, or cannot adapt the model.
        UnknownNameError: When a pattern matches no layer.
    """
    made = plan(net, Learn(rank=rank, layers=None if layers is None else tuple(layers)))
    names = [part.homes[0][0] for part in made if part.layer and part.rank]
    return _peft(net, made, names, r=rank, lora_alpha=rank)


def is_installed() -> bool:
    """Return whether PEFT is there."""
    return find_spec("peft") is not None


def learned_tensors(model: nn.Module) -> list[Tensor]:
    """Return what a file of PEFT's model must hold: adapters, normalisation with its statistics, head."""
    parameters = [value for value in model.parameters() if value.requires_grad]
    statistics = [value for name, value in model.named_buffers() if ".original_module." not in name]
    return [value.detach() for value in (*parameters, *statistics)]


def _peft(net: nn.Module, made: Plan, layers: list[str], **sizes: Any) -> nn.Module:
    if not is_installed():
        raise ConfigError("PEFT is not installed; run: pip install 'sparsetune[peft]'.")
    from peft import LoraConfig, get_peft_model  # takes seconds

    config = LoraConfig(
        target_modules="|".join(map(re.escape, layers)),
        modules_to_save=list(dict.fromkeys(p.homes[0][0] for p in made if p.learned and not p.layer)) or None,
        **sizes,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found: nn.Module = get_peft_model(net, config)
        except Exception as error:
            raise ConfigError(f"PEFT cannot adapt this model ({reason(error)}).") from error
    return found


def ranks(net: nn.Module, made: Plan) -> dict[str, int]:
    """Return the rank of each layer that has the values of our part, or as near as whole ranks come.

    What is left over, or was too much, counts for the next layer, so that the sums agree.
    """
    found: dict[str, int] = {}
    left = 0.0
    for part in made:
        name, leaf = part.homes[0]
        module = net.get_submodule(name)
        left += part.learned_numel * part.layer
        if part.layer and part.learned and leaf == "weight" and isinstance(module, _KINDS):
            groups = getattr(module, "groups", 1)  # PEFT takes multiples of it for a rank
            inputs = groups * part.numel // part.shape[0]
            cost = groups * inputs + part.shape[0]
            if (times := round(left / cost)) > 0:
                found[name] = times * groups
                left -= times * cost
    return found


def adapter_bytes(model: Any, folder: Path) -> int:
    """Save the adapter of :func:`lora`'s model into ``folder``; return the bytes of its values' file."""
    model.save_pretrained(folder, selected_adapters=["default"])
    return (folder / "adapter_model.safetensors").stat().st_size


def switching(model: Any) -> Callable[[], None]:
    """Add a second adapter like the first to :func:`lora`'s model; return what switches to the other one."""
    model.add_adapter("other", model.peft_config["default"])
    names = cycle(("other", "default"))
    return lambda: model.set_adapter(next(names))
