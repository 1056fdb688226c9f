"""The rules that decide the claims about full trainings, ensembles and magnitudes."""

from __future__ import annotations

from statistics import fmean

from sparsetune.reproduce.experiments import ENSEMBLES, NAMES
from sparsetune.reproduce.figures import magnitudes
from sparsetune.reproduce.finding import BOTH, DENSE, WIDE10, Decided, Found, Missing
from sparsetune.reproduce.results import Results


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
