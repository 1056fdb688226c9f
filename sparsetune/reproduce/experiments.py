"""The paper's tables and figures as data: for each, only what differs from the defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsetune.reproduce.jobs import DEFAULTS, Settings

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
}

FRACTIONS = (0.07, 0.08, 0.09, 0.1, 0.4, 0.7)
COUNTS = (1, 5, 10)
SIZES: list[Settings] = [{"fraction": p} for p in FRACTIONS] + [{"filters": k} for k in COUNTS]

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
_FIG2 = _cross([{**DENSENET, **_epochs(1)}], [{"dim": "out"}, {"dim": "in"}], SIZES) + _cross(
    [{**DENSENET, **_epochs(1)}],
    [{"dim": "height"}, {"dim": "width"}],
    [{"fraction": 0.1}, {"fraction": 0.7}],
)
_TABLE2 = _cross(
    [FULL_WIDE, FULL_DENSENET],
    [*_cross([{"fraction": 0.1}, {"fraction": 0.4}], REST), {"fraction": 1.0}],
)
_TABLE3 = _cross([TINY], [{"fraction": p} for p in (0.1, 0.4, 0.7, 1.0)])
_TABLE4 = _cross(
    [{**DENSENET, **_epochs(1), "kind": "ensemble", "members": 5}], [*ENSEMBLES.values()], OPTIMISERS
)

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
            _FIG2,
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
            _TABLE2,
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
            _TABLE4,
        ),
        Experiment(
            "fig6",
            "Weight magnitudes",
            "Mean |w| and variance of each convolution, learned and frozen values together, after table 3's "
            "trainings, and as drawn; and of the learned slice alone.",
            (
                *tuple({**row, "kind": "weights"} for row in _TABLE3),
                {**WRN, "data": "tiny-imagenet", "kind": "weights"},
            ),
        ),
    )
}
"""By id, in the paper's order."""
