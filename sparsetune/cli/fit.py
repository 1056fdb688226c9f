"""``sparsetune fit``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.progress import Progress, TaskID

from sparsetune.cli import console, options
from sparsetune.cli.options import DATA, RUN, TRAINING
from sparsetune.cli.outcome import budget_from, precision_from, tell, tell_members, tell_run
from sparsetune.data import Data
from sparsetune.errors import ConfigError, SparsetuneError
from sparsetune.host import seconds_from
from sparsetune.parts import Plan
from sparsetune.runs import Run, bundle_members, run, run_members
from sparsetune.spec import FitConfig, Learn
from sparsetune.train import Epoch, Step

Made = TypeVar("Made")


def fit(
    model: options.Model = "wrn28_4",
    img_size: options.ImgSize = None,
    in_chans: options.InChans = None,
    model_kwargs: options.ModelKwargs = None,
    fraction: options.Fraction = None,
    filters: options.Filters = None,
    rank: options.Rank = None,
    dim: options.Dim = "out",
    layers: options.Layers = None,
    norm: options.Norm = True,
    head: options.Head = True,
    frozen: options.Frozen = None,
    budget: options.Budget = None,
    backbone_seed: options.BackboneSeed = 0,
    pretrained: options.Pretrained = False,
    init_from: Annotated[
        str | None,
        typer.Option(
            "--init-from",
            rich_help_panel=options.LEARNED,
            help="A whole .safetensors checkpoint to stand on, or a delta to start from.",
        ),
    ] = None,
    data: options.DataName = "digits",
    size: Annotated[
        int | None, typer.Option("--size", rich_help_panel=DATA, help="Resize pictures to this side.")
    ] = None,
    train_limit: Annotated[
        int | None,
        typer.Option(
            "--train-limit",
            rich_help_panel=DATA,
            help="Use so many training pictures, balanced over classes.",
        ),
    ] = None,
    test_limit: Annotated[
        int | None,
        typer.Option(
            "--test-limit", rich_help_panel=DATA, help="Use so many test pictures, balanced over classes."
        ),
    ] = None,
    workers: Annotated[
        int,
        typer.Option("--workers", "-j", rich_help_panel=DATA, help="Processes that decode pictures."),
    ] = 0,
    epochs: Annotated[
        int, typer.Option("--epochs", rich_help_panel=TRAINING, help="Passes over the training pictures.")
    ] = 10,
    batch_size: Annotated[
        int, typer.Option("--batch-size", "-b", rich_help_panel=TRAINING, help="Pictures a step.")
    ] = 64,
    opt: Annotated[
        str,
        typer.Option(
            "--opt",
            rich_help_panel=TRAINING,
            help="One of timm's optimisers, such as momentum, or adamw with --lr 0.001; or yellowfin.",
        ),
    ] = "momentum",
    lr: Annotated[
        float, typer.Option("--lr", rich_help_panel=TRAINING, help="Learning rate at the start.")
    ] = 0.1,
    sched: Annotated[
        str,
        typer.Option(
            "--sched",
            rich_help_panel=TRAINING,
            help="How it falls to zero: cosine, tanh or poly; or multistep, or none.",
        ),
    ] = "cosine",
    decay_milestones: Annotated[
        list[int] | None,
        typer.Option(
            "--decay-milestones",
            rich_help_panel=TRAINING,
            help="An epoch after which multistep lowers it; may be repeated.",
        ),
    ] = None,
    decay_rate: Annotated[
        float,
        typer.Option("--decay-rate", rich_help_panel=TRAINING, help="By which factor multistep does."),
    ] = 0.1,
    weight_decay: Annotated[
        float, typer.Option("--weight-decay", rich_help_panel=TRAINING, help="On learned weights.")
    ] = 5e-4,
    seed: Annotated[
        int,
        typer.Option(
            "--seed", rich_help_panel=TRAINING, help="Seed of the training: order, augmentation, dropout."
        ),
    ] = 0,
    amp: Annotated[
        str | None, typer.Option("--amp", rich_help_panel=TRAINING, help="Mixed precision: bf16 or fp16.")
    ] = None,
    compile_: Annotated[
        bool, typer.Option("--compile", rich_help_panel=TRAINING, help="Use torch.compile.")
    ] = False,
    grad_checkpointing: Annotated[
        bool,
        typer.Option(
            "--grad-checkpointing",
            rich_help_panel=TRAINING,
            help="Compute activations anew in the backward pass: less memory, more time.",
        ),
    ] = False,
    device: options.Device = None,
    members: Annotated[
        int,
        typer.Option(
            "--members",
            rich_help_panel=RUN,
            help="Train an ensemble of so many, with the seeds that follow --seed, over one backbone.",
        ),
    ] = 1,
    one_file: Annotated[
        bool,
        typer.Option("--bundle", rich_help_panel=RUN, help="Put the members into one file as well."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", rich_help_panel=RUN, help="Folder of the run; runs/NAME if left out."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", rich_help_panel=RUN, help="Go on where the same command stopped."),
    ] = False,
    time_budget: Annotated[
        str | None,
        typer.Option(
            "--time-budget", rich_help_panel=RUN, help="Stop cleanly after this long, such as 90s or 9m."
        ),
    ] = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
) -> None:
    """Train a slice of a model and save it as a delta.

    Example: sparsetune fit --model wrn28_4 --fraction 0.1 --data digits

    Writes delta.safetensors, metrics.jsonl, config.json and curves.png to the run's folder.
    """
    problems: list[str] = []
    seconds = _collect(problems, lambda: None if time_budget is None else seconds_from(time_budget))
    sizes = {"fraction": fraction, "filters": filters, "rank": rank, "layers": layers}
    nbytes = _collect(problems, lambda: budget_from(budget, sizes, dim, frozen))
    learn = _collect(
        problems,
        lambda: (
            options.learn_from(fraction, filters, rank, dim, layers, norm, head, frozen)
            if budget is None
            else Learn(filters=0, norm=norm, head=head, frozen=_any(frozen))
        ),
    )
    config = _collect(
        problems,
        lambda: FitConfig(
            epochs=epochs,
            batch_size=batch_size,
            opt=opt,
            lr=lr,
            sched=_any(sched),
            decay_milestones=tuple(decay_milestones or ()),
            decay_rate=decay_rate,
            weight_decay=weight_decay,
            seed=seed,
            amp=_any(amp),
            compile=compile_,
            grad_checkpointing=grad_checkpointing,
            workers=workers,
            device=device,
        ),
    )
    precision = _collect(problems, lambda: precision_from(dtype, budget))
    kwargs = _collect(problems, lambda: options.kwargs_from(model, img_size, in_chans, model_kwargs))
    if one_file and members == 1:
        problems.append("--bundle needs --members; one delta is one file already.")
    ConfigError.collect(problems)
    settings = Run(
        model=model,
        model_kwargs=kwargs,
        learn=_any(learn),
        config=_any(config),
        data=data,
        size=size,
        train_limit=train_limit,
        test_limit=test_limit,
        backbone_seed=backbone_seed,
        pretrained=pretrained,
        init_from=init_from,
        budget=nbytes,
        dtype=precision,
    )
    with console.progress() as bars:
        how: Any = {
            "resume": resume,
            "time_budget": seconds,
            "watch": _Watch(bars, epochs),
            "started": _announce,
            "choosing": tell,
        }
        together = run_members(settings, members, out, **how) if members != 1 else None
        outcome = together.members[-1] if together else run(settings, out, **how)
    if together and together.finished and one_file:
        bundle_members(together, settings)
    if together:
        tell_members(together, settings, members, as_json)
    else:
        tell_run(outcome, settings, as_json)


def _any(value: Any) -> Any:
    return value


def _collect(problems: list[str], make: Callable[[], Made]) -> Made | None:
    try:
        return make()
    except SparsetuneError as error:
        problems.append(str(error))
        return None


def _announce(made: Plan, data: Data) -> None:
    console.tell_data(data)
    learned = console.share(made.learned_parameters, made.total_parameters)
    console.err.print(f"learning {learned} on {len(data.train or ()):,} pictures of {data.name}")
    console.err.print(f"learning from {data.preprocessing.describe()} ({data.decided})")


class _Watch:
    """Draws a bar for the whole training, and a line for each epoch."""

    def __init__(self, bars: Progress, epochs: int) -> None:
        self.bars, self.epochs = bars, epochs
        self.task: TaskID | None = None

    def __call__(self, event: Step | Epoch) -> None:
        if isinstance(event, Step):
            if self.task is None:
                self.task = self.bars.add_task("training", total=self.epochs * event.steps)
            done = (event.epoch - 1) * event.steps + event.step
            text = f"epoch {event.epoch}/{self.epochs}  loss {event.loss:.3f}"
            self.bars.update(self.task, completed=done, description=text)
        else:
            console.err.print(
                f"epoch {event.epoch:>3}  loss {event.train_loss:.3f}  train {event.train_top1:7.2%}  "
                f"{event.watched} {getattr(event, f'{event.watched}_top1'):7.2%}  {event.seconds:.1f} s"
            )
