"""The paper's tables and figures as data: what differs from the defaults, and the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsetune.studies.definitions import TEXT, TRANSFORMER
from sparsetune.studies.jobs import DEFAULTS
from sparsetune.studies.store import Settings

SCHEDULE: Settings = {"lr": 0.1, "sched": "cosine"}
"""Of all trainings of 1 and 10 epochs. The paper does not say how the learning rate falls in them."""

DENSENET: Settings = {"model": "densenet100_12", "batch_size": 64, "weight_decay": 1e-4}
WRN: Settings = {"model": "wrn28_4"}
WIDE: Settings = {"model": "wrn28_10", "model_kwargs": {"drop_rate": 0.3}}
ALEXNET: Settings = {"model": "alexnet_cifar"}
VGG_BN: Settings = {"model": "vgg19_bn_cifar"}
VGG: Settings = {"model": "vgg19_cifar"}
"""Where the reference implementation differs from SGD with momentum .9, lr .1, batch 128, decay 5e-4."""

NAMES = {
    "densenet100_12": "densenet",
    "wrn28_4": "WRN-28-4",
    "wrn28_10": "WRN-28-10",
    "alexnet_cifar": "AlexNet",
    "vgg19_bn_cifar": "VGG-19 with BN",
    "vgg19_cifar": "VGG-19 without BN",
    TRANSFORMER: "transformer",
}

FRACTIONS = (0.07, 0.08, 0.09, 0.1, 0.4, 0.7)
COUNTS = (1, 5, 10)
SIZES: list[Settings] = [{"fraction": p} for p in FRACTIONS] + [{"filters": k} for k in COUNTS]
SIZELESS: Settings = {"fraction": None, "filters": None}
"""Under one of ``SIZES``, so that it is the only one."""

LAYERS: dict[str, Settings] = {
    "BN": {"filters": 0, "head": False},
    **{
        name: {"fraction": 1.0, "layers": [name], "head": False}
        for name in ("conv1", "block1", "block2", "block3")
    },
    "fc": {"filters": 0},
}
"""Table 1's rows."""

FULL_WIDE: Settings = {
    **WIDE,
    "epochs": 200,
    "sched": "multistep",
    "decay_milestones": [60, 120, 160],
    "decay_rate": 0.2,
}
FULL_DENSENET: Settings = {**DENSENET, "epochs": 300, "sched": "multistep", "decay_milestones": [150, 225]}
TINY: Settings = {
    **WRN,
    "data": "tiny-imagenet",
    "epochs": 45,
    "opt": "yellowfin",
    "sched": "multistep",
    "decay_milestones": [15, 30],
}

ENSEMBLES: dict[str, Settings] = {
    "FC": {"filters": 0},
    "Share-Conv-0.9": {"fraction": 0.1},
    "Share-Conv-0.6": {"fraction": 0.4},
    "Share-Conv-0.3": {"fraction": 0.7},
    "Full": {"fraction": 1.0},
}
"""Table 4's rows."""
OPTIMISERS: tuple[Settings, ...] = ({"opt": "momentum", "lr": 0.1}, {"opt": "adam", "lr": 0.001})
REST: tuple[Settings, ...] = ({}, {"frozen": "zero"})


@dataclass(frozen=True)
class Experiment:
    """One table or figure.

    Attributes:
        id: Such as ``table1``.
        title: Its subject.
        what: What was done.
        rows: A training each: what differs from the defaults.
    """

    id: str
    title: str
    what: str
    rows: tuple[Settings, ...]

    @property
    def label(self) -> str:
        """Such as ``Table 1``."""
        if self.id in BEYOND:
            return "Ours"
        return f"{'Table' if self.id.startswith('table') else 'Figure'} {self.id[-1]}"

    @property
    def points(self) -> list[Settings]:
        """All settings of each row, as in the paper."""
        return [{**DEFAULTS, **row} for row in self.rows]


def _cross(*factors: Sequence[Settings]) -> tuple[Settings, ...]:
    rows: list[Settings] = [{}]
    for factor in factors:
        rows = [{**row, **each} for row in rows for each in factor]
    return tuple(rows)


def _epochs(count: int) -> Settings:
    return {**SCHEDULE, "epochs": count}


_FIG1 = _cross([_epochs(10)], [DENSENET, WRN, ALEXNET, VGG_BN, VGG], SIZES, REST)
_TABLE3 = _cross([TINY], [{"fraction": p} for p in (0.1, 0.4, 0.7, 1.0)])

EXPERIMENTS: dict[str, Experiment] = {
    each.id: each
    for each in (
        Experiment(
            "fig1",
            "Training with only a few parameters",
            "Fractions and integer numbers of filters of each layer, the rest at its random values or zero; "
            "CIFAR-10, 10 epochs.",
            _FIG1,
        ),
        Experiment(
            "fig2",
            "Slicing along each dimension",
            "densenet, CIFAR-10, one epoch: slices along filters, inputs, and the kernel's two positions. "
            "Along the last two a 3x3 kernel has only two slices that differ, .1 and .7.",
            _cross([{**DENSENET, **_epochs(1)}], [{"dim": "out"}, {"dim": "in"}], SIZES)
            + _cross(
                [{**DENSENET, **_epochs(1)}],
                [{"dim": "height"}, {"dim": "width"}],
                [{"fraction": 0.1}, {"fraction": 0.7}],
            ),
        ),
        Experiment(
            "fig3",
            "Accuracy against the number of learned parameters",
            "Figure 1's trainings again: against the number of parameters, and a line fitted to accuracy "
            "against the logarithm of the fraction, for each model.",
            _FIG1,
        ),
        Experiment(
            "table1",
            "Learning only a subset of layers",
            "One block, or only batch norm, or the classifier; batch norm is always learned; 10 epochs.",
            _cross([_epochs(10)], [DENSENET, WRN], [*LAYERS.values()], [{}, {"data": "cifar100"}]),
        ),
        Experiment(
            "fig4",
            "With and without learning batch norm",
            "Fractions and integer numbers of filters with batch norm's scale and shift learned or at their "
            "start; CIFAR-10, 10 epochs. Dashed: everything learned.",
            _cross([_epochs(10)], [DENSENET, WRN], SIZES, [{}, {"norm": False}])
            + _cross([_epochs(10)], [DENSENET, WRN], [{"fraction": 1.0}]),
        ),
        Experiment(
            "table2",
            "Full trainings",
            "WRN-28-10 for 200 epochs and densenet for 300, CIFAR-10.",
            _cross(
                [FULL_WIDE, FULL_DENSENET],
                [*_cross([{"fraction": 0.1}, {"fraction": 0.4}], REST), {"fraction": 1.0}],
            ),
        ),
        Experiment(
            "fig5",
            "Full trainings on CIFAR-10 and CIFAR-100",
            "Table 2's trainings with one filter a layer and CIFAR-100 added.",
            _cross(
                [FULL_WIDE, FULL_DENSENET],
                [{"filters": 1}, {"fraction": 0.1}, {"fraction": 0.4}, {"fraction": 1.0}],
                [{}, {"data": "cifar100"}],
            ),
        ),
        Experiment(
            "table3",
            "Tiny-ImageNet",
            "WRN-28-4, YellowFin, 45 epochs, learning rate lowered to a tenth after epochs 15 and 30. The "
            "paper's numbers of parameters do not follow from its description, as all others do.",
            _TABLE3,
        ),
        Experiment(
            "table4",
            "Cheap ensembles",
            "densenet, CIFAR-10: one epoch in which everything is learned (SGD), and from there five members "
            "of one more epoch each, by SGD and by Adam; the better of the two is reported.",
            _cross(
                [{**DENSENET, **_epochs(1), "kind": "ensemble", "members": 5}],
                [*ENSEMBLES.values()],
                OPTIMISERS,
            ),
        ),
        Experiment(
            "fig6",
            "Weight magnitudes",
            "Mean |w| and variance of each convolution, learned and frozen values together, after table 3's "
            "trainings, and as drawn; and of the learned slice alone.",
            _cross([*_TABLE3, {**WRN, "data": "tiny-imagenet"}], [{"kind": "weights"}]),
        ),
    )
}
"""By id, in the paper's order."""

_TEXT: Settings = {
    "kind": "text",
    "model": TRANSFORMER,
    "data": TEXT,
    "epochs": 5,
    "batch_size": 50,
    "opt": "adamw",
    "lr": 2e-3,
    "weight_decay": 0.01,
}
BEYOND: dict[str, Experiment] = {
    "text": Experiment(
        "text",
        "Beyond pictures: a transformer that reads definitions",
        "Ours, as the paper leaves non-vision tasks open: animal, artefact, food, person or plant, told from "
        "what WordNet says of it, by four blocks of attention over random values. The vectors of words are "
        "random and frozen, but where everything is learned.",
        _cross(
            [_TEXT],
            [{"filters": 0}, {"filters": 1}, *({"fraction": p} for p in (0.1, 0.4, 0.7))],
            [{}, {"norm": False}],
        )
        + _cross([_TEXT], [{"fraction": 1.0}]),
    )
}
"""Experiments of ours, which the paper has not."""
EVERY: dict[str, Experiment] = EXPERIMENTS | BEYOND


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


_TABLE1_PRINTED = (
    (DENSENET, "BN", "24K", 60.85, 16.06),
    (DENSENET, "conv1", "24.6K", 64.76, 15.08),
    (DENSENET, "block1", "194K", 73.02, 22.89),
    (DENSENET, "block2", "259K", 72.95, 28.00),
    (DENSENET, "block3", "291K", 76.33, 31.18),
    (DENSENET, "fc", "27.4K / 58.3K", 68.63, 33.43),
    (WRN, "BN", "7.2K", 30.2, 3.76),
    (WRN, "conv1", "7.63K", 30.93, 3.67),
    (WRN, "block1", "275K", 61.19, 12.23),
    (WRN, "block2", "1.12M", 76.32, 25.07),
    (WRN, "block3", "4.46M", 74.31, 32.35),
    (WRN, "fc", "9.77K / 32.9K", 37.03, 10.31),
)
"""Learned parameters, of both data sets if they differ, and accuracy on CIFAR-10 and CIFAR-100."""
_TABLE2_PRINTED = (
    (WIDE, 0.1, "3.66M", 94.12, 91.53),
    (WIDE, 0.4, "14.6M", 95.75, 95.49),
    (DENSENET, 0.1, ".09M", 88.73, 82.11),
    (DENSENET, 0.4, ".3M", 93.33, 92.46),
)
"""Accuracy with the rest random and zero."""
_FIG5_PRINTED = (
    (DENSENET, "cifar10", 85.0),
    (DENSENET, "cifar100", 59.7),
    (WIDE, "cifar10", 69.0),
    (WIDE, "cifar100", 34.85),
)
"""With one filter a layer."""
_TABLE3_PRINTED = ((0.1, 21.75, ".83M"), (0.4, 30.13, "2.58M"), (0.7, 33.22, "4.33M"), (1.0, 35.54, "6.1M"))
_TABLE4_PRINTED = (
    ("FC", "137K", 68.5, 70.25),
    ("Share-Conv-0.9", "451K", 69.9, 71.14),
    ("Share-Conv-0.6", "1.53M", 71.0, 73.54),
    ("Share-Conv-0.3", "2.66M", 71.3, 75.47),
    ("Full", "3.85M", 71.7, 76.35),
)
"""Members' mean, and the ensemble."""


def _row(net: Settings, **settings: object) -> Settings:
    return {"model": net["model"], **SIZELESS, "frozen": None, **settings}


PUBLISHED: tuple[Number, ...] = (
    *(
        Number(
            "table1", _row(net, **{"layers": None, "head": True, **LAYERS[name], "data": data}), top1, learned
        )
        for net, name, counts, *both in _TABLE1_PRINTED
        for data, top1, learned in zip(("cifar10", "cifar100"), both, 2 * counts.split(" / "), strict=False)
    ),
    *(Number("fig1", _row(net, filters=1, frozen="zero"), 45.0, about=True) for net in (DENSENET, WRN)),
    *(
        Number("table2", _row(net, fraction=p, frozen=rest), top1, learned)
        for net, p, learned, *both in _TABLE2_PRINTED
        for rest, top1 in zip((None, "zero"), both, strict=True)
    ),
    Number("table2", _row(WIDE, fraction=1.0), 96.2),
    *(Number("fig5", _row(net, filters=1, data=data), top1) for net, data, top1 in _FIG5_PRINTED),
    *(
        Number("fig5", _row(net, fraction=p, data="cifar10"), top1, learned)
        for net, p, learned, top1, _ in (*_TABLE2_PRINTED, (WIDE, 1.0, None, 96.2, None))
    ),
    *(Number("table3", _row(TINY, fraction=p), top1, learned) for p, top1, learned in _TABLE3_PRINTED),
    *(
        Number("table4", _row(DENSENET, **ENSEMBLES[name]), top1, learned, mean)
        for name, learned, mean, top1 in _TABLE4_PRINTED
    ),
)


def published(experiment: str, settings: Settings) -> Number | None:
    """Return what the paper says of a row of an experiment, if it does."""
    return next(
        (
            number
            for number in PUBLISHED
            if number.experiment == experiment and number.row.items() <= settings.items()
        ),
        None,
    )
