"""The rules that decide the claims about trainings of 1 and 10 epochs."""

from __future__ import annotations

from statistics import fmean, median

from sparsetune.reproduce.experiments import COUNTS, FRACTIONS, NAMES
from sparsetune.reproduce.figures import FIVE, curve, fit_line
from sparsetune.reproduce.finding import BOTH, DENSE, WIDE4, Decided, Found, Missing, told
from sparsetune.reproduce.jobs import Settings
from sparsetune.reproduce.results import Results

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
