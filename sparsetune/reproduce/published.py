"""The paper's numbers, from its tables and its text."""

from __future__ import annotations

from dataclasses import dataclass

from sparsetune.reproduce.experiments import DENSENET, ENSEMBLES, LAYERS, TINY, WIDE, WRN
from sparsetune.reproduce.jobs import Settings

SCHEDULES = (
    "The paper does not say how the learning rate falls in its trainings of 1 and 10 epochs; here it falls "
    "from 0.1 to zero along half a cosine, step by step, in each of them (from 0.001 with Adam). Full "
    "trainings follow the reference implementation: a fifth after epochs 60, 120 and 160 (WRN), a tenth "
    "after 150 and 225 (densenet)."
)


@dataclass(frozen=True)
class Number:
    """One published accuracy.

    Attributes:
        experiment: Where it belongs.
        row: The settings that it is for; a part of them is enough.
        top1: In percent.
        learned: The number of learned parameters as it is printed, if it is.
        mean: Of an ensemble: its members' mean accuracy.
        about: Whether the text says "around", or it is read off a figure's caption.
    """

    experiment: str
    row: Settings
    top1: float
    learned: str | None = None
    mean: float | None = None
    about: bool = False


def _table1() -> list[Number]:
    printed: dict[str, tuple[Settings, dict[str, tuple[str, float, float]]]] = {
        "densenet": (
            DENSENET,
            {
                "BN": ("24K", 60.85, 16.06),
                "conv1": ("24.6K", 64.76, 15.08),
                "block1": ("194K", 73.02, 22.89),
                "block2": ("259K", 72.95, 28.00),
                "block3": ("291K", 76.33, 31.18),
                "fc": ("27.4K / 58.3K", 68.63, 33.43),
            },
        ),
        "WRN": (
            WRN,
            {
                "BN": ("7.2K", 30.2, 3.76),
                "conv1": ("7.63K", 30.93, 3.67),
                "block1": ("275K", 61.19, 12.23),
                "block2": ("1.12M", 76.32, 25.07),
                "block3": ("4.46M", 74.31, 32.35),
                "fc": ("9.77K / 32.9K", 37.03, 10.31),
            },
        ),
    }
    return [
        Number(
            "table1", {**net, "frozen": None, **_whole(LAYERS[layer]), "data": data}, top1, _side(learned, i)
        )
        for net, layers in printed.values()
        for layer, (learned, *both) in layers.items()
        for i, (data, top1) in enumerate(zip(("cifar10", "cifar100"), both, strict=True))
    ]


def _whole(layer: Settings) -> Settings:
    return {"layers": None, "head": True, "filters": None, "fraction": None, **layer}


def _side(learned: str, number: int) -> str:
    return learned.split(" / ")[-1 if number else 0]


def _size(fraction: float | None = None, filters: int | None = None, zero: bool = False) -> Settings:
    return {"fraction": fraction, "filters": filters, "frozen": "zero" if zero else None}


_ONE_ZEROED = [
    Number("fig1", {"model": net["model"], **_size(filters=1, zero=True)}, 45.0, about=True)
    for net in (DENSENET, WRN)
]

_TABLE2 = [
    Number("table2", {"model": net["model"], **_size(fraction=p, zero=zero)}, top1, learned)
    for net, p, learned, both in (
        (WIDE, 0.1, "3.66M", (94.12, 91.53)),
        (WIDE, 0.4, "14.6M", (95.75, 95.49)),
        (DENSENET, 0.1, ".09M", (88.73, 82.11)),
        (DENSENET, 0.4, ".3M", (93.33, 92.46)),
    )
    for zero, top1 in zip((False, True), both, strict=True)
] + [Number("table2", {"model": WIDE["model"], **_size(fraction=1.0)}, 96.2)]

_FIG5 = [
    Number("fig5", {"model": net["model"], **_size(filters=1), "data": data}, top1)
    for net, data, top1 in (
        (DENSENET, "cifar10", 85.0),
        (DENSENET, "cifar100", 59.7),
        (WIDE, "cifar10", 69.0),
        (WIDE, "cifar100", 34.85),
    )
] + [
    Number("fig5", {**number.row, "data": "cifar10"}, number.top1, number.learned)
    for number in _TABLE2
    if number.row["frozen"] is None
]

_TABLE3 = [
    Number("table3", {"model": TINY["model"], **_size(fraction=p)}, top1, learned)
    for p, top1, learned in (
        (0.1, 21.75, ".83M"),
        (0.4, 30.13, "2.58M"),
        (0.7, 33.22, "4.33M"),
        (1.0, 35.54, "6.1M"),
    )
]

_TABLE4 = [
    Number("table4", {**_size(), **ENSEMBLES[name]}, top1, learned, mean)
    for name, learned, mean, top1 in (
        ("FC", "137K", 68.5, 70.25),
        ("Share-Conv-0.9", "451K", 69.9, 71.14),
        ("Share-Conv-0.6", "1.53M", 71.0, 73.54),
        ("Share-Conv-0.3", "2.66M", 71.3, 75.47),
        ("Full", "3.85M", 71.7, 76.35),
    )
]

PUBLISHED: tuple[Number, ...] = (*_table1(), *_ONE_ZEROED, *_TABLE2, *_FIG5, *_TABLE3, *_TABLE4)


def published(experiment: str, settings: Settings) -> Number | None:
    """Return what the paper says of a row of an experiment, if it does."""
    for number in PUBLISHED:
        same = all(settings[name] == value for name, value in number.row.items())
        if number.experiment == experiment and same:
            return number
    return None
