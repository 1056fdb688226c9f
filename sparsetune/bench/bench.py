"""Ours beside the alternatives on the user's machine: time, memory and storage of one model.

Every contestant is built from the same backbone and takes the same whole training steps (forward, loss,
backward, SGD with momentum and decay) on the same random batch, in turn, in one process; what counts is
the median ratio.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from sparsetune.backbone import logits_of, loss_of, origin_of
from sparsetune.bench.peft import adapter_bytes, lora, switching
from sparsetune.bench.timing import Figure, figure, held_bytes, learning_bytes, peak_bytes, take_turns
from sparsetune.delta import load, save
from sparsetune.errors import ConfigError, SparsetuneError
from sparsetune.host import reason
from sparsetune.parts import Plan, plan
from sparsetune.serve import Tasks
from sparsetune.sliced import adapt_
from sparsetune.spec import Learn


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


SWITCHES = 20
"""Switches in a counted round: one is much quicker than whatever else is timed."""


def keep(models: Mapping[str, nn.Module], device: str, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Save the contestants' models, then time loading them and switching between two tasks.

    Full training's file is a checkpoint by ``torch.save``, and loading it ``torch.load`` alone, without
    building a model. Ours is a delta, and :func:`sparsetune.load` builds the model, its backbone and the
    fingerprint as well. Both end on the CPU.

    Args:
        models: The contestants' models by name; a second task is added to LoRA's.
        device: Where they are.
        rounds: Counted rounds.

    Returns:
        Bytes by ``(name, "file")``; milliseconds by ``(name, "load")`` and ``(name, "switch")``, for those
        that have such. Ours has none for a model that ``create`` did not make.
    """
    sizes: dict[tuple[str, str], list[float]] = {}
    loads: dict[tuple[str, str], Callable[[], object]] = {}
    switches: dict[tuple[str, str], Callable[[], object]] = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        whole, delta = folder / "full.pt", folder / "ours.safetensors"
        torch.save({key: value.cpu() for key, value in models["full"].state_dict().items()}, whole)
        sizes["full", "file"] = [whole.stat().st_size]
        loads["full", "load"] = lambda: torch.load(whole, weights_only=True)
        if origin_of(models["ours"]):
            save(models["ours"], delta)
            sizes["ours", "file"] = [delta.stat().st_size]
            loads["ours", "load"] = lambda: load(delta, allow_network=True)
            switches["ours", "switch"] = _switching(delta, device)
        if "lora" in models:
            sizes["lora", "file"] = [adapter_bytes(models["lora"], folder)]
            switches["lora", "switch"] = switching(models["lora"])
        return {
            **sizes,
            **take_turns(loads, "cpu", rounds=rounds, warmup=1),
            **take_turns(switches, device, rounds=rounds * SWITCHES, warmup=SWITCHES),
        }


def _switching(delta: Path, device: str) -> Callable[[], object]:
    """Switch between two tasks; that their deltas are alike changes nothing."""
    tasks = Tasks.load({"one": delta, "other": delta}, allow_network=True).to(device)
    names = cycle(("one", "other"))

    def switch() -> None:
        with tasks.use(next(names)):
            pass

    return switch


MEASURES = {
    "step": ("training step", "ms"),
    "infer": ("inference", "ms"),
    "peak": ("memory of a step", "bytes"),
    "state": ("gradients and optimiser", "bytes"),
    "file": ("file", "bytes"),
    "load": ("load", "ms"),
    "switch": ("task switch", "ms"),
}
"""What is measured: its name in words, and its unit."""


@dataclass(frozen=True)
class Row:
    """One contestant's figures.

    Attributes:
        name: ``full``, ``ours``, ``masked`` or ``lora``.
        learned_parameters: Values that it learns.
        figures: A figure for each of ``MEASURES`` that it has. ``step`` is a training step, ``infer`` a
            forward pass in evaluation mode, ``peak`` the most memory at one time in a step: model, optimiser,
            gradients and activations, ``state`` what gradients and optimiser hold of it; for the rest see
            :func:`sparsetune.bench.bench.keep`.
    """

    name: str
    learned_parameters: int
    figures: Mapping[str, Figure]

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain JSON values."""
        value: dict[str, Any] = {"name": self.name, "learned_parameters": self.learned_parameters}
        for measure, each in self.figures.items():
            unit = MEASURES[measure][1]
            value[f"{measure}_{unit}"] = each.median
            value[f"{measure}_spread_{unit}"] = [each.low, each.high]
            value[f"{measure}_ratio"] = each.ratio
        return value


def bench(
    net: nn.Module,
    learn: Learn,
    *,
    batch_size: int = 32,
    size: tuple[int, int, int] = (3, 32, 32),
    device: str = "cpu",
    rounds: int = 10,
    warmup: int = 2,
    amp: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Row], dict[str, str]]:
    """Measure full training, ours, masked gradients and PEFT's LoRA side by side.

    Args:
        net: A plain model; it is copied, not changed.
        learn: What ours and masked gradients learn.
        batch_size: Images a step.
        size: Channels, height and width of an image.
        device: Where to run.
        rounds: Counted rounds; a round is one step and one forward pass of every contestant.
        warmup: Rounds before, not counted.
        amp: Autocast dtype, or ``None`` for full precision.
        progress: Called with the rounds done and the rounds in all.

    Returns:
        A row for each contestant, full training first; and contestant -> why it is missing.

    Raises:
        ConfigError: When the model cannot take pictures of that size.
    """
    made = plan(net, learn)
    models, missing = contestants(net, learn)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch_size, *size, generator=generator).to(device)
    classes = _outputs(models["full"].to(device), x, "the model")
    y = torch.randint(classes, (batch_size,), generator=generator).to(device)
    if "lora" in models:
        try:
            _outputs(models["lora"].to(device), x, "PEFT's model")
        except ConfigError as error:
            missing["lora"] = str(error)
            del models["lora"]
    learned = {name: learned_parameters(name, model, made) for name, model in models.items()}
    runs = {name: _Run(model.to(device), x, y, amp) for name, model in models.items()}
    actions = {
        (name, measure): action
        for name, run in runs.items()
        for measure, action in (("step", run.step), ("infer", run.infer))
    }
    found = take_turns(actions, device, rounds=rounds, warmup=warmup, progress=progress)
    found |= {(name, "peak"): [run.peak_bytes(device)] for name, run in runs.items()}
    found |= {(name, "state"): [run.state_bytes()] for name, run in runs.items()}
    found |= keep(models, device, rounds)
    return [
        Row(
            name,
            learned[name],
            {
                measure: figure(found[name, measure], found.get(("full", measure)))
                for measure in MEASURES
                if (name, measure) in found
            },
        )
        for name in models
    ], missing


class _Run:
    """A contestant at work."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, amp: torch.dtype | None) -> None:
        self.model, self.x, self.y = model, x, y
        self.autocast = torch.autocast(x.device.type, amp or torch.bfloat16, enabled=amp is not None)
        self.optimizer = torch.optim.SGD(
            [each for each in model.parameters() if each.requires_grad],
            lr=1e-3,
            momentum=0.9,
            weight_decay=5e-4,
        )

    def step(self) -> None:
        self.model.train()
        with self.autocast:
            loss = loss_of(self.model(self.x), self.y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def peak_bytes(self, device: str) -> int:
        self.optimizer.zero_grad()
        return held_bytes(self.model, self.optimizer) + peak_bytes(self.step, device)

    def state_bytes(self) -> int:
        return learning_bytes(self.model, self.optimizer)

    def infer(self) -> None:
        self.model.eval()
        with torch.inference_mode(), self.autocast:
            self.model(self.x)


def _outputs(model: nn.Module, x: Tensor, what: str) -> int:
    """Count a model's outputs by running it on one picture."""
    try:
        with torch.no_grad():
            return logits_of(model.eval()(x[:1])).shape[1]
    except SparsetuneError:
        raise
    except Exception as error:
        shape = "x".join(map(str, x.shape[1:]))
        raise ConfigError(
            f"{what} cannot take pictures of {shape} ({reason(error)}); try another size."
        ) from error
