"""``sparsetune fit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from sparsetune.cli import console, options
from sparsetune.config import FitConfig
from sparsetune.data import Data
from sparsetune.durations import seconds_from
from sparsetune.errors import ConfigError, SparsetuneError
from sparsetune.plan import Plan
from sparsetune.runs import CHECKPOINT, CONFIG, DELTA, Outcome, Run, run
from sparsetune.training import Epoch, Step


def fit(
    model: options.Model = "wrn28_4",
    fraction: options.Fraction = None,
    filters: options.Filters = None,
    dim: options.Dim = "out",
    layers: options.Layers = None,
    norm: options.Norm = True,
    head: options.Head = True,
    frozen: options.Frozen = None,
    data: options.DataName = "digits",
    size: Annotated[int | None, typer.Option("--size", min=1, help="Resize pictures to this side.")] = None,
    train_limit: Annotated[
        int | None,
        typer.Option("--train-limit", min=1, help="Use so many training pictures, balanced over classes."),
    ] = None,
    test_limit: Annotated[
        int | None,
        typer.Option("--test-limit", min=1, help="Use so many test pictures, balanced over classes."),
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", help="Passes over the training pictures.")] = 10,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", help="Pictures a step.")] = 64,
    opt: Annotated[
        str, typer.Option("--opt", help="One of timm's optimisers, such as momentum or adamw.")
    ] = "momentum",
    lr: Annotated[float, typer.Option("--lr", help="Learning rate at the start.")] = 0.1,
    sched: Annotated[
        str, typer.Option("--sched", help="How it falls: cosine, tanh, poly or none.")
    ] = "cosine",
    weight_decay: Annotated[float, typer.Option("--weight-decay", help="On learned weights.")] = 5e-4,
    seed: Annotated[
        int, typer.Option("--seed", help="Seed of the training: order, augmentation, dropout.")
    ] = 0,
    backbone_seed: options.BackboneSeed = 0,
    pretrained: options.Pretrained = False,
    init_from: Annotated[
        str | None,
        typer.Option(
            "--init-from", help="A whole .safetensors checkpoint to stand on, or a delta to start from."
        ),
    ] = None,
    amp: Annotated[str | None, typer.Option("--amp", help="Mixed precision: bf16 or fp16.")] = None,
    compile_: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    workers: Annotated[int, typer.Option("--workers", "-j", help="Processes that decode pictures.")] = 0,
    device: options.Device = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the same command stopped.")] = False,
    time_budget: Annotated[
        str | None, typer.Option("--time-budget", help="Stop cleanly after this long, such as 90s or 9m.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the run; runs/NAME if left out.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Train a slice of a model and save it as a delta.

    Example: sparsetune fit --model wrn28_4 --fraction 0.1 --data digits

    Writes delta.safetensors, metrics.jsonl, config.json and curves.png to the run's folder.
    """
    budget = None if time_budget is None else seconds_from(time_budget)
    problems: list[str] = []
    learn = _collect(problems, lambda: options.learn_from(fraction, filters, dim, layers, norm, head, frozen))
    config = _collect(
        problems,
        lambda: FitConfig(
            epochs=epochs,
            batch_size=batch_size,
            opt=opt,
            lr=lr,
            sched=_any(sched),
            weight_decay=weight_decay,
            seed=seed,
            amp=_any(amp),
            compile=compile_,
            workers=workers,
            device=device,
        ),
    )
    ConfigError.collect(problems)
    settings = Run(
        model=model,
        learn=learn,
        config=config,
        data=data,
        size=size,
        train_limit=train_limit,
        test_limit=test_limit,
        backbone_seed=backbone_seed,
        pretrained=pretrained,
        init_from=init_from,
    )
    folder = out or _folder(settings.name, resume)
    with console.progress() as bars:
        outcome = run(
            settings,
            folder,
            resume=resume,
            time_budget=budget,
            watch=_Watch(bars, settings.config.epochs),
            started=_announce,
        )
    if as_json:
        console.print_json(_summary(outcome))
    elif outcome.finished:
        _report(outcome, settings)
    else:
        done = len(outcome.history)
        console.err.print(
            f"time is up after {done} of {epochs} epochs; the same command with --resume goes on."
        )


def _any(value: Any) -> Any:
    return value


def _collect(problems: list[str], make: Any) -> Any:
    try:
        return make()
    except SparsetuneError as error:
        problems.append(str(error))


def _folder(name: str, resume: bool) -> Path:
    """``runs/NAME``; numbered where that holds another run that is not to be resumed."""
    folder, number = Path("runs") / name, 1
    while not resume and (folder / CONFIG).is_file():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


def _announce(made: Plan, data: Data) -> None:
    share = made.learned_parameters / made.total_parameters
    console.err.print(
        f"learning {made.learned_parameters:,} of {made.total_parameters:,} values ({share:.1%}) "
        f"on {len(data.train or ()):,} pictures of {data.name}"
    )


class _Watch:
    """Draws a bar for the whole training, and a line for each epoch."""

    def __init__(self, bars: Progress, epochs: int) -> None:
        self.bars, self.epochs = bars, epochs
        self.task: Any = None

    def __call__(self, event: Step | Epoch) -> None:
        if isinstance(event, Step):
            total = self.epochs * event.steps
            if self.task is None:
                self.task = self.bars.add_task("training", total=total)
            done = (event.epoch - 1) * event.steps + event.step
            text = f"epoch {event.epoch}/{self.epochs}  loss {event.loss:.3f}"
            self.bars.update(self.task, completed=done, description=text)
        else:
            console.err.print(
                f"epoch {event.epoch:>3}  loss {event.train_loss:.3f}  train {event.train_top1:6.2%}  "
                f"test {event.test_top1:6.2%}  {event.seconds:.1f} s"
            )


def _summary(outcome: Outcome) -> dict[str, Any]:
    delta = outcome.folder / DELTA
    return {
        "folder": str(outcome.folder),
        "finished": outcome.finished,
        "epochs": [record.to_json() for record in outcome.history],
        "learned_parameters": outcome.plan.learned_parameters,
        "total_parameters": outcome.plan.total_parameters,
        "delta": str(delta) if outcome.finished else None,
        "delta_bytes": delta.stat().st_size if outcome.finished else None,
        "checkpoint": None if outcome.finished else str(outcome.folder / CHECKPOINT),
    }


def _report(outcome: Outcome, settings: Run) -> None:
    last, made, delta = outcome.history[-1], outcome.plan, outcome.folder / DELTA
    whole = made.total_parameters * made.itemsize
    size = delta.stat().st_size
    seconds = sum(record.seconds for record in outcome.history)
    rows = [
        ("test accuracy", f"{last.test_top1:.2%}  (top-5 {last.test_top5:.2%}, loss {last.test_loss:.3f})"),
        ("learned", f"{made.learned_parameters:,} of {made.total_parameters:,} values"),
        ("delta", f"{delta}  {console.kib(size)}, {size / whole:.1%} of a whole checkpoint"),
        ("time", f"{seconds:.1f} s for {len(outcome.history)} epochs"),
        ("curves", str(outcome.folder / "curves.png")),
    ]
    for name, text in rows:
        console.out.print(f"{name:<14} {text}", markup=False)
    data = "" if settings.data == "digits" else f" --data {settings.data}"
    console.out.print(f"\nnext: sparsetune eval {delta}{data}", markup=False)
