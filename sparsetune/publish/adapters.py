"""PEFT's LoRA adapters: a low-rank delta written as one, and one read into a model, without PEFT."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from sparsetune.errors import ConfigError, DeltaError
from sparsetune.host import json_from, read_sealed, reason, shown, write_bytes, write_text
from sparsetune.parts import Part, factor_names, head_names, is_norm, keeps_statistics, plan, under, unwrapped
from sparsetune.sliced import adapt_, adapted, learned_values, merge_
from sparsetune.spec import Learn

CONFIG, VALUES = "adapter_config.json", "adapter_model.safetensors"
"""Files of an adapter's folder."""
PREFIX = "base_model.model."
"""What stands before a module's name in an adapter."""
WRAPPED = "timm_model."
"""What stands before it as well where transformers wrapped timm's model."""
PATTERN = re.compile(r"\^?(\w|[-.]|\\[-.])+\$?")
"""Names of modules as an adapter's patterns have them; others could take long to match."""
FACTORS = ".lora_A.weight", ".lora_B.weight"
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
MOST = 1 << 20
"""Most bytes of an adapter's settings."""
PLAIN = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "use_dora": (False,),
    "use_qalora": (False,),
    "lora_bias": (False,),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "use_bdlora": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "alora_invocation_tokens": (None,),
}
"""Settings of an adapter that change what its values mean, and those that leave it a plain sum."""


def is_adapter(path: str | Path) -> bool:
    """Return whether a path is the folder of one of PEFT's adapters."""
    return (Path(path) / CONFIG).is_file()


def classes_in(folder: str | Path, net: nn.Module) -> int | None:
    """Return how many classes an adapter's classifier has, for a model like ``net``; ``None`` without one.

    Raises:
        ConfigError: When the adapter is not plain LoRA.
        DeltaError: When its files are damaged.
    """
    _, tensors = _read(Path(folder))
    known = [f"{head}{end}" for head in head_names(net) for end in (".weight", FACTORS[1])]
    return next((len(tensors[name]) for name in known if name in tensors and tensors[name].dim()), None)


def to_peft(net: nn.Module, folder: str | Path) -> None:
    """Write what a model learned as an adapter of PEFT: ``PeftModel.from_pretrained(backbone, folder)``.

    Sums become LoRA of the same rank, unscaled; normalisation, with its running statistics where they are
    updated, and the classifier become ``modules_to_save``.

    Args:
        net: A model that learns low-rank sums.
        folder: Where to write; made if it is not there.

    Raises:
        ConfigError: When the model is not adapted, learns no sum, or other kinds and sums over groups too.
        StorageError: When it cannot be written.
    """
    made = adapted(net).plan
    refused = [part for part in made if part.partial and not part.rank]
    if refused:
        said = f"{refused[0].share} of '{refused[0].name}' is learned"
        raise ConfigError(f"{said}, which no LoRA adapter can hold; only sums (rank=4, say) become one.")
    values = {name: value.detach() for name, value in learned_values(net, made)}
    plain = merge_(copy.deepcopy(unwrapped(net)))
    saved = [part.homes[0][0] for part in made if part.whole]
    matched = [name for name, _ in plain.named_modules() if saved and name.endswith((*saved,))]
    tensors: dict[str, Tensor] = {}
    for module in matched:  # PEFT takes every module whose name ends so, whole, statistics included
        tensors |= plain.get_submodule(module).state_dict(prefix=f"{PREFIX}{module}.")
    ranks = {p.homes[0][0]: p for p in made if p.rank and not under(p.homes[0][0], matched)}
    for module, part in ranks.items():
        if getattr(plain.get_submodule(module), "groups", 1) > 1:
            raise ConfigError(
                f"a sum over the grouped '{part.name}' is learned, which no LoRA adapter can hold."
            )
        a, b = (values[name] for name in factor_names(part.name))
        tensors[PREFIX + module + FACTORS[0]] = a
        tensors[PREFIX + module + FACTORS[1]] = b.reshape(*b.shape, *[1] * (a.dim() - 2))
    if not ranks:
        raise ConfigError("no sum is learned, and PEFT takes no adapter without one; learn rank=4, say.")
    usual = max(part.rank for part in ranks.values())
    fewer = {f"^{re.escape(name)}": part.rank for name, part in ranks.items() if part.rank != usual}
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": fewer,
        "alpha_pattern": fewer,
        "target_modules": "|".join(map(re.escape, ranks)),
        "modules_to_save": [*dict.fromkeys(saved)] or None,
        "bias": "none",
        "inference_mode": True,
    }
    content = save({name: value.cpu().contiguous() for name, value in tensors.items()}, {"format": "pt"})
    write_bytes(Path(folder) / VALUES, content)
    write_text(Path(folder) / CONFIG, json.dumps(config, indent=2) + "\n")


def from_peft(net: nn.Module, folder: str | Path) -> nn.Module:
    """Adapt a model as an adapter of PEFT does, in place, with the adapter's values.

    LoRA becomes sums of the same rank, with its scale in ``B``; LoRA of the classifier makes that learned
    whole. ``modules_to_save`` may be normalisation, the classifier, convolutions and linear maps.

    Args:
        net: A plain model that holds the adapter's backbone, with as many classes.
        folder: The adapter's folder.

    Returns:
        ``net``, adapted: with :func:`sparsetune.save` it becomes a delta.

    Raises:
        ConfigError: When the adapter is not LoRA of convolutions and linear maps, or is of another model.
        DeltaError: When its files are damaged.
    """
    config, tensors = _read(Path(folder))
    factors, wholes = _parted(net, tensors)
    heads = head_names(net)
    layers = {name: rows for name, rows in factors.items() if not under(name, heads)}
    owners = dict.fromkeys(name.rpartition(".")[0] for name in wholes if not under(name, heads))
    norms = [name for name in owners if is_norm(net.get_submodule(name))]
    moved = any(not torch.equal(v.to(wholes[n]), wholes[n]) for n, v in net.named_buffers() if n in wholes)
    kept = not moved and any(map(keeps_statistics, net.modules()))
    learn = _learn(
        net,
        {name: len(a) for name, (a, _) in layers.items()},
        [name for name in owners if name not in norms],
        norm=bool(norms),
        head=any(under(name, heads) for name in (*factors, *wholes)),
        norm_stats="frozen" if kept else None,
    )
    scales = {name: _scale(config, name, len(a)) for name, (a, _) in factors.items()}
    adapt_(net, learn)
    with torch.no_grad():
        for name, value in wholes.items():
            module, _, leaf = name.rpartition(".")
            held: Tensor = getattr(net.get_submodule(module), leaf)
            held.copy_(value)
        for part in adapted(net).plan:
            module = part.homes[0][0]
            if module not in factors or part.name != f"{module}.weight":
                continue
            a, b = factors[module]
            b = b.flatten(1).double() * scales[module]
            if part.rank:
                found = _within(part, a.double(), b)
                for name, value in zip(factor_names(part.name), found, strict=True):
                    net.get_parameter(name).copy_(value)
            else:
                net.get_parameter(part.name).add_((b @ a.flatten(1).double()).view(part.shape))
    return net


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return an adapter's settings and its tensors by the model's names, refusing all but plain LoRA."""
    file = folder / CONFIG
    try:
        if file.stat().st_size > MOST:
            raise ValueError(f"it has more than {MOST:,} bytes")
        config = json_from(file.read_bytes())
        if not isinstance(config, dict):
            raise ValueError("it is no mapping")
    except (OSError, ValueError) as error:
        raise DeltaError(f"'{file}' cannot be read as an adapter's settings ({reason(error)}).") from error
    wrong = [name for name, plain in PLAIN.items() if config.get(name, plain[0]) not in plain]
    if wrong:
        said = " and ".join(f"{name} {shown(config[name])}" for name in wrong)
        raise ConfigError(
            f"'{file}' has {said}, which no low-rank sum can stand for; in PEFT, merge the adapter into the "
            "model and learn from that checkpoint."
        )
    try:
        _, tensors = read_sealed(folder / VALUES)
    except (OSError, SafetensorError, ValueError) as error:
        raise DeltaError(f"'{folder / VALUES}' cannot be read ({reason(error)}).") from error
    named = {name.removeprefix(PREFIX): value for name, value in tensors.items()}
    if all(name.startswith(WRAPPED) for name in named):
        named = {name.removeprefix(WRAPPED): value for name, value in named.items()}
    return config, named


def _parted(
    net: nn.Module, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Part an adapter's tensors into the factors of each layer and those that are learned whole."""
    modules = dict(net.named_modules())
    there = net.state_dict()
    ends = {name.removesuffix(end) for name in tensors for end in FACTORS if name.endswith(end)}
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for name in sorted(ends):
        found = [tensors.get(name + end) for end in FACTORS]
        layer = modules.get(name)
        if not isinstance(layer, LAYERS):
            raise ConfigError(
                f"the adapter adds to '{shown(name)}', which is no convolution or linear map of this "
                f"{type(net).__name__}; create the model that it was made for."
            )
        if getattr(layer, "groups", 1) > 1:
            raise ConfigError(
                f"the adapter adds to '{name}', whose filters are in {layer.groups} groups; not even PEFT "
                "can merge such a sum."
            )
        a, b = found
        shape, apart = layer.weight.shape, [1] * (layer.weight.dim() - 2)
        if (
            a is None
            or b is None
            or a.dim() != len(shape)
            or not len(a)
            or a.shape[1:] != shape[1:]
            or list(b.shape) != [shape[0], len(a), *apart]
        ):
            sizes = " and ".join("none" if each is None else str(tuple(each.shape)) for each in found)
            raise DeltaError(f"the adapter's factors of '{name}' are {sizes}, its weight {tuple(shape)}.")
        factors[name] = a, b
    wholes = {name: value for name, value in tensors.items() if not name.endswith(FACTORS)}
    heads = head_names(net)
    for name, value in wholes.items():
        module = name.rpartition(".")[0]
        if name not in there or not (
            isinstance(modules[module], LAYERS) or is_norm(modules[module]) or under(module, heads)
        ):
            raise ConfigError(
                f"the adapter has '{shown(name)}', which is no layer, normalisation or classifier of this "
                f"{type(net).__name__}; create the model that it was made for."
            )
        if there[name].shape != value.shape:
            raise ConfigError(
                f"the adapter's '{name}' has shape {tuple(value.shape)}, the model's "
                f"{tuple(there[name].shape)}; create the model with the adapter's number of classes."
            )
    return factors, wholes


def _learn(net: nn.Module, ranks: dict[str, int], wholes: list[str], **others: Any) -> Learn:
    """Return what is learned; in one number for all layers, where that comes to the same."""
    if not ranks and not wholes:
        return Learn(filters=0, **others)
    amounts: dict[str, Any] = {"rank": ranks} if ranks else {}
    amounts |= {"fraction": dict.fromkeys(wholes, 1.0)} if wholes else {}
    exact = Learn(**amounts, **others)
    plain = Learn(rank=max(ranks.values()), **others) if ranks and not wholes else exact
    return plain if [*plan(net, plain)] == [*plan(net, exact)] else exact


def _scale(config: Mapping[str, Any], name: str, rank: int) -> float:
    """Return what PEFT multiplies the sum of a layer by."""
    alphas = config.get("alpha_pattern") or {}
    if not isinstance(alphas, dict) or not all(PATTERN.fullmatch(pattern) for pattern in alphas):
        raise ConfigError(
            f"alpha_pattern {shown(alphas)} holds other than module names; write out the layers."
        )
    named = (alpha for pattern, alpha in alphas.items() if re.match(rf"(.*\.)?({pattern})$", name))
    alpha = next(named, config.get("lora_alpha", 8))
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise ConfigError(f"lora_alpha {shown(alpha)} of '{name}' is no number.")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _within(part: Part, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return factors of the part's rank, the most that it can have, with the same product."""
    if len(a) <= part.rank:
        return a, b
    whole = b @ a.flatten(1)
    unit = torch.eye(part.rank, dtype=whole.dtype)
    if part.rank == part.shape[0]:
        return whole.view(part.shape), unit
    return unit.view(part.rank, *part.shape[1:]), whole
