"""Ours beside the alternatives on the user's machine: time, memory and storage of one model.

Every contestant is built from the same backbone and takes the same whole training steps (forward, loss,
backward, SGD with momentum and decay) on the same random batch, in turn, in one process; what counts is
the median ratio, printed or drawn.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
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
from sparsetune.host import reason, replacing, size
from sparsetune.parts import Plan, plan
from sparsetune.runs import BLUE
from sparsetune.serve import Tasks
from sparsetune.sliced import adapt_
from sparsetune.spec import KINDS, Learn

_COLUMNS = 4
"""Panels in a row of the picture."""
_LINE = 0.21
"""Share of a measurement's height that one bar takes."""
_ROOM = 1.55
"""Width of a panel, whose bars have labels behind them, over that of its longest bar."""

Keep = Callable[[nn.Module, Path, str], Mapping[str, Any]]
"""Saves a contestant's model in a folder; takes its device too. Returns what there is of the bytes of the
``file``, what does a ``load`` of it onto the CPU, and what does a ``switch`` to another task."""


@dataclass(frozen=True)
class Contestant:
    """A way to train a model.

    Attributes:
        title: What it is called in pictures.
        colour: There.
        make: Makes it of a plain model, a learn spec and its plan; may change the model.
        keep: Saves what is kept of it for a task.
        count: How many values it learns; takes the plan too.
        optional: What its model is called where it can be left out; what stops another one stops the bench.
    """

    title: str
    colour: str
    make: Callable[[nn.Module, Learn, Plan], nn.Module]
    keep: Keep = lambda *_: {}
    count: Callable[[nn.Module, Plan], int] = lambda model, _: sum(
        parameter.numel() for parameter in model.parameters() if parameter.requires_grad
    )
    optional: str = ""


def _masked(net: nn.Module, learn: Learn, made: Plan) -> nn.Module:
    """What users write today: every gradient is computed whole, then the frozen part is zeroed."""
    if others := learn.amounts.keys() - {"fraction", "filters"}:
        raise ConfigError(f"no mask makes a gradient one of a {' or '.join(sorted(others))}.")
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


def _keep_whole(model: nn.Module, folder: Path, _: str) -> Mapping[str, Any]:
    """A checkpoint by ``torch.save``; loading it is ``torch.load`` alone, without building a model."""
    path = folder / "full.pt"
    torch.save({key: value.cpu() for key, value in model.state_dict().items()}, path)
    return {"file": path.stat().st_size, "load": lambda: torch.load(path, weights_only=True)}


def _keep_delta(model: nn.Module, folder: Path, device: str) -> Mapping[str, Any]:
    """A delta; :func:`sparsetune.load` builds the model, its backbone and the fingerprint as well.

    There is none of a model that ``create`` did not make. That the two tasks' deltas are alike changes
    nothing.
    """
    if not origin_of(model):
        return {}
    path = folder / "ours.safetensors"
    save(model, path)
    tasks = Tasks.load({"one": path, "other": path}, allow_network=True).to(device)
    names = cycle(("one", "other"))

    def switch() -> None:
        with tasks.use(next(names)):
            pass

    return {
        "file": path.stat().st_size,
        "load": lambda: load(path, allow_network=True),
        "switch": switch,
    }


CONTESTANTS = {
    "full": Contestant("full training", "#c4c4c4", lambda net, *_: net, _keep_whole),
    "ours": Contestant("sparsetune", BLUE, lambda net, learn, _: adapt_(net, learn), _keep_delta),
    "masked": Contestant(
        "masked gradients",
        "#e0a84c",
        _masked,
        count=lambda _, made: made.learned_parameters,
        optional="the masked model",
    ),
    "lora": Contestant(
        "PEFT LoRA",
        "#b5546a",
        lambda net, _, made: lora(net, made),
        lambda model, folder, _: {"file": adapter_bytes(model, folder), "switch": switching(model)},
        optional="PEFT's model",
    ),
}
"""By name, in the order in which they take turns."""


def contestants(net: nn.Module, learn: Learn) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Make the models.

    Args:
        net: A plain model; it is copied, not changed.
        learn: What is learned by all but full training; LoRA learns about as many values.

    Returns:
        The models by name, and why others are missing.
    """
    made = plan(net, learn)
    found, missing = {}, {}
    for name, each in CONTESTANTS.items():
        try:
            found[name] = each.make(copy.deepcopy(net), learn, made)
        except ConfigError as error:
            if not each.optional:
                raise
            missing[name] = str(error)
    return found, missing


SWITCHES = 20
"""Switches in a counted round: one is much quicker than whatever else is timed."""


def keep(models: Mapping[str, nn.Module], device: str, rounds: int) -> dict[tuple[str, str], list[float]]:
    """Save the contestants' models, then time loading them and switching between two tasks.

    Args:
        models: The contestants' models by name; a second task is added to LoRA's.
        device: Where they are.
        rounds: Counted rounds.

    Returns:
        Bytes by ``(name, "file")``; milliseconds by ``(name, "load")`` and ``(name, "switch")``, for those
        that have such.
    """
    with TemporaryDirectory() as folder:
        found: dict[str, dict[tuple[str, str], Any]] = {"file": {}, "load": {}, "switch": {}}
        for name, model in models.items():
            for measure, value in CONTESTANTS[name].keep(model, Path(folder), device).items():
                found[measure][name, measure] = value
        return {
            **{key: [count] for key, count in found["file"].items()},
            **take_turns(found["load"], "cpu", rounds=rounds, warmup=1),
            **take_turns(found["switch"], device, rounds=rounds * SWITCHES, warmup=SWITCHES),
        }


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


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What each contestant is given to do.

    Attributes:
        batch_size: Images a step.
        size: Channels, height and width of an image.
        device: Where to run.
        rounds: Counted rounds; a round is one step and one forward pass of every contestant.
        warmup: Rounds before, not counted.
        amp: Autocast dtype, or ``None`` for full precision.
    """

    batch_size: int = 32
    size: tuple[int, int, int] = (3, 32, 32)
    device: str = "cpu"
    rounds: int = 10
    warmup: int = 2
    amp: torch.dtype | None = None


def bench(
    net: nn.Module,
    learn: Learn,
    work: Workload = Workload(),
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Row], dict[str, str]]:
    """Measure full training, ours, masked gradients and PEFT's LoRA side by side.

    Args:
        net: A plain model; it is copied, not changed.
        learn: What ours and masked gradients learn.
        work: What each is given to do.
        progress: Called with the rounds done and the rounds in all.

    Returns:
        A row for each contestant, full training first; and contestant -> why it is missing.

    Raises:
        ConfigError: When the model cannot take pictures of that size.
    """
    made, device = plan(net, learn), work.device
    models, missing = contestants(net, learn)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(work.batch_size, *work.size, generator=generator).to(device)
    outputs = {}
    for name, model in [*models.items()]:
        try:
            outputs[name] = _outputs(model.to(device), x, CONTESTANTS[name].optional or "the model")
        except ConfigError as error:
            if not CONTESTANTS[name].optional:
                raise
            missing[name] = str(error)
            del models[name]
    y = torch.randint(outputs["full"], (work.batch_size,), generator=generator).to(device)
    runs = {name: _Run(model, x, y, work.amp) for name, model in models.items()}
    learned = {name: CONTESTANTS[name].count(model, made) for name, model in models.items()}
    actions = {
        (name, measure): action
        for name, run in runs.items()
        for measure, action in (("step", run.step), ("infer", run.infer))
    }
    found = take_turns(actions, device, rounds=work.rounds, warmup=work.warmup, progress=progress)
    found |= {(name, "peak"): [run.peak_bytes(device)] for name, run in runs.items()}
    found |= {(name, "state"): [learning_bytes(run.model, run.optimizer)] for name, run in runs.items()}
    found |= keep(models, device, work.rounds)
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


def draw_bench(measurements: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw a panel of bars for each measure and write a PNG.

    Bars are ratios to full training, with the measured value beside each; the task switch, which full
    training does not have, is in milliseconds.

    Args:
        measurements: What ``sparsetune bench --json`` prints, of one model and learn spec each; at least one.
        path: The file; it appears whole or not at all.

    Raises:
        StorageError: When the file cannot be written.
    """
    from matplotlib.figure import Figure as Canvas  # takes half a second, and most commands draw nothing
    from matplotlib.patches import Patch

    shown = [measure for measure in MEASURES if any(_values(found, measure) for found in measurements)]
    lines = -(-len(shown) // _COLUMNS)
    height = 0.8 + lines * (0.6 + (0.8 * len(measurements) if len(measurements) > 1 else 1.1))
    canvas = Canvas(figsize=(3.6 * _COLUMNS, height), layout="constrained")
    canvas.suptitle(_title(measurements), fontsize=11)
    panels = list(canvas.subplots(lines, _COLUMNS, sharey=True, squeeze=False).flat)
    for panel, measure in zip(panels, shown, strict=False):
        _draw_panel(panel, measure, measurements)
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    present = {row["name"] for found in measurements for row in found["rows"]}
    drawn = [each for name, each in CONTESTANTS.items() if name in present]
    patches = [Patch(color=each.colour, label=each.title) for each in drawn]
    canvas.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False)
    with replacing(path) as temporary:
        canvas.savefig(temporary, format="png", dpi=130)


def amount(value: float, unit: str) -> str:
    """Return a measured value in words."""
    if unit == "bytes":
        return size(value)
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def describe(found: Mapping[str, Any]) -> str:
    """Return model and learn spec of a measurement in a few words."""
    learn = found["learn"]
    what = next(f"{name} {size:g}" for name in KINDS if (size := learn.get(name)) is not None)
    return f"{found['model']}, {what}" + ("" if learn["head"] else ", no head")


def _title(measurements: Sequence[Mapping[str, Any]]) -> str:
    machines = "; ".join(dict.fromkeys(map(_machine, measurements)))
    first = measurements[0]
    shape = f"{first['batch_size']}x3x{first['size']}x{first['size']}"
    return f"{describe(first)}; batches of {shape}; {machines}" if len(measurements) == 1 else machines


def _machine(found: Mapping[str, Any]) -> str:
    processor = f"{found['processor']}, {found['threads']} threads"
    return processor if found["device"] == "cpu" else str(found["accelerator"])


def _draw_panel(panel: Any, measure: str, measurements: Sequence[Mapping[str, Any]]) -> None:
    words, unit = MEASURES[measure]
    relative = any(ratio is not None for found in measurements for _, _, ratio in _values(found, measure))
    longest = 0.0
    for group, found in enumerate(measurements):
        values = _values(found, measure)
        for index, (name, value, ratio) in enumerate(values):
            if (length := ratio if relative else value) is None:
                continue
            place = group + _LINE * (index + 0.5 - len(values) / 2)
            panel.barh(place, length, 0.9 * _LINE, color=CONTESTANTS[name].colour)
            text = amount(value, unit)
            panel.annotate(
                f"{length:.2f}  ({text})" if relative else text,
                (length, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
            longest = max(longest, length)
    panel.set_title(words + (", of full training" if relative else f", {unit}"), fontsize=10)
    panel.set_xlim(0, _ROOM * longest)
    panel.locator_params(axis="x", nbins=5)
    names = [describe(each).replace(", ", "\n") for each in measurements] if len(measurements) > 1 else [""]
    panel.set_yticks(range(len(measurements)), names, fontsize=9)
    panel.set_ylim(len(measurements) - 0.5, -0.5)
    panel.tick_params(axis="y", length=0)
    panel.label_outer()
    panel.tick_params(axis="x", labelbottom=True)
    if relative:
        panel.axvline(1, color="#777777", linewidth=0.8, linestyle=":", zorder=0)
    panel.spines[["top", "right"]].set_visible(False)


def _values(found: Mapping[str, Any], measure: str) -> list[tuple[str, float, float | None]]:
    """Name, median and ratio of each contestant that has the measure."""
    key = f"{measure}_{MEASURES[measure][1]}"
    return [(row["name"], row[key], row[f"{measure}_ratio"]) for row in found["rows"] if key in row]
