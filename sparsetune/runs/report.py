"""A report of a classifier: scores class by class, which classes it confuses, and its worst mistakes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from sparsetune.backbone import check_classifier
from sparsetune.data import Data, Split, loader
from sparsetune.errors import DataError
from sparsetune.host import listed, replacing, write_text
from sparsetune.sliced import taught
from sparsetune.train import Scores, Views, pictures_for, predict, scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT, CONFUSION, MISTAKES = "report.json", "confusion.png", "mistakes.png"
"""The files of a report."""
MOST_MISTAKES = 24
"""Pictures on the contact sheet."""
MOST_LINES = 20
"""Classes that a printed report shows."""

_RED, _GREY = "#b3261e", "#e4e4e4"
_SIDE, _PITCH = 9.0, 0.5
"""Inches: the longest side of a matrix, and of a cell of it."""
_PICTURE, _LINE, _COLUMNS = 270, 20, 6
"""Of the contact sheet: pixels of a picture's longer side and of a line of text; pictures in a row."""
_LONGEST_NAME = 24


@dataclass(frozen=True)
class ClassScores:
    """How one class is recognised.

    Attributes:
        name: Of the class.
        precision: Share of the pictures taken for it that are of it, 0 where there are none; ``None``, as the
            next two are, where the split has no picture of it.
        recall: Share of its pictures that are taken for it.
        f1: Harmonic mean of both.
        support: Its pictures.
    """

    name: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


@dataclass(frozen=True)
class Mistake:
    """A picture that was taken for something else.

    Attributes:
        number: Its place in the split, from 0.
        picture: Its path inside the folder, its Parquet file and row, or what its content fixes.
        true: Its class.
        predicted: The class that it was taken for.
        probability: With which probability.
        loss: Negative logarithm of the probability of its class, in nats.
    """

    number: int
    picture: str
    true: str
    predicted: str
    probability: float
    loss: float


@dataclass(frozen=True)
class Report:
    """What a classifier makes of a split; prints as a table.

    Attributes:
        data: Name of the data.
        judged_by: What the pictures are called, ``test`` or ``validation``.
        scores: Over all pictures.
        classes: Class by class, in the order of the labels.
        confusion: Pictures of each class (rows) that were taken for each class (columns), int64.
        mistakes: Those of the highest loss, worst first, at most 24.
        split: The pictures.
    """

    data: str
    judged_by: str
    scores: Scores
    classes: tuple[ClassScores, ...]
    confusion: Tensor = field(repr=False)
    mistakes: tuple[Mistake, ...] = field(repr=False)
    split: Split = field(repr=False)

    @property
    def macro(self) -> dict[str, float]:
        """Means of precision, recall and F1 over the classes that the split has pictures of."""
        there = [asdict(each) for each in self.classes if each.support]
        return {name: fmean(each[name] for each in there) for name in ("precision", "recall", "f1")}

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that the split has pictures of."""
        return self.macro["recall"]

    @property
    def wrong(self) -> int:
        """How many pictures were taken for something else."""
        return int(self.confusion.sum() - self.confusion.diagonal().sum())

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        figures = self.scores.to_json()
        return {
            "data": self.data,
            "split": self.judged_by,
            "pictures": figures.pop("count"),
            "accuracy": figures.pop("top1"),
            "balanced_accuracy": self.balanced_accuracy,
            "macro": self.macro,
            **figures,
            "classes": [asdict(each) for each in self.classes],
            "confusion": self.confusion.tolist(),
            "mistakes": [asdict(each) for each in self.mistakes],
        }

    def save(self, folder: str | Path) -> None:
        """Write ``report.json``, ``confusion.png`` and, where there are mistakes, ``mistakes.png``.

        Raises:
            StorageError: When they cannot be written.
            DataError: When a picture can no longer be read.
        """
        folder = Path(folder)
        with replacing(folder / CONFUSION) as temporary:
            figure = draw_confusion(self)
            figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight", pad_inches=0.15)
        if self.mistakes:
            with replacing(folder / MISTAKES) as temporary:
                draw_mistakes(self).save(temporary, format="png")
        else:
            (folder / MISTAKES).unlink(missing_ok=True)
        write_text(folder / REPORT, _lines(self.to_json()))

    def __str__(self) -> str:
        macro, header = self.macro, ("precision", "recall", "F1", "pictures")
        told = [
            f"{self.scores.count:,} {self.judged_by} pictures of {self.data}: "
            f"accuracy {self.scores.top1:.2%}, balanced {self.balanced_accuracy:.2%}, "
            f"macro precision {macro['precision']:.2%}, F1 {macro['f1']:.2%}"
        ]
        ranked = sorted(self.classes, key=lambda each: 2.0 if each.recall is None else each.recall)
        shown = ranked[:MOST_LINES]
        width = max(len(_short(each.name)) for each in shown)
        told.append(" " * width + "".join(f"{name:>11}" for name in header))
        for each in shown:
            shares = (each.precision, each.recall, each.f1)
            cells = [*("-" if share is None else f"{share:.2%}" for share in shares), f"{each.support:,}"]
            told.append(f"{_short(each.name):<{width}}" + "".join(f"{cell:>11}" for cell in cells))
        if more := len(ranked) - len(shown):
            told.append(f"and {more:,} more classes of higher recall")
        return "\n".join(told)


def evaluate(net: nn.Module, data: Data, *, tta: int = 0, batch_size: int = 256, workers: int = 0) -> Report:
    """Judge a classifier by the test pictures, or else by validation: ``print(st.evaluate(net, data))``.

    Args:
        net: A classifier, adapted or not; it is left as it is.
        data: Whose pictures; they are prepared as :func:`~sparsetune.train.inputs.pictures_for` decides.
        tta: Average over so many :class:`~sparsetune.train.metrics.Views` of each picture; 0 for none.
        batch_size: Pictures at a time.
        workers: Processes that decode pictures.

    Returns:
        The report; its ``save(folder)`` writes it with two pictures.

    Raises:
        ConfigError: When the model's classes are not so many, or there are not so many views.
        DataError: When the model was trained on other classes, or a picture cannot be read.
    """
    views = Views(tta, data.augment.flip)
    known, form = taught(net).classes, pictures_for(net, data).preprocessing
    if known not in (None, data.classes):
        raise DataError(
            f"the model was trained on the classes {listed(known or ())} and {data.name} has "
            f"{listed(data.classes)}; evaluate it on data of its own classes, in their order."
        )
    check_classifier(net, form.size, len(data.classes), data.name)
    batches = loader(data.judged, form, batch_size=batch_size, workers=workers)
    probabilities, _ = predict(net, batches, views)
    return report_on(probabilities, data.judged, data.classes, data.name, data.judged_by)


def report_on(
    probabilities: Tensor, split: Split, classes: Sequence[str], name: str, judged_by: str = "test"
) -> Report:
    """Make the report of predictions.

    Args:
        probabilities: Of each picture of the split, in its order, ``(N, classes)``.
        split: The pictures.
        classes: Class names; labels index them.
        name: What to call the data.
        judged_by: What to call the split: ``test`` or ``validation``.
    """
    from sklearn import metrics  # late: it takes most of a second

    probabilities, labels = probabilities.double(), split.labels
    confidence, predicted = probabilities.max(1)
    both = {"y_true": labels.numpy(), "y_pred": predicted.numpy(), "labels": range(len(classes))}
    *shares, support = metrics.precision_recall_fscore_support(**both, zero_division=0)
    precision, recall, f1 = (
        [round(value, 6) if there else None for value, there in zip(found.tolist(), support, strict=True)]
        for found in shares
    )
    losses = -probabilities.gather(1, labels[:, None]).squeeze(1).clamp_min(1e-300).log()
    wrong = torch.nonzero(predicted != labels).squeeze(1)
    worst = wrong[losses[wrong].argsort(descending=True, stable=True)][:MOST_MISTAKES].tolist()
    return Report(
        data=name,
        judged_by=judged_by,
        scores=scores(probabilities, labels),
        classes=tuple(map(ClassScores, classes, precision, recall, f1, support.tolist())),
        confusion=torch.from_numpy(metrics.confusion_matrix(**both)).long(),
        mistakes=tuple(
            Mistake(
                number,
                _name(split.images.mark(int(split.rows[number]))),
                classes[int(labels[number])],
                classes[int(predicted[number])],
                float(confidence[number]),
                float(losses[number]),
            )
            for number in worst
        ),
        split=split,
    )


def weakest(folder: Path) -> list[tuple[str, float]]:
    """Return name and recall of the three classes of lowest recall in a folder's report.

    None is left out where there are two classes or no report, nor is one whose pictures are all recognised.
    """
    try:
        classes = json.loads((folder / REPORT).read_text())["classes"]
        found = [(each["name"], each["recall"]) for each in classes if each["recall"] not in (None, 1)]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return sorted(found, key=lambda each: each[1])[: min(3, len(classes) - 1)] if len(classes) > 2 else []


def draw_confusion(report: Report) -> Figure:
    """Draw the confusion matrix: rows are true classes, and colours shares of a row.

    Names and counts stand there as far as they do not overlap.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure  # late: it takes half a second, and most commands draw nothing
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    names, counts = [_short(each.name) for each in report.classes], report.confusion.numpy()
    side = min(_SIDE, max(3, _PITCH * len(names)))
    points = 72 * side / len(names)
    totals = counts.sum(1, keepdims=True)
    shares = counts / totals.clip(1)
    figure = Figure(figsize=(side, side))
    panel = figure.add_axes((0, 0, 1, 1))
    norm = PowerNorm(0.6, 0, 1)  # a few percent are told from none
    image = panel.imshow(shares, cmap="Blues", norm=norm, interpolation="nearest")
    for row in (totals[:, 0] == 0).nonzero()[0]:
        panel.axhspan(row - 0.5, row + 0.5, color=_GREY, linewidth=0)
    where = ""
    if (size := min(10, 0.75 * points)) >= 5.5:
        wide = max(map(len, names)) * 0.65 * size > points
        panel.set_xticks(range(len(names)), names, rotation=90 * wide, fontsize=size, parse_math=False)
        panel.set_yticks(range(len(names)), names, fontsize=size, parse_math=False)
    else:
        where = f", by its place in {REPORT}"
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_locator(MaxNLocator(10, integer=True))
    panel.tick_params(length=0)
    panel.set_xlabel(f"predicted class{where}")
    panel.set_ylabel(f"true class{where}")
    if (size := min(9, points / (0.65 * len(str(counts.max())) + 0.5))) >= 5:
        for row, column in zip(*counts.nonzero(), strict=True):
            colour = "white" if norm(shares[row, column]) > 0.6 else "black"
            text = str(counts[row, column])
            panel.text(column, row, text, fontsize=size, color=colour, ha="center", va="center")
    bar = figure.colorbar(
        image, cax=figure.add_axes((1 + 0.15 / side, 0, 0.15 / side, 1)), format=PercentFormatter(1, 0)
    )
    bar.set_label("share of the true class" + ("; grey: no pictures" if (totals == 0).any() else ""))
    panel.set_title(
        _title(f"accuracy {report.scores.top1:.1%}", report), loc="left", pad=12, parse_math=False
    )
    return figure


def draw_mistakes(report: Report) -> Image.Image:
    """Put the worst mistakes side by side: the stored pictures, what they are, and what they were taken for.

    Raises:
        DataError: When a picture cannot be read.
    """
    import matplotlib  # late; its font is the one of the other drawings

    file = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    small, large = (ImageFont.truetype(str(file), size) for size in (_LINE * 3 // 4, _LINE))
    columns = min(_COLUMNS, max(3, len(report.mistakes)))
    rows = -(-len(report.mistakes) // columns)
    wide, high = _PICTURE + _LINE, _PICTURE + 4 * _LINE
    sheet = Image.new("RGB", (columns * wide + _LINE, rows * high + 3 * _LINE), "white")
    draw = ImageDraw.Draw(sheet)
    few = len(report.mistakes) < report.wrong
    many = f"worst {len(report.mistakes)} of {report.wrong:,} mistakes" if few else "all mistakes"
    draw.text(
        (_LINE, _LINE // 2), _fitting(_title(many, report), large, sheet.width - 2 * _LINE), "black", large
    )
    for index, each in enumerate(report.mistakes):
        left, top = _LINE + index % columns * wide, 3 * _LINE + index // columns * high
        lines = [f"is {_short(each.true)}", f"{each.probability:.0%} sure: {_short(each.predicted)}"]
        for line, colour in zip(lines, ("black", _RED), strict=True):
            draw.text((left, top), _fitting(line, small, _PICTURE), colour, small)
            top += _LINE
        picture = report.split[each.number][0]
        scale = _PICTURE / max(picture.size)
        size = [max(1, round(scale * side)) for side in picture.size]
        kind = Image.Resampling.NEAREST if scale > 3 else Image.Resampling.LANCZOS
        sheet.paste(picture.resize((size[0], size[1]), kind), (left, top + _LINE // 4))
    return sheet


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Cut a text off where it is wider than so many pixels."""
    if font.getlength(text) <= width:
        return text
    while font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def _name(mark: str) -> str:
    """A picture's mark without its size, where it has one."""
    return mark.rpartition(" ")[0] or mark


def _title(what: str, report: Report) -> str:
    return f"{what}, {report.scores.count:,} {report.judged_by} pictures of {_short(report.data)}"


def _short(name: str) -> str:
    """Cut the middle out of a long name; names of one kind often differ at the end."""
    return name if len(name) <= _LONGEST_NAME else f"{name[:12]}…{name[12 - _LONGEST_NAME + 1 :]}"


def _lines(value: dict[str, Any]) -> str:
    """Return JSON with a line for each value, and for each item of a list."""
    pieces = []
    for name, each in value.items():
        text = json.dumps(each)
        if isinstance(each, list) and each:
            text = "[\n    " + ",\n    ".join(map(json.dumps, each)) + "\n  ]"
        pieces.append(f"  {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(pieces) + "\n}\n"
