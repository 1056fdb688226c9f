"""What the paper claims, each with the rule that decides it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, median

from sparsetune.studies.jobs import Settings
from sparsetune.studies.paper.experiments import COUNTS, ENSEMBLES, FRACTIONS, NAMES
from sparsetune.studies.paper.figures import FIVE, curve, fit_line, magnitudes
from sparsetune.studies.paper.results import (
    BOTH,
    DENSE,
    WIDE4,
    WIDE10,
    Decided,
    Found,
    Missing,
    Results,
    told,
)

SMALL = [p for p in FRACTIONS if p <= 0.1]
LARGE = [p for p in FRACTIONS if p >= 0.4]


def one_filter(results: Results) -> Decided:
    """Both densenet and WRN-28-4 reach three times chance."""
    at = Found(results, "fig1")
    found = {model: at(model=model, filters=1, frozen="zero") for model in (DENSE, WIDE4)}
    return min(found.values()) >= 3 * at.chance(), told(found)


def seventy_zeroed(results: Results) -> Decided:
    """The two are at most 2 points apart."""
    at = Found(results, "fig1")
    fixed, zeroed = (at(model=DENSE, fraction=0.7, frozen=frozen) for frozen in (None, "zero"))
    return abs(fixed - zeroed) <= 2, f"random {fixed:.1f}, zeroed {zeroed:.1f}"


def gap(results: Results) -> Decided:
    """Random is ahead on average over fractions up to .1, for densenet and WRN-28-4."""
    at = Found(results, "fig1")
    gaps = {
        model: fmean(
            at(model=model, fraction=p, frozen=None) - at(model=model, fraction=p, frozen="zero")
            for p in SMALL
        )
        for model in (DENSE, WIDE4)
    }
    return min(gaps.values()) > 0, "random minus zeroed: " + told(gaps)


def alexnet(results: Results) -> Decided:
    """No training up to .1 and up to 10 filters reaches more than twice chance."""
    at = Found(results, "fig1")
    sizes: list[Settings] = [{"fraction": p} for p in SMALL] + [{"filters": k} for k in COUNTS]
    best = max(at(model="alexnet_cifar", frozen=None, **size) for size in sizes)
    return best <= 2 * at.chance(), f"best of them {best:.1f}, chance {at.chance():g}"


def vgg(results: Results) -> Decided:
    """No training reaches more than 1.5 times chance."""
    at = Found(results, "fig1")
    sizes: list[Settings] = [{"fraction": p} for p in FRACTIONS] + [{"filters": k} for k in COUNTS]
    best = max(at(model="vgg19_cifar", frozen=rest, **size) for size in sizes for rest in (None, "zero"))
    return best <= 1.5 * at.chance(), f"best of them {best:.1f}, chance {at.chance():g}"


def best_model(results: Results) -> Decided:
    """It has the highest mean over the fractions."""
    at = Found(results, "fig1")
    means = {model: fmean(at(model=model, fraction=p, frozen=None) for p in FRACTIONS) for model in FIVE}
    return max(means, key=lambda model: means[model]) == DENSE, "mean over fractions: " + told(means)


def outputs(results: Results) -> Decided:
    """Filters are ahead of inputs at more than half of the fractions."""
    at = Found(results, "fig2")
    gains = [at(dim="out", fraction=p) - at(dim="in", fraction=p) for p in FRACTIONS]
    wins = sum(gain > 0 for gain in gains)
    return wins > len(
        gains
    ) / 2, f"filters ahead at {wins} of {len(gains)} fractions, by {fmean(gains):.1f} on average"


def _lines(results: Results) -> dict[str, tuple[float, float, float]]:
    lines = {}
    for model in FIVE:
        fractions, accuracies = curve(results, model)
        if len(fractions) < len(FRACTIONS):
            raise Missing
        lines[model] = fit_line(fractions, accuracies)
    return lines


def logarithmic(results: Results) -> Decided:
    """R² of the fitted line is .8 or more, for densenet and WRN-28-4."""
    fits = {model: r2 for model, (_, _, r2) in _lines(results).items()}
    return min(fits[DENSE], fits[WIDE4]) >= 0.8, "R²: " + told(fits, 2)


def slopes(results: Results) -> Decided:
    """Both densenet's and WRN-28-4's are above AlexNet's and VGG-19's without batch norm."""
    slopes = {model: slope for model, (slope, _, _) in _lines(results).items()}
    old = max(slopes["alexnet_cifar"], slopes["vgg19_cifar"])
    return min(slopes[DENSE], slopes[WIDE4]) > old, "points per e-fold: " + told(slopes)


def decent(results: Results) -> Decided:
    """With .1 it keeps half of the accuracy with all parameters."""
    few, whole = Found(results, "fig1")(model=DENSE, fraction=0.1, frozen="zero"), Found(results, "fig4")
    full = whole(model=DENSE, fraction=1.0)
    return few >= full / 2, f"{few:.1f} with 90,196 parameters, {full:.1f} with all"


def _table1(results: Results) -> dict[tuple[str, str], dict[str, float]]:
    """Rows of each net on the data sets that were run."""
    at, rows = Found(results, "table1"), {}
    for data in BOTH:
        if not any(results.rows(point) for point in results.points("table1", data=data)):
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


def fc_inferior(results: Results) -> Decided:
    """Two of the three blocks are ahead in most cases: two nets, on each data set that was run."""
    rows = _table1(results)
    second = {key: median((row["block1"], row["block2"], row["block3"])) for key, row in rows.items()}
    shown = "; ".join(
        f"{NAMES[m]} {d}: fc {row['fc']:.1f}, second of blocks {second[m, d]:.1f}"
        for (m, d), row in rows.items()
    )
    return sum(row["fc"] < second[key] for key, row in rows.items()) > len(rows) / 2, shown


def norm_alone(results: Results) -> Decided:
    """It reaches three times chance."""
    at = Found(results, "table1")
    top1 = at(model=DENSE, data="cifar10", filters=0, head=False)
    return top1 >= 3 * at.chance(), f"{top1:.1f}, chance {at.chance():g}"


def norm_hundred(results: Results) -> Decided:
    """A larger share is lost without the classifier than on CIFAR-10, for densenet."""
    at = Found(results, "table1")
    norm, both = ([at(model=DENSE, data=d, filters=0, head=head) for d in BOTH] for head in (False, True))
    ten, hundred = (1 - alone / whole for alone, whole in zip(norm, both, strict=True))
    return hundred > ten, f"share lost without fc: {ten:.0%} and {hundred:.0%}"


def norm_fades(results: Results) -> Decided:
    """Mean gain up to .1 and 10 filters is above 0 and above that from .4, for both nets."""
    at, shown, holds = Found(results, "fig4"), [], True
    few: list[Settings] = [{"fraction": p} for p in SMALL] + [{"filters": k} for k in COUNTS]
    for model in (DENSE, WIDE4):
        small, large = (
            fmean(at(model=model, norm=True, **size) - at(model=model, norm=False, **size) for size in sizes)
            for sizes in (few, [{"fraction": p} for p in LARGE])
        )
        holds &= small > large and small > 0
        shown.append(f"{NAMES[model]}: {small:.1f} at .1 and less, {large:.1f} from .4")
    return holds, "gain by learning BN: " + "; ".join(shown)


def seventy_enough(results: Results) -> Decided:
    """At most 2 points are lost, for both nets."""
    at = Found(results, "fig4")
    lost = {m: at(model=m, fraction=1.0) - at(model=m, fraction=0.7, norm=True) for m in (DENSE, WIDE4)}
    return max(lost.values()) <= 2, "lost: " + told(lost)


def ten_filters(results: Results) -> Decided:
    """It is at most 2 points below."""
    at = Found(results, "fig4")
    ten, full = at(model=DENSE, filters=10, norm=True), at(model=DENSE, fraction=1.0)
    return ten >= full - 2, f"{ten:.1f}, all {full:.1f}"


def almost(results: Results) -> Decided:
    """It is at most 1.5 points below."""
    at = Found(results, "table2")
    zeroed, full = at(model=WIDE10, fraction=0.4, frozen="zero"), at(model=WIDE10, fraction=1.0)
    return full - zeroed <= 1.5, f"{zeroed:.2f}, all {full:.2f}"


def single_filter(results: Results) -> Decided:
    """They are 10 points or more ahead, on both data sets."""
    at = Found(results, "fig5")
    gains = {d: at(model=DENSE, data=d, filters=1) - at(model=WIDE10, data=d, filters=1) for d in BOTH}
    return min(gains.values()) >= 10, "densenet ahead by " + ", ".join(f"{gains[d]:.1f} ({d})" for d in BOTH)


def hundred_harder(results: Results) -> Decided:
    """All minus 10 % is larger there, for both nets."""
    at = Found(results, "fig5")
    gaps = {
        (m, d): at(model=m, data=d, fraction=1.0) - at(model=m, data=d, fraction=0.1)
        for m in (DENSE, WIDE10)
        for d in BOTH
    }
    shown = "; ".join(f"{NAMES[m]} {d}: {gap:.1f}" for (m, d), gap in gaps.items())
    return all(gaps[m, "cifar100"] > gaps[m, "cifar10"] for m in (DENSE, WIDE10)), "all minus 10 %: " + shown


def tiny(results: Results) -> Decided:
    """At most 4 points are lost, then at most 5 more, and 10 % is lowest."""
    at = Found(results, "table3")
    some, more, most, full = (at(fraction=p) for p in (0.1, 0.4, 0.7, 1.0))
    holds = full - most <= 4 and most - more <= 5 and more > some
    return holds, f"10 % {some:.1f}, 40 % {more:.1f}, 70 % {most:.1f}, all {full:.1f}"


def _ensembles(results: Results) -> dict[str, tuple[float, float]]:
    """Mean of the members and accuracy together, of the better optimiser."""
    found = {}
    for name, size in ENSEMBLES.items():
        where = {"fraction": None, "filters": None, **size}
        best = results.best(results.points("table4", **where))
        if best is None:
            raise Missing
        mean = results.spread(best[0], "mean_top1")
        found[name] = (mean.mean if mean else 0.0, best[1].mean)
    return found


def together(results: Results) -> Decided:
    """It is ahead for each of the five kinds."""
    found = _ensembles(results)
    return all(both > mean for mean, both in found.values()), "; ".join(
        f"{name}: {mean:.1f} to {both:.1f}" for name, (mean, both) in found.items()
    )


def ninety_shared(results: Results) -> Decided:
    """The ensemble that shares .9 is ahead."""
    found = _ensembles(results)
    fc, shared = found["FC"][1], found["Share-Conv-0.9"][1]
    return shared > fc, f"sharing .9 {shared:.2f}, FC {fc:.2f}"


def full_near(results: Results) -> Decided:
    """It is ahead, by at most 1.5 points."""
    found = _ensembles(results)
    full, shared = found["Full"][1], found["Share-Conv-0.3"][1]
    return full >= shared >= full - 1.5, f"Full {full:.2f}, sharing .3 {shared:.2f}"


def _means(results: Results) -> dict[float, list[float]]:
    found = {p: magnitudes(results, p) for p in (0.1, 0.4, 0.7, 1.0)}
    if not all(found.values()):
        raise Missing
    return {p: [float(layer["mean"]) for layer in layers] for p, layers in found.items()}


def ten_high(results: Results) -> Decided:
    """Mean |w| over the convolutions is highest."""
    means = {p: fmean(layers) for p, layers in _means(results).items()}
    shown = ", ".join(f"{p:.0%} {mean:.4f}" for p, mean in means.items())
    return means[0.1] == max(means.values()), "mean |w| over layers: " + shown


def seventy_alike(results: Results) -> Decided:
    """Mean |w| of a convolution differs by at most 10 % on average."""
    means = _means(results)
    apart = {
        p: fmean(abs(a - b) / b for a, b in zip(means[p], means[1.0], strict=True)) for p in (0.1, 0.4, 0.7)
    }
    shown = ", ".join(f"{p:.0%} {value:.0%}" for p, value in apart.items())
    return apart[0.7] <= 0.1, "apart from 100 % by: " + shown


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
    decide: Callable[[Results], Decided]

    @property
    def rule(self) -> str:
        """When it is taken to hold; differences are in percent points."""
        return self.decide.__doc__ or ""

    def decided(self, results: Results) -> Decided | None:
        """Return whether it holds and the numbers that say so; ``None`` where they were not all run."""
        try:
            return self.decide(results)
        except Missing:
            return None


CLAIMS = (
    Claim(
        "Fig. 1",
        "A single filter a layer, the rest zeroed, is still much above chance, around 45 %, with resnets.",
        one_filter,
    ),
    Claim(
        "Fig. 1",
        "Using 70 % of the filters while zeroing the rest achieves the same performance for densenets.",
        seventy_zeroed,
    ),
    Claim(
        "Fig. 1",
        "There is a gap between fixed random weights and zeroed ones.",
        gap,
    ),
    Claim("Fig. 1", "The best performer is densenet.", best_model),
    Claim(
        "Fig. 1",
        "AlexNet fails to learn for small fractions or only a few filters a layer.",
        alexnet,
    ),
    Claim(
        "Fig. 1",
        "VGG-19 without batch norm does not get better than chance for any of these settings.",
        vgg,
    ),
    Claim(
        "Fig. 2",
        "Learning a subset of filters outperforms learning a subset of the weights of each filter.",
        outputs,
    ),
    Claim(
        "Fig. 3",
        "Performance grows logarithmically with the number of parameters.",
        logarithmic,
    ),
    Claim(
        "Fig. 3",
        "The slope is larger for recent architectures.",
        slopes,
    ),
    Claim(
        "Fig. 3",
        "Even with the rest zeroed, densenets attain decent performance with less than 100K parameters.",
        decent,
    ),
    Claim(
        "Table 1",
        "In most cases learning the classifier alone proves inferior to learning one of the middle blocks.",
        fc_inferior,
    ),
    Claim(
        "Table 1",
        "Learning only batch norm gives non-trivial performance (densenet, CIFAR-10).",
        norm_alone,
    ),
    Claim(
        "Table 1",
        "For CIFAR-100 batch norm alone is no longer enough.",
        norm_hundred,
    ),
    Claim(
        "Fig. 4",
        "Batch norm makes a big difference for small fractions; from .4 it fades.",
        norm_fades,
    ),
    Claim(
        "Fig. 4",
        "70 % of the parameters induce little or no loss.",
        seventy_enough,
    ),
    Claim(
        "Fig. 4",
        "densenet achieves the full accuracy with 10 filters a layer.",
        ten_filters,
    ),
    Claim(
        "Table 2",
        "WRN-28-10 with 60 % of its filters zeroed achieves almost the baseline.",
        almost,
    ),
    Claim(
        "Fig. 5",
        "With a single filter a layer densenets outperform WRN by a large gap.",
        single_filter,
    ),
    Claim(
        "Fig. 5",
        "On CIFAR-100 the gap between few parameters and all is larger than on CIFAR-10.",
        hundred_harder,
    ),
    Claim(
        "Table 3",
        "With 70 % trained 2.3 points are lost, and another 3.1 with 40 %.",
        tiny,
    ),
    Claim("Table 4", "An ensemble outperforms its members' mean.", together),
    Claim(
        "Table 4",
        "Sharing 90 % of the parameters already outperforms training only the classifiers again.",
        ninety_shared,
    ),
    Claim(
        "Table 4",
        "The full ensemble is best, and sharing .3 is not far below it.",
        full_near,
    ),
    Claim(
        "Fig. 6",
        "Magnitudes after training only 10 % stand out as high.",
        ten_high,
    ),
    Claim(
        "Fig. 6",
        "70 % and 100 % are nearly indistinguishable.",
        seventy_alike,
    ),
)
"""In the paper's order."""
