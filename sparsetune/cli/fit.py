"""``sparsetune fit``: what it reads, does and says."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from sparsetune.cli import console, options
from sparsetune.errors import ConfigError, SparsetuneError
from sparsetune.host import DELTA, bytes_from, seconds_from
from sparsetune.spec import KINDS, PRECISIONS, USUAL, Learn, Precision

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from sparsetune.runs import Choice, Outcome, Run, Together, Trial
    from sparsetune.train import Epoch, Start, Step

BESIDE_A_BUDGET: dict[str, Any] = {**dict.fromkeys(KINDS), "filters": 0, "layers": None, "dim": "out"}
"""What a spec has in the place of what a budget chooses."""


def fit(
    *,
    model: options.Model = "wrn28_4",
    img_size: options.ImgSize = None,
    in_chans: options.InChans = None,
    model_kwargs: options.ModelKwargs = None,
    learned: options.Learned,
    budget: options.Budget = None,
    backbone_seed: options.BackboneSeed = 0,
    pretrained: options.Pretrained = False,
    init_from: options.InitFrom = None,
    data: options.DataName = "digits",
    size: options.Size = None,
    train_limit: options.TrainLimit = None,
    test_limit: options.TestLimit = None,
    trained: options.Trained,
    members: options.Members = 1,
    one_file: options.OneFile = False,
    out: options.RunFolder = None,
    resume: options.Resume = False,
    time_budget: options.RunTime = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
) -> None:
    """Train a slice of a model and save it as a delta.

    Example: sparsetune fit --model resnet18 --pretrained --data photos/

    A tenth of each layer, normalisation and classifier are learned (--filters 0: without the tenth). Settings
    that are left out are those of a transfer over trained weights (--pretrained, --init-from), and the
    paper's over a random backbone: sparsetune fit --model wrn28_4 --fraction 0.1

    Writes delta.safetensors, metrics.jsonl, config.json and curves.png to the run's folder, and of the test
    pictures report.json, confusion.png and mistakes.png.
    """
    problems: list[str] = []
    with _noted(problems):
        seconds = None if time_budget is None else seconds_from(time_budget)
    with _noted(problems):
        nbytes = _budget_from(budget, learned.values)
    with _noted(problems):
        amount = {} if learned.values.keys() & {*KINDS} else USUAL
        learn = learned.made(**(amount if budget is None else BESIDE_A_BUDGET))
    with _noted(problems):
        config = trained.made()
    with _noted(problems):
        precision = _precision_from(dtype)
    with _noted(problems):
        kwargs = options.kwargs_from(model, img_size, in_chans, model_kwargs)
    if one_file and members == 1:
        problems.append("--bundle needs --members; one delta is one file already.")
    ConfigError.collect(problems)

    # late: a mistake is told without torch
    from sparsetune.runs import Run, bundle_members, kept_in, run, run_members

    settings = Run(
        model=model,
        model_kwargs=kwargs,
        learn=learn,
        config=config,
        data=data,
        size=size,
        train_limit=train_limit,
        test_limit=test_limit,
        backbone_seed=backbone_seed,
        pretrained=pretrained,
        init_from=init_from,
        budget=nbytes,
        dtype=precision if dtype or nbytes is None else kept_in(nbytes),
    )
    with console.progress() as bars:
        watch = _Watch(bars)
        how: Any = {
            "resume": resume,
            "time_budget": seconds,
            "watch": watch,
            "started": watch.announce,
            "choosing": _tell_choice,
        }
        together = run_members(settings, members, out, **how) if members != 1 else None
        outcome = together.members[-1] if together else run(settings, out, **how)
    if together and together.finished and one_file:
        bundle_members(together, settings)
    if together:
        _tell_members(together, settings, members, as_json)
    else:
        _tell_run(outcome, settings, as_json)


@contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    """Note what is wrong and go on, so that all of it is told at once."""
    try:
        yield
    except SparsetuneError as error:
        problems.append(str(error))


def _budget_from(text: str | None, given: Mapping[str, object]) -> int | None:
    """Read ``--budget``, which takes the place of the options that say what is learned.

    Args:
        text: The option's value; ``None`` if it was not given.
        given: Those options' values by name.

    Raises:
        ConfigError: When it is no size, or one of the others is given too; all problems together.
    """
    if text is None:
        return None
    problems = []
    others = [f"--{n}" for n in BESIDE_A_BUDGET if given.get(n, getattr(Learn, n)) != getattr(Learn, n)]
    if others:
        problems.append(
            f"--budget chooses what is learned, and so would {' and '.join(others)}; leave these out."
        )
    if given.get("frozen") == "zero":
        problems.append("--budget chooses among low ranks too, which --frozen zero excludes; leave one out.")
    nbytes = None
    try:
        nbytes = bytes_from(text)
    except ConfigError as error:
        problems.append(str(error))
    ConfigError.collect(problems)
    return nbytes


def _precision_from(text: str | None) -> Precision | None:
    """Read ``--dtype``; ``None`` keeps all bits.

    Raises:
        ConfigError: When it is no precision.
    """
    named: dict[str | None, Precision | None] = {"float32": None, **{name: name for name in PRECISIONS}}
    if text is not None and text not in named:
        raise ConfigError(f"--dtype '{text}' is not one of {', '.join(map(str, named))}.")
    return named.get(text)


class _Watch:
    """Says what is about to be learned; then draws a bar for the training, and a line for each epoch."""

    def __init__(self, bars: Progress) -> None:
        self.bars, self.epochs = bars, 0
        self.task: TaskID | None = None

    def announce(self, start: Start) -> None:
        """Tell what is learned of what, from what, and how."""
        self.epochs = start.config.epochs
        first, *others = start.lines()
        random = start.backbone.root.kind == "seed"
        console.err.print(first + "; --pretrained or --init-from FILE would take trained weights" * random)
        console.tell_namesake(start.data)
        for line in others:
            console.err.print(line)

    def __call__(self, event: Step | Epoch) -> None:
        from sparsetune.train import Step

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


def _tell_choice(event: Trial | Choice) -> None:
    """Show a trial as a line, and a choice as a table, on stderr."""
    from sparsetune.runs import Trial

    if isinstance(event, Trial):
        said = "diverged" if event.loss is None else f"held-out loss {event.loss:.3f}"
        console.err.print(f"trial  {event.name}: {said} after {event.steps} steps")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("candidate", "learned", "bytes", "steps", "loss", "accuracy", ""):
        is_name = column == "candidate"
        table.add_column(column, justify="left" if is_name else "right", no_wrap=is_name)
    for trial in event.trials:
        tried = trial.loss is not None and trial.top1 is not None
        table.add_row(
            trial.name,
            f"{trial.learned_parameters:,}",
            f"{trial.delta_bytes:,}",
            f"{trial.steps}" if trial.steps else "-",
            f"{trial.loss:.3f}" if tried else "-",
            f"{trial.top1:.2%}" if tried else "-",
            "chosen" if trial.name == event.name else "",
        )
    console.err.print(table)
    console.err.print(f"chosen  {event.name}: {event.why}")


def _tell_run(outcome: Outcome, settings: Run, as_json: bool) -> None:
    """Say what one run came to."""
    if as_json:
        console.print_json(_summary(outcome))
    elif outcome.finished:
        _report(outcome, settings)
    if outcome.finished:
        _tell_shared(outcome.folder / DELTA)
    else:
        console.err.print(
            f"time is up after {_epochs(len(outcome.history))} of {outcome.epochs}, "
            f"saved in {outcome.folder}; the same command with --resume goes on."
        )


def _tell_members(together: Together, settings: Run, count: int, as_json: bool) -> None:
    """Say what an ensemble came to."""
    if as_json:
        value: dict[str, Any] = {"folder": str(together.folder), "finished": together.finished}
        value["members"] = [_summary(member) for member in together.members]
        if together.scores and together.diversity:
            value["ensemble"] = {**together.scores.to_json(), **together.diversity.to_json()}
        console.print_json(value)
    elif together.scores and together.diversity:
        (split, *_), single = zip(*map(_accuracy, together.deltas), strict=True)
        learned = sum(member.plan.learned_parameters for member in together.members)
        sizes = [delta.stat().st_size for delta in together.deltas]
        console.print_fields(
            [
                (
                    f"ensemble's {split} accuracy",
                    f"{together.scores.top1:.2%}  (loss {together.scores.nll:.3f})",
                ),
                (
                    "members",
                    f"{', '.join(f'{top1:.2%}' for top1 in single)}  (mean {sum(single) / count:.2%})",
                ),
                ("disagreement", f"{together.diversity.disagreement:.2%} of pairs"),
                ("learned", f"{learned:,} values in {count} members"),
                ("size", f"{console.size(sum(sizes))} in {together.folder}"),
            ]
        )
        from sparsetune.runs import BUNDLE

        bundled = together.folder / BUNDLE
        files = [bundled] if bundled.is_file() else together.deltas
        console.out.print(f"\nnext: {shlex.join(_next(files, together.deltas[0], settings))}")
    if together.finished:
        _tell_shared(together.deltas[0])
    else:
        done = sum(member.finished for member in together.members)
        console.err.print(
            f"time is up after {done} of {count} members, saved in {together.folder}; "
            "the same command with --resume goes on."
        )


def _tell_shared(delta: Path) -> None:
    """Say where held-out pictures were trained on."""
    from sparsetune.data import Seen
    from sparsetune.delta import inspect

    seen = Seen.from_json(inspect(delta).training)
    if seen and seen.shared:
        split, _ = _accuracy(delta)
        console.err.print(
            f"{seen.shared:,} of the {split} pictures were trained on, now or before, so the {split} "
            "accuracy is better than on new ones; take them out of one of the two."
        )


def _summary(outcome: Outcome) -> dict[str, Any]:
    from sparsetune.runs import CHECKPOINT

    delta = outcome.folder / DELTA
    chosen = {} if outcome.choice is None else {"choice": outcome.choice.to_json()}
    return {
        "folder": str(outcome.folder),
        "finished": outcome.finished,
        "epochs": [record.to_json() for record in outcome.history],
        "learned_parameters": outcome.plan.learned_parameters,
        "total_parameters": outcome.plan.total_parameters,
        "delta": str(delta) if outcome.finished else None,
        "delta_bytes": delta.stat().st_size if outcome.finished else None,
        "result": _result(delta) if outcome.finished else None,
        "checkpoint": None if outcome.finished else str(outcome.folder / CHECKPOINT),
        **chosen,
    }


def _report(outcome: Outcome, settings: Run) -> None:
    from sparsetune.runs import CONFUSION, CURVES, MISTAKES, REPORT, weakest

    made, delta = outcome.plan, outcome.folder / DELTA
    result, (split, _) = _result(delta), _accuracy(delta)
    top1, top5, loss = (result.get(f"{split}_{name}") for name in ("top1", "top5", "loss"))
    others = [*([] if top5 is None else [f"top-5 {top5:.2%}"]), f"loss {loss:.3f}"]
    weak = weakest(outcome.folder)
    report = [name for name in (REPORT, CONFUSION, MISTAKES) if (outcome.folder / name).is_file()]
    kept = f" as {settings.dtype}" if settings.dtype else ""
    whole, size = made.total_parameters * made.itemsize, delta.stat().st_size
    seconds = sum(record.seconds for record in outcome.history)
    console.print_fields(
        [
            (f"{split} accuracy", f"{top1:.2%}  ({', '.join(others)})"),
            *(
                [("lowest recall", ", ".join(f"{name} ({recall:.1%})" for name, recall in weak))]
                if weak
                else []
            ),
            ("learned", console.share(made.learned_parameters, made.total_parameters)),
            ("delta", str(delta)),
            ("size", f"{console.size(size)}{kept}, {size / whole:.1%} of a whole checkpoint"),
            ("curves", str(outcome.folder / CURVES)),
            *([("report", ", ".join([str(outcome.folder / report[0]), *report[1:]]))] if report else []),
            ("time", f"{seconds:.1f} s for {_epochs(len(outcome.history))}"),
        ]
    )
    console.out.print(f"\nnext: {shlex.join(_next([delta], delta, settings))}")


def _result(delta: Path) -> dict[str, float]:
    """What the file says that it scores: a file in fewer bits was tested as such."""
    from sparsetune.delta import inspect

    found: dict[str, float] = inspect(delta).training["result"]
    return found


def _accuracy(delta: Path) -> tuple[str, float]:
    """Which pictures it was judged by, and its accuracy on them."""
    from sparsetune.delta import inspect

    found = inspect(delta).accuracy
    assert found, "fit wrote it"
    return found


def _next(files: list[Path], delta: Path, settings: Run) -> list[str]:
    """The command that measures the files, of which ``delta`` is one; it works where ``fit`` worked."""
    from sparsetune.data import NAMES
    from sparsetune.delta import inspect

    words = ["sparsetune", "eval", *map(str, files)]
    if settings.data not in NAMES:
        words += ["--data", settings.data]
    if inspect(delta).backbone.root.kind == "pretrained":
        words += ["--allow-network"]
    return words


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' * (count != 1)}"
