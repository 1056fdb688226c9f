"""What the paper claims, and we of text, each with the rule that decides it, as far as our results tell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sparsetune.studies.intervals import Evidence, Measured, Verdict, average, judge, seed_by_seed
from sparsetune.studies.paper.experiments import (
    COUNTS,
    DENSENET,
    ENSEMBLES,
    FRACTIONS,
    SIZELESS,
    WIDE,
    WRN,
)
from sparsetune.studies.paper.figures import FIVE, fit_line
from sparsetune.studies.paper.results import Results, Selection, deciding
from sparsetune.studies.store import Settings

BOTH = ("cifar10", "cifar100")
DENSE, WIDE4, WIDE10 = DENSENET["model"], WRN["model"], WIDE["model"]
SMALL = [p for p in FRACTIONS if p <= 0.1]
LARGE = [p for p in FRACTIONS if p >= 0.4]
FEW: list[Settings] = [{"fraction": p} for p in SMALL] + [{"filters": k} for k in COUNTS]


class Missing(Exception):  # noqa: N818
    """A number that the rule needs was not run."""


@dataclass(frozen=True)
class Found:
    """Accuracies of one experiment, in percent; asking for one that was not run raises :class:`Missing`."""

    results: Results
    experiment: str

    def __call__(self, **where: object) -> Measured:
        """Return the accuracy of the row with the given settings; of several the best."""
        size = SIZELESS if {"fraction", "filters"} & {*where} else {}
        points = self.results.points(self.experiment, **{**size, **where})
        return max(self.all_of(points), key=lambda each: each.mean)

    def all_of(self, points: Iterable[Settings], key: str = "top1") -> list[Measured]:
        """Return what was measured of rows; those that were not run are left out."""
        found = [each for point in points if (each := self.results.measured(point, key))]
        if not found:
            raise Missing
        return found

    def told(self, found: Mapping[str, Measured], digits: int = 1) -> str:
        """Say a number for each model."""
        return ", ".join(f"{self.results.title(m)} {value.mean:.{digits}f}" for m, value in found.items())

    def chance(self) -> float:
        """Return the accuracy of guessing, in percent."""
        return self.results.chance(self.results.points(self.experiment)[0])


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper.

    Attributes:
        where: Section, table or figure.
        text: The sentence, shortened.
        paper: What the paper measured.
        find: What decides it; its docstring says when the claim is taken to hold.
    """

    where: str
    text: str
    paper: str
    find: Callable[[Found], Evidence]

    @property
    def rule(self) -> str:
        """When it is taken to hold; differences are in percent points."""
        return self.find.__doc__ or ""

    @property
    def experiment(self) -> str:
        """Id of the experiment that decides it."""
        return "text" if self.where == "Ours" else self.where.lower().replace(".", "").replace(" ", "")

    def verdict(self, results: Results) -> Verdict:
        """Decide it by the results that there are."""
        try:
            return judge(self.find(Found(results, self.experiment)))
        except Missing:
            return Verdict("not run")


CLAIMS: list[Claim] = []
"""In the paper's order."""


def claim(
    where: str, text: str, paper: str
) -> Callable[[Callable[[Found], Evidence]], Callable[[Found], Evidence]]:
    """Register the decorated rule, which is given what was found for ``where``, as that of a claim."""

    def register(rule: Callable[[Found], Evidence]) -> Callable[[Found], Evidence]:
        CLAIMS.append(Claim(where, text, paper, rule))
        return rule

    return register


@claim(
    "Fig. 1",
    "A single filter a layer, the rest zeroed, is still much above chance, around 45 %, with resnets.",
    "around 45 %",
)
def one_filter(at: Found) -> Evidence:
    """Both densenet and WRN-28-4 reach three times chance."""
    found = {model: at(model=model, filters=1, frozen="zero") for model in (DENSE, WIDE4)}
    return Evidence([each - 3 * at.chance() for each in found.values()], at.told(found))


@claim(
    "Fig. 1",
    "Using 70 % of the filters while zeroing the rest achieves the same performance for densenets.",
    "in a figure: the points lie on each other",
)
def seventy_zeroed(at: Found) -> Evidence:
    """The two are at most 2 points apart."""
    fixed, zeroed = (at(model=DENSE, fraction=0.7, frozen=frozen) for frozen in (None, "zero"))
    apart = fixed - zeroed
    return Evidence([2 - apart, 2 + apart], f"random {fixed.mean:.1f}, zeroed {zeroed.mean:.1f}")


@claim("Fig. 1", "There is a gap between fixed random weights and zeroed ones.", "in a figure")
def gap(at: Found) -> Evidence:
    """Random is ahead on average over fractions up to .1, for densenet and WRN-28-4."""
    gaps = {
        model: average(
            at(model=model, fraction=p, frozen=None) - at(model=model, fraction=p, frozen="zero")
            for p in SMALL
        )
        for model in (DENSE, WIDE4)
    }
    return Evidence([*gaps.values()], "random minus zeroed: " + at.told(gaps))


@claim("Fig. 1", "The best performer is densenet.", "in a figure")
def best_model(at: Found) -> Evidence:
    """It has the highest mean over the fractions."""
    means = {model: average(at(model=model, fraction=p, frozen=None) for p in FRACTIONS) for model in FIVE}
    leads = [means[DENSE] - means[model] for model in FIVE if model != DENSE]
    return Evidence(leads, "mean over fractions: " + at.told(means))


@claim("Fig. 1", "AlexNet fails to learn for small fractions or only a few filters a layer.", "in a figure")
def alexnet(at: Found) -> Evidence:
    """No training up to .1 and up to 10 filters reaches more than twice chance."""
    return _near_chance(at, [at(model="alexnet_cifar", frozen=None, **size) for size in FEW], 2)


@claim(
    "Fig. 1",
    "VGG-19 without batch norm does not get better than chance for any of these settings.",
    "in a figure: all at 10 %",
)
def vgg(at: Found) -> Evidence:
    """No training reaches more than 1.5 times chance."""
    sizes = [*FEW, *({"fraction": p} for p in LARGE)]
    found = [at(model="vgg19_cifar", frozen=rest, **size) for size in sizes for rest in (None, "zero")]
    return _near_chance(at, found, 1.5)


def _near_chance(at: Found, found: Sequence[Measured], times: float) -> Evidence:
    """All are below so many times chance."""
    said = f"best of them {max(each.mean for each in found):.1f}, chance {at.chance():g}"
    return Evidence([times * at.chance() - each for each in found], said)


@claim(
    "Fig. 2",
    "Learning a subset of filters outperforms learning a subset of the weights of each filter.",
    "in a figure",
)
def outputs(at: Found) -> Evidence:
    """Filters are ahead of inputs on average over the fractions."""
    gains = [at(dim="out", fraction=p) - at(dim="in", fraction=p) for p in FRACTIONS]
    wins = sum(gain.mean > 0 for gain in gains)
    mean = average(gains)
    return Evidence(
        [mean], f"filters ahead at {wins} of {len(gains)} fractions, by {mean.mean:.1f} on average"
    )


def _curves(at: Found) -> dict[str, list[Measured]]:
    """Accuracy at each fraction."""
    return {
        model: [Found(at.results, "fig1")(model=model, fraction=p, frozen=None) for p in FRACTIONS]
        for model in FIVE
    }


@claim("Fig. 3", "Performance grows logarithmically with the number of parameters.", "in a figure")
def logarithmic(at: Found) -> Evidence:
    """R² of the fitted line is .8 or more, for densenet and WRN-28-4; margins are in hundredths."""
    fits = {
        model: seed_by_seed(lambda *tops: fit_line(FRACTIONS, tops)[2], *curve)
        for model, curve in _curves(at).items()
    }
    return Evidence([100 * (fits[model] - 0.8) for model in (DENSE, WIDE4)], "R²: " + at.told(fits, 2))


@claim("Fig. 3", "The slope is larger for recent architectures.", "in a figure")
def slopes(at: Found) -> Evidence:
    """Both densenet's and WRN-28-4's are above AlexNet's and VGG-19's without batch norm."""
    x = np.log(FRACTIONS) - np.log(FRACTIONS).mean()
    weights = len(x) * x / (x**2).sum()
    found = {
        model: average(float(w) * top1 for w, top1 in zip(weights, curve, strict=True))
        for model, curve in _curves(at).items()
    }
    old = [found["alexnet_cifar"], found["vgg19_cifar"]]
    margins = [found[model] - each for model in (DENSE, WIDE4) for each in old]
    return Evidence(margins, "points per e-fold: " + at.told(found))


@claim(
    "Fig. 3",
    "Even with the rest zeroed, densenets attain decent performance with less than 100K parameters.",
    "in a figure",
)
def decent(at: Found) -> Evidence:
    """With .1 it keeps half of the accuracy with all parameters."""
    few = at(model=DENSE, fraction=0.1, frozen="zero")
    full = Found(at.results, "fig4")(model=DENSE, fraction=1.0)
    return Evidence([few - full / 2], f"{few.mean:.1f} with .1, {full.mean:.1f} with all")


def _table1(at: Found) -> dict[tuple[str, str], dict[str, Measured]]:
    """Rows of each net on the data sets that were run."""
    rows = {}
    for data in BOTH:
        if not any(at.results.rows(point) for point in at.results.points("table1", data=data)):
            continue
        for model in (DENSE, WIDE4):
            where = {"model": model, "data": data}
            rows[model, data] = {
                "BN": at(**where, filters=0, head=False),
                "fc": at(**where, filters=0, head=True),
                **{b: at(**where, layers=[b], fraction=1.0) for b in ("block1", "block2", "block3")},
            }
    if not rows:
        raise Missing
    return rows


@claim(
    "Table 1",
    "In most cases learning the classifier alone proves inferior to learning one of the middle blocks.",
    "densenet: fc 68.6, blocks 73.0, 73.0, 76.3; WRN: fc 37.0, blocks 61.2, 76.3, 74.3 (CIFAR-10)",
)
def fc_inferior(at: Found) -> Evidence:
    """Two of the three blocks are ahead in most cases: two nets, on each data set that was run."""
    rows = _table1(at)
    second = {
        key: sorted((row[b] for b in ("block1", "block2", "block3")), key=lambda each: each.mean)[1]
        for key, row in rows.items()
    }
    shown = "; ".join(
        f"{at.results.title(m)} {at.results.title(d)}: fc {row['fc'].mean:.1f}, "
        f"second of blocks {second[m, d].mean:.1f}"
        for (m, d), row in rows.items()
    )
    return Evidence([second[key] - row["fc"] for key, row in rows.items()], shown, len(rows) // 2 + 1)


@claim("Table 1", "Learning only batch norm gives non-trivial performance (densenet, CIFAR-10).", "60.85")
def norm_alone(at: Found) -> Evidence:
    """It reaches three times chance."""
    top1 = at(model=DENSE, data="cifar10", filters=0, head=False)
    return Evidence([top1 - 3 * at.chance()], f"{top1.mean:.1f}, chance {at.chance():g}")


@claim(
    "Table 1",
    "For CIFAR-100 batch norm alone is no longer enough.",
    "densenet: BN 60.85 and 16.06, with the classifier 68.63 and 33.43 (CIFAR-10, CIFAR-100)",
)
def norm_hundred(at: Found) -> Evidence:
    """A larger share is lost without the classifier than on CIFAR-10, for densenet."""
    ten, hundred = (
        seed_by_seed(
            lambda alone, both: 100 * (1 - alone / both),
            *(at(model=DENSE, data=d, filters=0, head=head) for head in (False, True)),
        )
        for d in BOTH
    )
    return Evidence([hundred - ten], f"share lost without fc: {ten.mean:.0f} % and {hundred.mean:.0f} %")


@claim("Fig. 4", "Batch norm makes a big difference for small fractions; from .4 it fades.", "in a figure")
def norm_fades(at: Found) -> Evidence:
    """Mean gain up to .1 and 10 filters is above 0 and above that from .4, for both nets."""
    shown: list[str] = []
    margins: list[Measured] = []
    for model in (DENSE, WIDE4):
        small, large = (
            average(
                at(model=model, norm=True, **size) - at(model=model, norm=False, **size) for size in sizes
            )
            for sizes in (FEW, [{"fraction": p} for p in LARGE])
        )
        margins += [small, small - large]
        shown.append(f"{at.results.title(model)}: {small.mean:.1f} at .1 and less, {large.mean:.1f} from .4")
    return Evidence(margins, "gain by learning BN: " + "; ".join(shown))


@claim("Fig. 4", "70 % of the parameters induce little or no loss.", "in a figure")
def seventy_enough(at: Found) -> Evidence:
    """At most 2 points are lost, for both nets."""
    lost = {m: at(model=m, fraction=1.0) - at(model=m, fraction=0.7, norm=True) for m in (DENSE, WIDE4)}
    return Evidence([2 - each for each in lost.values()], "lost: " + at.told(lost))


@claim("Fig. 4", "densenet achieves the full accuracy with 10 filters a layer.", "in a figure")
def ten_filters(at: Found) -> Evidence:
    """It is at most 2 points below."""
    ten, full = at(model=DENSE, filters=10, norm=True), at(model=DENSE, fraction=1.0)
    return Evidence([ten - full + 2], f"{ten.mean:.1f}, all {full.mean:.1f}")


@claim(
    "Table 2", "WRN-28-10 with 60 % of its filters zeroed achieves almost the baseline.", "95.49, all 96.2"
)
def almost(at: Found) -> Evidence:
    """It is at most 1.5 points below."""
    zeroed, full = at(model=WIDE10, fraction=0.4, frozen="zero"), at(model=WIDE10, fraction=1.0)
    return Evidence([1.5 - (full - zeroed)], f"{zeroed.mean:.2f}, all {full.mean:.2f}")


@claim(
    "Fig. 5",
    "With a single filter a layer densenets outperform WRN by a large gap.",
    "85 against 69 on CIFAR-10, 59.7 against 34.85 on CIFAR-100",
)
def single_filter(at: Found) -> Evidence:
    """They are 10 points or more ahead, on both data sets."""
    gains = {d: at(model=DENSE, data=d, filters=1) - at(model=WIDE10, data=d, filters=1) for d in BOTH}
    shown = "densenet ahead by " + ", ".join(f"{gains[d].mean:.1f} ({at.results.title(d)})" for d in BOTH)
    return Evidence([each - 10 for each in gains.values()], shown)


@claim(
    "Fig. 5", "On CIFAR-100 the gap between few parameters and all is larger than on CIFAR-10.", "in a figure"
)
def hundred_harder(at: Found) -> Evidence:
    """All minus 10 % is larger there, for both nets."""
    gaps = {
        (m, d): at(model=m, data=d, fraction=1.0) - at(model=m, data=d, fraction=0.1)
        for m in (DENSE, WIDE10)
        for d in BOTH
    }
    shown = "; ".join(
        f"{at.results.title(m)} {at.results.title(d)}: {gap.mean:.1f}" for (m, d), gap in gaps.items()
    )
    margins = [gaps[m, "cifar100"] - gaps[m, "cifar10"] for m in (DENSE, WIDE10)]
    return Evidence(margins, "all minus 10 %: " + shown)


@claim(
    "Table 3",
    "With 70 % trained 2.3 points are lost, and another 3.1 with 40 %.",
    "10 % 21.75, 40 % 30.13, 70 % 33.22, all 35.54",
)
def tiny(at: Found) -> Evidence:
    """At most 4 points are lost, then at most 5 more, and 10 % is lowest."""
    some, more, most, full = (at(fraction=p) for p in (0.1, 0.4, 0.7, 1.0))
    shown = f"10 % {some.mean:.1f}, 40 % {more.mean:.1f}, 70 % {most.mean:.1f}, all {full.mean:.1f}"
    return Evidence([4 - (full - most), 5 - (most - more), more - some], shown)


def _ensembles(at: Found) -> dict[str, tuple[Measured, Measured]]:
    """Mean of the members and accuracy together, of the better optimiser."""
    found = {}
    for name, size in ENSEMBLES.items():
        where = {"fraction": None, "filters": None, **size}
        best = at.results.best(at.results.points("table4", **where))
        if best is None:
            raise Missing
        (mean,), (both,) = (at.all_of([best[0]], key) for key in ("mean_top1", "top1"))
        found[name] = (mean, both)
    return found


@claim(
    "Table 4",
    "An ensemble outperforms its members' mean.",
    "FC 68.5 to 70.25, sharing .9 69.9 to 71.14, .6 71 to 73.54, .3 71.3 to 75.47, full 71.7 to 76.35",
)
def together(at: Found) -> Evidence:
    """It is ahead for each of the five kinds."""
    found = _ensembles(at)
    shown = "; ".join(f"{name}: {mean.mean:.1f} to {both.mean:.1f}" for name, (mean, both) in found.items())
    return Evidence([both - mean for mean, both in found.values()], shown)


@claim(
    "Table 4",
    "Sharing 90 % of the parameters already outperforms training only the classifiers again.",
    "sharing .9 71.14, FC 70.25",
)
def ninety_shared(at: Found) -> Evidence:
    """The ensemble that shares .9 is ahead."""
    found = _ensembles(at)
    fc, shared = found["FC"][1], found["Share-Conv-0.9"][1]
    return Evidence([shared - fc], f"sharing .9 {shared.mean:.2f}, FC {fc.mean:.2f}")


@claim(
    "Table 4",
    "The full ensemble is best, and sharing .3 is not far below it.",
    "full 76.35, sharing .3 75.47",
)
def full_near(at: Found) -> Evidence:
    """It is ahead, by at most 1.5 points."""
    found = _ensembles(at)
    full, shared = found["Full"][1], found["Share-Conv-0.3"][1]
    lead = full - shared
    return Evidence([lead, 1.5 - lead], f"Full {full.mean:.2f}, sharing .3 {shared.mean:.2f}")


def _magnitudes(at: Found) -> dict[float, dict[int, list[float]]]:
    """By fraction and seed: mean |w| of each convolution after table 3's trainings."""
    found = {}
    for p in (0.1, 0.4, 0.7, 1.0):
        rows = at.results.rows(at.results.points("fig6", fraction=p)[0])
        found[p] = {
            row.settings["seed"]: [float(layer["mean"]) for layer in row.result["layers"]]
            for row in rows
            if "layers" in row.result
        }
    if not all(found.values()):
        raise Missing
    return found


@claim("Fig. 6", "Magnitudes after training only 10 % stand out as high.", "in a figure")
def ten_high(at: Found) -> Evidence:
    """Mean |w| over the convolutions is highest; margins are in thousandths."""
    means = {
        p: Measured({seed: np.array([np.mean(layers)]) for seed, layers in seeds.items()})
        for p, seeds in _magnitudes(at).items()
    }
    shown = ", ".join(f"{p:.0%} {mean.mean:.4f}" for p, mean in means.items())
    margins = [1000 * (means[0.1] - means[p]) for p in (0.4, 0.7, 1.0)]
    return Evidence(margins, "mean |w| over layers: " + shown)


@claim("Fig. 6", "70 % and 100 % are nearly indistinguishable.", "in a figure")
def seventy_alike(at: Found) -> Evidence:
    """Mean |w| of a convolution differs by at most 10 % on average; margins are in percent."""
    found = _magnitudes(at)
    whole = found[1.0]
    apart = {
        p: Measured(
            {
                seed: np.array([100 * np.mean(np.abs(np.subtract(layers, whole[seed])) / whole[seed])])
                for seed, layers in found[p].items()
                if seed in whole
            }
        )
        for p in (0.1, 0.4, 0.7)
    }
    shown = ", ".join(f"{p:.0%} {value.mean:.0f} %" for p, value in apart.items())
    return Evidence([10 - apart[0.7]], "apart from 100 % by: " + shown)


@claim("Ours", "A random transformer that reads text learns most by a part of its layers too.", "not asked")
def text_too(at: Found) -> Evidence:
    """A tenth of each layer is above normalisation and classifier, and .7 above a tenth."""
    none, few, most = at(norm=True, filters=0), at(norm=True, fraction=0.1), at(norm=True, fraction=0.7)
    shown = f"norm and classifier {none.mean:.1f}, 10 % {few.mean:.1f}, 70 % {most.mean:.1f}"
    return Evidence([few - none, most - few], shown)


@claim("Ours", "Random, frozen vectors of words cost it little.", "not asked")
def text_words(at: Found) -> Evidence:
    """Without learning them, .7 of the layers is at most 5 points below everything."""
    most, full = at(norm=True, fraction=0.7), at(norm=True, fraction=1.0)
    return Evidence([5 - (full - most)], f"70 % {most.mean:.1f}, everything {full.mean:.1f}")


def questions(selection: Selection) -> list[frozenset[str]]:
    """Return, for each claim that a selection can decide, the ids of the jobs that do so."""
    return deciding(selection, [claim.verdict for claim in CLAIMS])
