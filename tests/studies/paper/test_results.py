from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparsetune.errors import ConfigError, UnknownNameError
from sparsetune.studies.jobs import VERSION
from sparsetune.studies.paper.experiments import EXPERIMENTS
from sparsetune.studies.paper.report import read_results
from sparsetune.studies.paper.results import Results, Selection

DOCS = Path(__file__).parents[3] / "docs" / "results"


def test_full_changes_nothing():
    full = Selection(preset="full")
    assert {each.id for each in full.experiments} == set(EXPERIMENTS)
    for experiment in EXPERIMENTS.values():
        assert all(full.adjusted(point) == point for point in experiment.points)


def test_smoke_is_every_experiment_on_digits_in_one_epoch():
    smoke = Selection(preset="smoke")
    assert {each.id for each in smoke.experiments} == set(EXPERIMENTS)
    assert {(j.settings["data"], j.settings["epochs"]) for j in smoke.jobs()} == {("digits", 1)}


def test_laptop_has_the_papers_structure_at_a_smaller_size():
    """Every row of every experiment, with stand-ins for models and data, and nothing else changed."""
    laptop = Selection(preset="laptop")
    for experiment in EXPERIMENTS.values():
        for point in experiment.points:
            held = laptop.adjusted(point)
            assert held["model"] == point["model"]
            assert held["model_kwargs"] or point["model"] == "alexnet_cifar"
            assert (held["data"], held["classes"]) in (("cifar10", None), ("tiny-imagenet", 20))
            assert (held["data"] == "cifar10") == (point["data"] == "cifar10")
            assert held["train_limit"] == 10_000
            assert len(held["decay_milestones"]) == len(point["decay_milestones"])
            assert all(each < held["epochs"] for each in held["decay_milestones"])
            assert held["val_share"] == 0.02
            other = {name for name in point if held[name] != point[name]}
            assert other <= {
                *("model_kwargs", "data", "classes", "size", "train_limit", "test_limit", "epochs"),
                *("decay_milestones", "val_share", "batch_size", "lr"),
            }
    assert laptop.adjusted({**EXPERIMENTS["table2"].points[0]})["model_kwargs"]["drop_rate"] == 0.3
    assert Results([], laptop).chance(EXPERIMENTS["table3"].points[0]) == 5.0


def test_short_is_what_the_paper_trains_for_one_and_ten_epochs():
    jobs = Selection(preset="short").jobs()
    assert {j.settings["epochs"] for j in jobs} == {1, 10}
    assert {j.settings["data"] for j in jobs} == {"cifar10", "cifar100"}


def test_limits_are_part_of_every_job_and_epochs_only_shorten():
    limited = Selection(preset="short", epochs=2, train_limit=500, test_limit=100)
    fits = [j.settings for j in limited.jobs()]
    assert {(s["train_limit"], s["test_limit"]) for s in fits} == {(500, 100)}
    assert {s["epochs"] for s in fits} == {1, 2}
    assert not {j.id for j in limited.jobs()} & {j.id for j in Selection(preset="short").jobs()}


def test_needs_come_first_and_each_job_once():
    seen: set[str] = set()
    for job in Selection(preset="full", seeds=(0, 1)).jobs():
        assert job.id not in seen
        assert {needed.id for needed in job.needs} <= seen
        seen.add(job.id)


def test_seeds_share_no_run():
    jobs = {seed: {j.id for j in Selection(preset="full", seeds=(seed,)).jobs()} for seed in range(3)}
    assert not jobs[0] & jobs[1]
    assert not jobs[1] & jobs[2]
    assert {j.id for j in Selection(preset="full", seeds=(0, 1, 2)).jobs()} == jobs[0] | jobs[1] | jobs[2]


def test_other_data_and_another_version_are_other_jobs_and_so_are_those_that_need_them():
    def ids(**basis):
        return [job.id for job in Selection(preset="smoke", only=("table4", "fig6"), **basis).jobs()]

    one, same = (ids(digests={"digits": "aa", "cifar10": other}) for other in ("bb", "cc"))
    other, newer = ids(digests={"digits": "ab"}), ids(digests={"digits": "aa"}, version=VERSION + 1)
    assert one == same
    assert len({*one, *other, *newer, *ids()}) == 4 * len(one)


def test_results_of_before_there_was_a_version_are_still_found():
    rows, noted = read_results(DOCS / "paper" / "cifar10-subset.jsonl")
    noted.pop("absent")
    results = Results(rows, Selection.from_json(noted))
    assert results.finished("table1")[0] == len(rows) == 12
    assert not Results(rows, Selection(**{**results.selection.to_json(), "version": VERSION})).by_id


def test_it_comes_back_from_json():
    value = Selection(preset="full", only=("table4", "fig1"), seeds=(2, 0), epochs=3)
    assert Selection.from_json(json.loads(json.dumps(value.to_json()))) == value
    assert [each.id for each in value.experiments] == ["fig1", "table4"]


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"preset": "ful"}, UnknownNameError, "preset 'ful' is unknown; did you mean full"),
        ({"only": ("tabel1",)}, UnknownNameError, "experiment 'tabel1' is unknown; did you mean table1"),
        ({"only": ("table3",)}, ConfigError, "table3 is not in preset short; choose --preset full."),
        ({"seeds": ()}, ConfigError, "are not different whole numbers"),
        ({"seeds": (1, 1)}, ConfigError, r"seeds \(1, 1\) are not different whole numbers of 0 or more."),
        ({"seeds": (-1,)}, ConfigError, "whole numbers of 0 or more"),
        ({"epochs": 0}, ConfigError, "epochs 0 is not a whole number of 1 or more."),
        ({"train_limit": 0}, ConfigError, "train_limit 0 is not a whole number of 1 or more."),
    ],
)
def test_a_mistake_is_one_sentence(settings, error, words):
    with pytest.raises(error, match=words):
        Selection(**settings)
