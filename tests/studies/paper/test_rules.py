"""Claims on results made by hand: each holds on the paper's numbers, and breaks on others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import t as student_t

from sparsetune.studies.intervals import packed
from sparsetune.studies.jobs import in_order, job
from sparsetune.studies.paper.experiments import EVERY, EXPERIMENTS, VGG, WIDE, published
from sparsetune.studies.paper.figures import fit_line
from sparsetune.studies.paper.results import Results, Selection
from sparsetune.studies.paper.rules import CLAIMS, questions

FULL = Selection(preset="full", seeds=(0, 1))
AT = {
    "densenet100_12": 70.0,
    "wrn28_4": 60.0,
    "alexnet_cifar": 5.0,
    "vgg19_bn_cifar": 50.0,
    "vgg19_cifar": 10.0,
    "definitions_transformer": 40.0,
}


def as_the_paper_draws_it(experiment, point):
    """An accuracy in percent for a row of which the text gives none."""
    size = point["fraction"] or (point["filters"] or 0) / 24
    model = point["model"]
    if model == VGG["model"] or (model == "alexnet_cifar" and size < 0.45):
        return 10.0
    if point["model"] == WIDE["model"] or experiment in ("table2", "fig5"):
        return {"cifar10": 96.0, "cifar100": 75.0}[point["data"]] - 20 * (1 - size) * (
            point["data"] == "cifar100"
        )
    found = AT[model] + 12 * min(size, 0.7) ** 0.25
    found -= 8 * (0.7 - min(size, 0.7)) * (point["frozen"] == "zero")
    found -= 20 * (0.7 - min(size, 0.7)) * (not point["norm"])
    return found - 5 * (point["dim"] != "out")


@pytest.fixture(scope="module")
def rows(row):
    """Every job of every experiment, with the paper's number where there is one."""
    made = {}
    for experiment in EVERY.values():
        for point in experiment.points:
            number = published(experiment.id, point)
            top1 = number.top1 if number else as_the_paper_draws_it(experiment.id, point)
            result = {"top1": top1 / 100, "seconds": 1.0}
            if number and number.mean:
                result["mean_top1"] = number.mean / 100
            if point["kind"] == "weights":
                high = {None: 1.0, 0.1: 0.9, 0.4: 0.55, 0.7: 0.5, 1.0: 0.5}[point["fraction"]]
                layers = [
                    {"name": str(i), "mean": high, "variance": high**2, "learned": None} for i in range(3)
                ]
                result = {"layers": layers}
            for seed in FULL.seeds:
                own = job({**point, "seed": seed})
                for each in in_order([own]):
                    made.setdefault(each.id, row(each, top1=top1 / 100))
                made[own.id] = row(own, **result)
    return made


def decided(rows):
    results = Results([*rows.values()], FULL)
    return {claim.find.__name__: claim.verdict(results) for claim in CLAIMS}


def changed(rows, points, **result):
    """Other results of some rows, with both seeds."""
    made = dict(rows)
    for point in points:
        for seed in FULL.seeds:
            old = rows[job({**point, "seed": seed}).id]
            made[old.id] = type(old)(old.id, old.settings, {**old.result, **result}, old.about)
    return made


def test_all_claims_hold_on_the_papers_own_numbers(rows):
    verdicts = decided(rows)
    assert {name: verdict for name, verdict in verdicts.items() if verdict.mark != "holds"} == {}
    assert all(verdict.said and verdict.margin and verdict.seeds == 2 for verdict in verdicts.values())


def test_none_is_decided_without_results():
    assert {verdict.mark for verdict in decided({}).values()} == {"not run"}


def test_one_seed_decides_nothing(rows):
    one = {name: row for name, row in rows.items() if row.settings["seed"] % 1000 == 0}
    verdicts = decided(one)
    assert {verdict.mark for verdict in verdicts.values()} == {"too close to tell"}
    assert {verdict.seeds for verdict in verdicts.values()} == {1}


BREAKS = [
    ("one_filter", "fig1", {"model": "wrn28_4", "filters": 1, "frozen": "zero"}, 12),
    ("seventy_zeroed", "fig1", {"model": "densenet100_12", "fraction": 0.7, "frozen": "zero"}, 60),
    ("gap", "fig1", {"model": "wrn28_4", "frozen": "zero", "fraction": 0.07}, 99),
    ("best_model", "fig1", {"model": "vgg19_bn_cifar", "frozen": None}, 90),
    ("alexnet", "fig1", {"model": "alexnet_cifar", "fraction": 0.09, "frozen": None}, 30),
    ("vgg", "fig1", {"model": "vgg19_cifar", "filters": 10, "frozen": "zero"}, 30),
    ("outputs", "fig2", {"dim": "in"}, 90),
    ("logarithmic", "fig1", {"model": "wrn28_4", "fraction": 0.1, "frozen": None}, 20),
    ("slopes", "fig1", {"model": "alexnet_cifar", "fraction": 0.7, "frozen": None}, 99),
    ("decent", "fig1", {"model": "densenet100_12", "fraction": 0.1, "frozen": "zero"}, 20),
    ("fc_inferior", "table1", {"model": "wrn28_4", "filters": 0, "head": True}, 80),
    ("norm_alone", "table1", {"model": "densenet100_12", "data": "cifar10", "filters": 0, "head": False}, 20),
    ("norm_hundred", "table1", {"data": "cifar100", "filters": 0, "head": False}, 33),
    ("norm_fades", "fig4", {"model": "wrn28_4", "norm": False, "fraction": 0.4}, 5),
    ("seventy_enough", "fig4", {"model": "wrn28_4", "fraction": 1.0}, 90),
    ("ten_filters", "fig4", {"model": "densenet100_12", "filters": 10, "norm": True}, 50),
    ("almost", "table2", {"model": "wrn28_10", "fraction": 0.4, "frozen": "zero"}, 90),
    ("single_filter", "fig5", {"model": "wrn28_10", "filters": 1, "data": "cifar100"}, 58),
    ("hundred_harder", "fig5", {"model": "wrn28_10", "fraction": 0.1, "data": "cifar100"}, 75),
    ("tiny", "table3", {"fraction": 0.7}, 30),
    ("ninety_shared", "table4", {"filters": 0}, 72),
    ("full_near", "table4", {"fraction": 0.7}, 70),
    ("together", "table4", {"fraction": 0.4}, 70),
    ("text_too", "text", {"fraction": 0.1}, 20),
    ("text_words", "text", {"fraction": 1.0}, 90),
]


@pytest.mark.parametrize(("name", "experiment", "where", "top1"), BREAKS, ids=[b[0] for b in BREAKS])
def test_a_claim_breaks_on_other_numbers(rows, name, experiment, where, top1):
    points = Results([], FULL).points(experiment, **where)
    assert points
    assert decided(rows)[name].mark == "holds"
    assert decided(changed(rows, points, top1=top1 / 100))[name].mark == "does not"


@pytest.mark.parametrize(("name", "fraction", "high"), [("ten_high", 0.4, 2.0), ("seventy_alike", 0.7, 0.6)])
def test_a_claim_about_weights_breaks_on_other_magnitudes(rows, name, fraction, high):
    points = Results([], FULL).points("fig6", fraction=fraction)
    layers = [{"name": str(i), "mean": high, "variance": 1.0, "learned": None} for i in range(3)]
    assert decided(rows)[name].mark == "holds"
    assert decided(changed(rows, points, layers=layers))[name].mark == "does not"


def test_every_claim_has_been_seen_to_break():
    seen = {name for name, *_ in BREAKS} | {"ten_high", "seventy_alike"}
    assert seen == {claim.find.__name__ for claim in CLAIMS}


def test_each_claim_asks_for_what_decides_it_alone(rows):
    """Without the results that it asks for a claim is not decided; with no others it is."""
    found = questions(FULL)
    assert len(found) == sum(claim.experiment in EXPERIMENTS for claim in CLAIMS)
    for claim, names in zip(CLAIMS, found, strict=False):  # ours are last
        own = [rows[name] for name in names]
        assert claim.verdict(Results(own, FULL)) == claim.verdict(Results([*rows.values()], FULL))
    assert len(questions(Selection(preset="full", only=("table3",)))) == 1


def test_a_missing_row_leaves_its_claims_open_and_no_other(rows):
    (point,) = Results([], FULL).points("table3", fraction=0.4)
    gone = {job({**point, "seed": seed}).id for seed in FULL.seeds}
    left = {name: row for name, row in rows.items() if name not in gone}
    open_now = {name for name, verdict in decided(left).items() if verdict.mark == "not run"}
    assert open_now == {"tiny"}


def test_classifier_is_judged_on_one_data_set_where_the_other_was_not_run(rows):
    left = {name: row for name, row in rows.items() if row.settings["data"] != "cifar100"}
    verdict = decided(left)["fc_inferior"]
    assert verdict.mark == "holds"
    assert "CIFAR-100" not in verdict.said


def test_a_line_is_fitted_to_the_logarithm():
    slope, level, r2 = fit_line([0.1, 0.01, 0.001], [50 - 2.302585093, 50 - 4.605170186, 50 - 6.907755279])
    assert (slope, level, r2) == pytest.approx((1.0, 50.0, 1.0))
    assert fit_line([0.1, 0.2, 0.4], [3.0, 1.0, 3.0])[2] == pytest.approx(0.0)


def test_what_seeds_or_pictures_would_turn_round_is_too_close_to_tell(rows):
    """Table 4: the margin is the same, over pictures of which both sides know the most, or few."""
    points = [Results([], FULL).points("table4", **where) for where in ({"filters": 0}, {"fraction": 0.1})]
    generator = np.random.default_rng(0)
    for pictures, mark in ((4000, "holds"), (100, "too close to tell")):
        fc = generator.permutation(np.arange(pictures) < 0.70 * pictures)
        gained, lost = np.flatnonzero(~fc), np.flatnonzero(fc)
        shared = fc.copy()
        shared[gained[: pictures // 10]], shared[lost[: pictures // 20]] = True, False
        found = rows
        for rights, where in zip((fc, shared), points, strict=True):
            right = {"right": packed(torch.from_numpy(rights)), "test_pictures": pictures}
            found = changed(found, where, top1=float(rights.mean()), **right)
        verdict = decided(found)["ninety_shared"]
        assert verdict.mark == mark
        by_pictures = 100 * (shared.astype(float) - fc)
        half = student_t.ppf(0.975, pictures - 1) * by_pictures.std(ddof=1) / pictures**0.5
        assert verdict.margin == f"{by_pictures.mean():.1f} ± {half:.1f}"
