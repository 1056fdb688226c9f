"""The experiments as data, against the paper: its numbers of rows, of parameters, its accuracies."""

from __future__ import annotations

import pytest

from sparsetune.studies.jobs import DEFAULTS, job
from sparsetune.studies.paper.experiments import (
    BEYOND,
    DENSENET,
    EXPERIMENTS,
    LAYERS,
    PUBLISHED,
    WIDE,
    WRN,
    published,
)
from sparsetune.studies.paper.report import what
from sparsetune.studies.paper.results import PRESETS, Selection
from sparsetune.studies.sources import learned_parameters, total_parameters

DENSE, WIDE4, WIDE10 = DENSENET["model"], WRN["model"], WIDE["model"]

COUNTS = [
    ("table1", DENSE, "cifar10", LAYERS["BN"], 23_988),
    ("table1", DENSE, "cifar10", LAYERS["conv1"], 24_636),
    ("table1", DENSE, "cifar10", LAYERS["block1"], 194_484),
    ("table1", DENSE, "cifar10", LAYERS["block2"], 258_996),
    ("table1", DENSE, "cifar10", LAYERS["block3"], 291_252),
    ("table1", DENSE, "cifar10", LAYERS["fc"], 27_418),
    ("table1", DENSE, "cifar100", LAYERS["fc"], 58_288),
    ("table1", WIDE4, "cifar10", LAYERS["BN"], 7_200),
    ("table1", WIDE4, "cifar10", LAYERS["conv1"], 7_632),
    ("table1", WIDE4, "cifar10", LAYERS["block1"], 275_488),
    ("table1", WIDE4, "cifar10", LAYERS["block2"], 1_121_312),
    ("table1", WIDE4, "cifar10", LAYERS["block3"], 4_463_648),
    ("table1", WIDE4, "cifar10", LAYERS["fc"], 9_770),
    ("table1", WIDE4, "cifar100", LAYERS["fc"], 32_900),
    ("fig4", DENSE, "cifar10", {"fraction": 1.0}, 769_162),
    ("fig4", WIDE4, "cifar10", {"fraction": 1.0}, 5_849_050),
    ("table2", WIDE10, "cifar10", {"fraction": 0.1}, 3_669_829),
    ("table2", WIDE10, "cifar10", {"fraction": 0.4}, 14_606_284),
    ("table2", DENSE, "cifar10", {"fraction": 0.1}, 90_196),
    ("table2", DENSE, "cifar10", {"fraction": 0.4}, 305_701),
    ("table4", DENSE, "cifar10", {"filters": 0}, 137_090),
    ("table4", DENSE, "cifar10", {"fraction": 0.1}, 450_980),
    ("table4", DENSE, "cifar10", {"fraction": 0.4}, 1_528_505),
    ("table4", DENSE, "cifar10", {"fraction": 0.7}, 2_664_470),
    ("table4", DENSE, "cifar10", {"fraction": 1.0}, 3_845_810),
]


@pytest.mark.parametrize(("experiment", "model", "data", "learn", "count"), COUNTS)
def test_parameters_are_the_papers(experiment, model, data, learn, count):
    wanted = {"model": model, "data": data, "layers": None, "head": True, **learn}
    rows = [p for p in EXPERIMENTS[experiment].points if all(p[k] == v for k, v in wanted.items())]
    assert rows
    assert {learned_parameters(row) for row in rows} == {count}


def test_whole_models_have_the_papers_parameters():
    found = {(p["model"], p["data"]): total_parameters(p) for p in EXPERIMENTS["table1"].points}
    assert found == {
        (DENSE, "cifar10"): 769_162,
        (DENSE, "cifar100"): 800_032,
        (WIDE4, "cifar10"): 5_849_050,
        (WIDE4, "cifar100"): 5_872_180,
    }


ACCURACIES = {
    "table1": "60.85 16.06 64.76 15.08 73.02 22.89 72.95 28 76.33 31.18 68.63 33.43 "
    "30.2 3.76 30.93 3.67 61.19 12.23 76.32 25.07 74.31 32.35 37.03 10.31",
    "table2": "94.12 91.53 95.75 95.49 96.2 88.73 82.11 93.33 92.46",
    "table3": "21.75 30.13 33.22 35.54",
    "table4": "70.25 70.25 71.14 71.14 73.54 73.54 75.47 75.47 76.35 76.35",
    "fig1": "45 45",
    "fig5": "69 34.85 94.12 95.75 96.2 85 59.7 88.73 93.33",
}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_accuracies_beside_each_row_are_the_papers(experiment):
    numbers = [published(experiment, point) for point in EXPERIMENTS[experiment].points]
    told = [f"{number.top1:g}" for number in numbers if number]
    assert told == ACCURACIES.get(experiment, "").split()


def test_table4_has_the_members_means_too():
    means = [number.mean for number in PUBLISHED if number.experiment == "table4"]
    assert means == [68.5, 69.9, 71.0, 71.3, 71.7]


@pytest.mark.parametrize(
    ("experiment", "rows"),
    [
        ("fig1", 5 * 9 * 2),
        ("fig2", 2 * 9 + 2 * 2),
        ("fig3", 5 * 9 * 2),
        ("table1", 2 * 6 * 2),
        ("fig4", 2 * (9 * 2 + 1)),
        ("table2", 2 * 5),
        ("fig5", 2 * 4 * 2),
        ("table3", 4),
        ("table4", 5 * 2),
        ("fig6", 5),
    ],
)
def test_each_experiment_has_its_rows_and_none_twice(experiment, rows):
    points = EXPERIMENTS[experiment].points
    assert len({job(point).id for point in points}) == len(points) == rows


IDS = {
    "fig1": "9c69e3e87a30",
    "fig2": "8561785f2deb",
    "fig3": "9c69e3e87a30",
    "table1": "fd3d58b6b63a",
    "fig4": "1e1d48d13e49",
    "table2": "8178edab8926",
    "fig5": "d6ae080973ec",
    "table3": "e001b16268df",
    "table4": "a07d3d38ea5c",
    "fig6": "1916ea8698b8",
}
"""Of each experiment's last job: results of an earlier release count on."""


def test_ids_are_the_same_for_ever():
    full = Selection(preset="full")
    assert {name: full.jobs(each)[-1].id for name, each in EXPERIMENTS.items()} == IDS


def test_an_id_does_not_depend_on_settings_left_at_their_default():
    settings = {**DEFAULTS, **WRN, "fraction": 0.1}
    assert job(settings).id == job({**settings, "lr": 0.1}).id
    assert job(settings).id != job({**settings, "lr": 0.2}).id
    assert job(settings).id != job({**settings, "seed": 1}).id


def test_the_text_experiment_is_ours_and_in_laptop_alone():
    assert [name for name, preset in PRESETS.items() if "text" in preset.experiments] == ["laptop"]
    points = BEYOND["text"].points
    assert len({job(point).id for point in points}) == len(points) == 11


def test_experiments_share_their_runs():
    full = Selection(preset="full")
    fig1, fig3, fig4 = ({j.id for j in full.jobs(EXPERIMENTS[e])} for e in ("fig1", "fig3", "fig4"))
    assert fig1 == fig3
    assert len(fig1 & fig4) == 2 * 9
    assert {j.id for j in full.jobs(EXPERIMENTS["table3"])} <= {j.id for j in full.jobs(EXPERIMENTS["fig6"])}


def test_an_ensemble_is_one_epoch_of_all_and_five_members_of_one_more():
    for point in EXPERIMENTS["table4"].points:
        jobs = Selection(preset="full").job(point, 0)
        members = jobs.needs
        (start,) = {member.needs[0].id: member.needs[0] for member in members}.values()
        assert (start.settings["fraction"], start.settings["epochs"], start.settings["opt"]) == (
            1,
            1,
            "momentum",
        )
        assert len({member.settings["seed"] for member in members}) == 5
        for member in members:
            assert member.settings["epochs"] == 1
            assert member.settings["init_from"] == start.id
            same = ("fraction", "filters", "opt", "lr")
            assert all(member.settings[name] == point[name] for name in same)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"filters": 0, "head": False}, "BN"),
        ({"filters": 0}, "fc"),
        ({"fraction": 1.0, "layers": ["block2"], "head": False}, "block2"),
        ({"fraction": 0.07, "frozen": "zero"}, "7%, rest zero"),
        ({"filters": 5, "dim": "in"}, "5 a layer, along in"),
        ({"fraction": 0.4, "norm": False}, "40%, norm not learned"),
    ],
)
def test_a_row_says_what_it_learns(settings, words):
    assert what({**DEFAULTS, **settings}) == words
