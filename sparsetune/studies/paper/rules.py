"""What the paper claims, each with the rule that decides it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, median

from sparsetune.studies.paper.experiments import (
    COUNTS,
    DENSENET,
    ENSEMBLES,
    FRACTIONS,
    NAMES,
    SIZELESS,
    WIDE,
    WRN,
)
from sparsetune.studies.paper.figures import FIVE, curve, fit_line, magnitudes
from sparsetune.studies.paper.results import Results
from sparsetune.studies.store import Settings

BOTH = ("cifar10", "cifar100")
DENSE, WIDE4, WIDE10 = DENSENET["model"], WRN["model"], WIDE["model"]
SMALL = [p for p in FRACTIONS if p <= 0.1]
LARGE = [p for p in FRACTIONS if p >= 0.4]


class Missing(Exception):  # noqa: N818
    """A number that the rule needs was not run."""


@dataclass(frozen=True)
class Found:
    """Accuracies of one experiment, in percent; asking for one that was not run raises :class:`Missing`."""

    results: Results
    experiment: str

    def __call__(self, **where: object) -> float:
        """Return the mean over seeds of the row with the given settings; of several the best."""
        size = SIZELESS if {"fraction", "filters"} & {*where} else {}
        found = self.results.top1(self.experiment, **{**size, **where})
        if found is None:
            raise Missing
        return found

    def chance(self) -> float:
        """Return the accuracy of guessing, in percent."""
        return self.results.chance(self.results.points(self.experiment)[0])


Decided = tuple[bool, str]
"""Whether a claim holds, and the numbers that say so."""


@dataclass(frozen=True)
class Claim:
    """One sentence of the paper.

    Attributes:
        where: Section, table or figure.
        text: The sentence, shortened.
        decide: The rule; its docstring says when the claim is taken to hold.
    """

    where: str
    text: str
    decide: Callable[[Found], Decided]

    @property
    def rule(self) -> str:
        """When it is taken to hold; differences are in percent points."""
        return self.decide.__doc__ or ""

    def decided(self, results: Results) -> Decided | None:
        """Return whether it holds and the numbers that say so; ``None`` where they were not all run."""
        try:
            return self.decide(Found(results, self.where.lower().replace(".", "").replace(" ", "")))
        except Missing:
            return None


CLAIMS: list[Claim] = []
"""In the paper's order."""


def claim(where: str, text: str) -> Callable[[Callable[[Found], Decided]], Callable[[Found], Decided]]:
    """Register the decorated rule, which is given what was found for ``where``, as that of a claim."""

    def register(rule: Callable[[Found], Decided]) -> Callable[[Found], Decided]:
        CLAIMS.append(Claim(where, text, rule))
        return rule

    return register


def told(found: dict[str, float], digits: int = 1) -> str:
    """Say a number for each model."""
    return ", ".join(f"{NAMES[model]} {value:.{digits}f}" for model, value in found.items())


@claim(
    "Fig. 1",
    "A single filter a layer, the rest zeroed, is still much above chance, around 45 %, with resnets.",
)
def one_filter(at: Found) -> Decided:
    """Both densenet and WRN-28-4 reach three times chance."""
    found = {model: at(model=model, filters=1, frozen="zero") for model in (DENSE, WIDE4)}
    return min(found.values()) >= 3 * at.chance(), told(found)


@claim(
    "Fig. 1",
    "Using 70 % of the filters while zeroing the rest achieves the same performance for densenets.",
)
def seventy_zeroed(at: Found) -> Decided:
    """The two are at most 2 points apart."""
    fixed, zeroed = (at(model=DENSE, fraction=0.7, frozen=frozen) for frozen in (None, "zero"))
    return abs(fixed - zeroed) <= 2, f"random {fixed:.1f}, zeroed {zeroed:.1f}"


@claim("Fig. 1", "There is a gap between fixed random weights and zeroed ones.")
def gap(at: Found) -> Decided:
    """Random is ahead on average over fractions up to .1, for densenet and WRN-28-4."""
    gaps = {
        model: fmean(
            at(model=model, fraction=p, frozen=None) - at(model=model, fraction=p, frozen="zero")
            for p in SMALL
        )
        for model in (DENSE, WIDE4)
    }
    return min(gaps.values()) > 0, "random minus zeroed: " + told(gaps)


@claim("Fig. 1", "The best performer is densenet.")
def best_model(at: Found) -> Decided:
    """It has the highest mean over the fractions."""
    means = {model: fmean(at(model=model, fraction=p, frozen=None) for p in FRACTIONS) for model in FIVE}
    return max(means, key=lambda model: means[model]) == DENSE, "mean over fractions: " + told(means)


@claim("Fig. 1", "AlexNet fails to learn for small fractions or only a few filters a layer.")
def alexnet(at: Found) -> Decided:
    """No training up to .1 and up to 10 filters reaches more than twice chance."""
    sizes: list[Settings] = [{"fraction": p} for p in SMALL] + [{"filters": k} for k in COUNTS]
    best = max(at(model="alexnet_cifar", frozen=None, **size) for size in sizes)
    return best <= 2 * at.chance(), f"best of them {best:.1f}, chance {at.chance():g}"


@claim("Fig. 1", "VGG-19 without batch norm does not get better than chance for any of these settings.")
def vgg(at: Found) -> Decided:
    """No training reaches more than 1.5 times chance."""
    sizes: list[Settings] = [{"fraction": p} for p in FRACTIONS] + [{"filters": k} for k in COUNTS]
    best = max(at(model="vgg19_cifar", frozen=rest, **size) for size in sizes for rest in (None, "zero"))
    return best <= 1.5 * at.chance(), f"best of them {best:.1f}, chance {at.chance():g}"


@claim("Fig. 2", "Learning a subset of filters outperforms learning a subset of the weights of each filter.")
def outputs(at: Found) -> Decided:
    """Filters are ahead of inputs at more than half of the fractions."""
    gains = [at(dim="out", fraction=p) - at(dim="in", fraction=p) for p in FRACTIONS]
    wins = sum(gain > 0 for gain in gains)
    return wins > len(
        gains
    ) / 2, f"filters ahead at {wins} of {len(gains)} fractions, by {fmean(gains):.1f} on average"


def _lines(at: Found) -> dict[str, tuple[float, float, float]]:
    lines = {}
    for model in FIVE:
        fractions, accuracies = curve(at.results, model)
        if len(fractions) < len(FRACTIONS):
            raise Missing
        lines[model] = fit_line(fractions, accuracies)
    return lines


@claim("Fig. 3", "Performance grows logarithmically with the number of parameters.")
def logarithmic(at: Found) -> Decided:
    """R² of the fitted line is .8 or more, for densenet and WRN-28-4."""
    fits = {model: r2 for model, (_, _, r2) in _lines(at).items()}
    return min(fits[DENSE], fits[WIDE4]) >= 0.8, "R²: " + told(fits, 2)


@claim("Fig. 3", "The slope is larger for recent architectures.")
def slopes(at: Found) -> Decided:
    """Both densenet's and WRN-28-4's are above AlexNet's and VGG-19's without batch norm."""
    slopes = {model: slope for model, (slope, _, _) in _lines(at).items()}
    old = max(slopes["alexnet_cifar"], slopes["vgg19_cifar"])
    return min(slopes[DENSE], slopes[WIDE4]) > old, "points per e-fold: " + told(slopes)


@claim(
    "Fig. 3",
    "Even with the rest zeroed, densenets attain decent performance with less than 100K parameters.",
)
def decent(at: Found) -> Decided:
    """With .1 it keeps half of the accuracy with all parameters."""
    few = at(model=DENSE, fraction=0.1, frozen="zero")
    full = Found(at.results, "fig4")(model=DENSE, fraction=1.0)
    return few >= full / 2, f"{few:.1f} with 90,196 parameters, {full:.1f} with all"


def _table1(at: Found) -> dict[tuple[str, str], dict[str, float]]:
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
)
def fc_inferior(at: Found) -> Decided:
    """Two of the three blocks are ahead in most cases: two nets, on each data set that was run."""
    rows = _table1(at)
    second = {key: median((row["block1"], row["block2"], row["block3"])) for key, row in rows.items()}
    shown = "; ".join(
        f"{NAMES[m]} {d}: fc {row['fc']:.1f}, second of blocks {second[m, d]:.1f}"
        for (m, d), row in rows.items()
    )
    return sum(row["fc"] < second[key] for key, row in rows.items()) > len(rows) / 2, shown


@claim("Table 1", "Learning only batch norm gives non-trivial performance (densenet, CIFAR-10).")
def norm_alone(at: Found) -> Decided:
    """It reaches three times chance."""
    top1 = at(model=DENSE, data="cifar10", filters=0, head=False)
    return top1 >= 3 * at.chance(), f"{top1:.1f}, chance {at.chance():g}"


@claim("Table 1", "For CIFAR-100 batch norm alone is no longer enough.")
def norm_hundred(at: Found) -> Decided:
    """A larger share is lost without the classifier than on CIFAR-10, for densenet."""
    norm, both = ([at(model=DENSE, data=d, filters=0, head=head) for d in BOTH] for head in (False, True))
    ten, hundred = (1 - alone / whole for alone, whole in zip(norm, both, strict=True))
    return hundred > ten, f"share lost without fc: {ten:.0%} and {hundred:.0%}"


@claim("Fig. 4", "Batch norm makes a big difference for small fractions; from .4 it fades.")
def norm_fades(at: Found) -> Decided:
    """Mean gain up to .1 and 10 filters is above 0 and above that from .4, for both nets."""
    shown, holds = [], True
    few: list[Settings] = [{"fraction": p} for p in SMALL] + [{"filters": k} for k in COUNTS]
    for model in (DENSE, WIDE4):
        small, large = (
            fmean(at(model=model, norm=True, **size) - at(model=model, norm=False, **size) for size in sizes)
            for sizes in (few, [{"fraction": p} for p in LARGE])
        )
        holds &= small > large and small > 0
        shown.append(f"{NAMES[model]}: {small:.1f} at .1 and less, {large:.1f} from .4")
    return holds, "gain by learning BN: " + "; ".join(shown)


@claim("Fig. 4", "70 % of the parameters induce little or no loss.")
def seventy_enough(at: Found) -> Decided:
    """At most 2 points are lost, for both nets."""
    lost = {m: at(model=m, fraction=1.0) - at(model=m, fraction=0.7, norm=True) for m in (DENSE, WIDE4)}
    return max(lost.values()) <= 2, "lost: " + told(lost)


@claim("Fig. 4", "densenet achieves the full accuracy with 10 filters a layer.")
def ten_filters(at: Found) -> Decided:
    """It is at most 2 points below."""
    ten, full = at(model=DENSE, filters=10, norm=True), at(model=DENSE, fraction=1.0)
    return ten >= full - 2, f"{ten:.1f}, all {full:.1f}"


@claim("Table 2", "WRN-28-10 with 60 % of its filters zeroed achieves almost the baseline.")
def almost(at: Found) -> Decided:
    """It is at most 1.5 points below."""
    zeroed, full = at(model=WIDE10, fraction=0.4, frozen="zero"), at(model=WIDE10, fraction=1.0)
    return full - zeroed <= 1.5, f"{zeroed:.2f}, all {full:.2f}"


@claim("Fig. 5", "With a single filter a layer densenets outperform WRN by a large gap.")
def single_filter(at: Found) -> Decided:
    """They are 10 points or more ahead, on both data sets."""
    gains = {d: at(model=DENSE, data=d, filters=1) - at(model=WIDE10, data=d, filters=1) for d in BOTH}
    return min(gains.values()) >= 10, "densenet ahead by " + ", ".join(f"{gains[d]:.1f} ({d})" for d in BOTH)


@claim("Fig. 5", "On CIFAR-100 the gap between few parameters and all is larger than on CIFAR-10.")
def hundred_harder(at: Found) -> Decided:
    """All minus 10 % is larger there, for both nets."""
    gaps = {
        (m, d): at(model=m, data=d, fraction=1.0) - at(model=m, data=d, fraction=0.1)
        for m in (DENSE, WIDE10)
        for d in BOTH
    }
    shown = "; ".join(f"{NAMES[m]} {d}: {gap:.1f}" for (m, d), gap in gaps.items())
    return all(gaps[m, "cifar100"] > gaps[m, "cifar10"] for m in (DENSE, WIDE10)), "all minus 10 %: " + shown


@claim("Table 3", "With 70 % trained 2.3 points are lost, and another 3.1 with 40 %.")
def tiny(at: Found) -> Decided:
    """At most 4 points are lost, then at most 5 more, and 10 % is lowest."""
    some, more, most, full = (at(fraction=p) for p in (0.1, 0.4, 0.7, 1.0))
    holds = full - most <= 4 and most - more <= 5 and more > some
    return holds, f"10 % {some:.1f}, 40 % {more:.1f}, 70 % {most:.1f}, all {full:.1f}"


def _ensembles(at: Found) -> dict[str, tuple[float, float]]:
    """Mean of the members and accuracy together, of the better optimiser."""
    found = {}
    for name, size in ENSEMBLES.items():
        where = {"fraction": None, "filters": None, **size}
        best = at.results.best(at.results.points("table4", **where))
        if best is None:
            raise Missing
        mean = at.results.spread(best[0], "mean_top1")
        found[name] = (mean.mean if mean else 0.0, best[1].mean)
    return found


@claim("Table 4", "An ensemble outperforms its members' mean.")
def together(at: Found) -> Decided:
    """It is ahead for each of the five kinds."""
    found = _ensembles(at)
    return all(both > mean for mean, both in found.values()), "; ".join(
        f"{name}: {mean:.1f} to {both:.1f}" for name, (mean, both) in found.items()
    )


@claim("Table 4", "Sharing 90 % of the parameters already outperforms training only the classifiers again.")
def ninety_shared(at: Found) -> Decided:
    """The ensemble that shares .9 is ahead."""
    found = _ensembles(at)
    fc, shared = found["FC"][1], found["Share-Conv-0.9"][1]
    return shared > fc, f"sharing .9 {shared:.2f}, FC {fc:.2f}"


@claim("Table 4", "The full ensemble is best, and sharing .3 is not far below it.")
def full_near(at: Found) -> Decided:
    """It is ahead, by at most 1.5 points."""
    found = _ensembles(at)
    full, shared = found["Full"][1], found["Share-Conv-0.3"][1]
    return full >= shared >= full - 1.5, f"Full {full:.2f}, sharing .3 {shared:.2f}"


def _means(at: Found) -> dict[float, list[float]]:
    found = {p: magnitudes(at.results, p) for p in (0.1, 0.4, 0.7, 1.0)}
    if not all(found.values()):
        raise Missing
    return {p: [float(layer["mean"]) for layer in layers] for p, layers in found.items()}


@claim("Fig. 6", "Magnitudes after training only 10 % stand out as high.")
def ten_high(at: Found) -> Decided:
    """Mean |w| over the convolutions is highest."""
    means = {p: fmean(layers) for p, layers in _means(at).items()}
    shown = ", ".join(f"{p:.0%} {mean:.4f}" for p, mean in means.items())
    return means[0.1] == max(means.values()), "mean |w| over layers: " + shown


@claim("Fig. 6", "70 % and 100 % are nearly indistinguishable.")
def seventy_alike(at: Found) -> Decided:
    """Mean |w| of a convolution differs by at most 10 % on average."""
    means = _means(at)
    apart = {
        p: fmean(abs(a - b) / b for a, b in zip(means[p], means[1.0], strict=True)) for p in (0.1, 0.4, 0.7)
    }
    shown = ", ".join(f"{p:.0%} {value:.0%}" for p, value in apart.items())
    return apart[0.7] <= 0.1, "apart from 100 % by: " + shown
