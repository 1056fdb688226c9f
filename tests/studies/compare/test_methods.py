"""What is compared, against sizes counted by hand; and what is found, from results made by hand."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import sparsetune as st
from sparsetune.bench.peft import learned_tensors, uniform_lora
from sparsetune.errors import ConfigError, DataError, UnknownNameError
from sparsetune.studies.compare.methods import FAMILIES, PRESETS, Comparison
from sparsetune.studies.compare.results import find, lines, read_lines
from sparsetune.studies.compare.shown import draw, methods
from sparsetune.studies.jobs import VERSION
from sparsetune.studies.sources import learned_parameters
from sparsetune.studies.store import Row

DOCS = Path(__file__).parents[3] / "docs" / "results"


def rows_of(comparison, values):
    """Results by hand: for an entry and a seed ``values`` gives bytes, share and seconds of a step.

    ``None`` is one that diverged.
    """
    found, steps = [], {}
    about = {"data": {"name": "digits", "lossy": False}}
    for entry in comparison.entries:
        for job in entry.jobs:
            value = values(entry, job.settings["seed"])
            if value is None:
                result = {"diverged": "the loss became nan"}
            else:
                count, top1, seconds = value
                sizes = (
                    ("float32", count, top1),
                    ("bf16", count // 2, top1),
                    ("int8", count // 4, top1 - 0.1),
                )
                stored = [{"dtype": d, "bytes": b, "top1": t, "loss": 1.0} for d, b, t in sizes]
                result = {"lr": 0.1, "train_pictures": 1437, "stored": stored}
                steps[job.id] = seconds
            found.append(Row(job.id, job.settings, result, about))
    for pace in comparison.paces.values():
        each = [{"id": i, "ms": 1000 * steps[i]} for i in pace.settings["of"] if steps.get(i)]
        found.append(
            Row(pace.id, pace.settings, {"steps": each}, {"data": {"name": "digits", "lossy": False}})
        )
    return found


def test_every_final_training_needs_its_tuning_and_its_backbone():
    comparison = Comparison(preset="full", seeds=(0, 5))
    place = {job.id: number for number, job in enumerate(comparison.jobs)}
    assert len(place) == len(comparison.jobs) == 1 + 2 * 58 * (3 + 2) + 2
    (backbone,) = [job for job in comparison.jobs if job.settings["kind"] == "fit"]
    assert (backbone.settings["data"], backbone.settings["fraction"]) == ("tiny-imagenet", 1.0)
    trained = [entry for entry in comparison.entries if entry.benchmark == "trained"]
    assert len(trained) == 58
    for entry in trained:
        for job, seed in zip(entry.jobs, (0, 5), strict=True):
            tuning = [each for each in job.needs if each.settings["held_out"]]
            assert [each.settings["lr"] for each in tuning] == list(PRESETS["full"]["trained"].rates)
            assert {each.settings["seed"] for each in tuning} == {0}
            assert (job.settings["seed"], job.settings["lr"], job.settings["held_out"]) == (seed, None, None)
            assert job.settings["of"] == [each.id for each in tuning]
            assert job.settings["init_from"] == tuning[0].settings["init_from"] == backbone.id
            assert job.data == {"cifar10", "tiny-imagenet"}
            assert max(place[each.id] for each in job.needs) < place[job.id]
    assert {*comparison.paces} == {"random", "trained"}
    for benchmark, pace in comparison.paces.items():
        first = [entry.jobs[0].id for entry in comparison.entries if entry.benchmark == benchmark]
        assert pace.settings["of"] == first == [each.id for each in pace.needs]
        assert max(place[each] for each in first) < place[pace.id]


@pytest.mark.parametrize("preset", PRESETS)
def test_all_methods_of_a_preset_differ_in_the_method_alone(preset):
    comparison = Comparison(preset=preset)
    own = {"kind", "fraction", "filters", "rank", "budget", "spread", "layers", "norm", "of"}
    for benchmark in comparison.benchmarks:
        same = {
            json.dumps({k: v for k, v in job.settings.items() if k not in own and k != "seed"})
            for entry in comparison.entries
            if entry.benchmark == benchmark
            for job in entry.jobs
        }
        assert len(same) == 1
    assert {entry.family for entry in comparison.entries} == set(FAMILIES)


def test_ours_and_peft_meet_at_equal_bytes_on_the_papers_network():
    net = st.create("wrn28_4", num_classes=10)
    for rank in (1, 16):
        ours = st.plan(net, st.Learn(rank=rank))
        theirs = sum(value.nbytes for value in learned_tensors(uniform_lora(copy.deepcopy(net), rank)))
        assert theirs == ours.delta_bytes
    counts = {
        (entry.family, entry.name): learned_parameters(entry.jobs[0].settings)
        for entry in Comparison(preset="digits").entries
        if entry.jobs[0].settings["budget"] is None
    }
    assert counts["head", "head"] == 257 * 10
    assert counts["norm", "norm and head"] == 9_770
    assert counts["fraction", "10%"] == 574_597
    assert counts["everything", "everything"] == 5_849_050
    assert min(counts.values()) == 2_570


def test_points_are_means_over_seeds_in_each_precision():
    comparison = Comparison(preset="digits", only=("norm", "rank", "lora"), seeds=(0, 1, 2))

    def values(entry, seed):
        if entry.name == "rank 2":
            return None if seed == 1 else (40_000, 0.8, 10.0)
        return {"norm": (12_000, 0.5 + 0.1 * seed, 5.0 + seed)}.get(entry.family)

    points = find(rows_of(comparison, values), comparison)
    assert [(p.name, p.dtype) for p in points[:3]] == [
        ("norm and head", dtype) for dtype in ("float32", "bf16", "int8")
    ]
    assert {point.name for point in points} == {"norm and head", "rank 2"}
    whole, _, int8, *_ = points
    assert whole.top1.values == pytest.approx((50, 60, 70))
    assert (whole.top1.mean, whole.top1.deviation) == pytest.approx((60, 10))
    assert (whole.bytes, int8.bytes, whole.seconds) == (12_000, 3_000, 4 * 45 * 5.0)  # 45 steps of 32
    assert int8.top1.mean == pytest.approx(50)
    assert points[3].top1.values == pytest.approx((80, 10, 80))  # one that diverged counts as chance
    assert points[3].top1.diverged == 1


def test_choosing_counts_as_training():
    comparison = Comparison(preset="digits", only=("budget",), seeds=(0, 1))
    rows = rows_of(comparison, lambda entry, seed: (10_000, 0.5, 2.0))
    for row in rows:
        if "stored" in row.result:
            row.result.update(choice={"name": "slices"}, choosing_seconds=1.0 + row.settings["seed"])
    assert {point.seconds for point in find(rows, comparison)} == {4 * 45 * 2.0 + 1.5}


def test_a_point_knows_which_pictures_were_right():
    comparison = Comparison(preset="digits", only=("norm",), seeds=(0, 1))
    rows = rows_of(comparison, lambda entry, seed: (60_000, 0.5, 1.0))
    finals = [row.result for row in rows if "stored" in row.result]
    for result, bits in zip(finals, ("ff80", "fc00"), strict=True):
        result["test_pictures"] = 10
        for each in result["stored"]:
            each["right"] = bits  # nine of ten, and six: 6 bits pad the last byte
    point = find(rows, comparison)[0]
    assert point.right.tolist() == [[1] * 9 + [0], [1] * 6 + [0] * 4]
    assert point.scores((1,), whole=True).tolist() == [[1] * 6 + [0] * 4]
    assert point.scores((1, 0), whole=False).tolist() == [[0.5], [0.5]]
    lost = replace(rows[1], result={"diverged": "the loss became nan"})
    assert find([rows[0], lost, *rows[2:]], comparison)[0].right[1] == pytest.approx([0.1] * 10)
    del finals[0]["stored"][0]["right"]
    assert find(rows, comparison)[0].right is None


def test_results_come_back_from_their_lines_and_are_drawn(tmp_path):
    comparison = Comparison(preset="digits", only=("filters", "lora"), seeds=(0, 1))
    rows = rows_of(comparison, lambda entry, seed: (10_000 * (1 + len(entry.name)), 0.5, None))
    path = tmp_path / "results.jsonl"
    path.write_text(lines([*rows, Row("other", {}, {}, {})], comparison))
    assert read_lines(path) == (rows, comparison)
    points = find(rows, comparison)
    draw(points, {"random": "a title"}, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG"
        narrow = picture.width
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    wanted = {name: tuple(bytes.fromhex(FAMILIES[name].colour[1:])) for name in FAMILIES}
    wanted = {name: colour for name, colour in wanted.items() if len(set(colour)) > 1}  # axes are grey too
    assert {name for name, colour in wanted.items() if colour in colours} == {"filters", "lora"}
    draw([replace(point, seconds=9.0) for point in points], {"random": "a title"}, tmp_path / "timed.png")
    with Image.open(tmp_path / "timed.png") as picture:
        assert picture.width == 2 * narrow
    header, cells = methods(points)
    assert len(cells) == 3 + 5
    assert all(len(row) == len(header) for row in cells)
    with pytest.raises(DataError, match=r"is not a results\.jsonl of `sparsetune compare`"):
        read_lines(Path(__file__))


def test_results_of_before_there_was_a_version_are_still_found():
    rows, comparison = read_lines(DOCS / "compare-digits.jsonl")
    assert (comparison.version, comparison.machine, len(find(rows, comparison))) == (None, None, 3 * 57)
    assert find(rows, replace(comparison, version=VERSION)) == []


def test_the_backbones_data_is_a_training_s_too_and_times_are_a_machine_s():
    def ids(**basis):
        jobs = Comparison(preset="full", only=("norm",), **basis).jobs
        return {kind: {j.id for j in jobs if j.settings["kind"] == kind} for kind in ("fit", "ours", "pace")}

    one, other = (ids(digests={"cifar10": "aa", "tiny-imagenet": found}) for found in ("bb", "bc"))
    assert not one["fit"] & other["fit"]
    assert len(one["ours"] & other["ours"]) == 3 + 3  # tunings and trainings over the random backbone
    here, there = (ids(machine=name) for name in ("here", "there"))
    assert here["ours"] == there["ours"]
    assert not here["pace"] & there["pace"]


def test_what_is_unknown_is_one_sentence():
    with pytest.raises(UnknownNameError, match="preset 'digit' is unknown; did you mean digits"):
        Comparison(preset="digit")
    with pytest.raises(UnknownNameError, match="family of methods 'ranks' is unknown; did you mean rank"):
        Comparison(only=("ranks",))
    with pytest.raises(ConfigError, match=r"^seeds \(1, 1\) are not different whole numbers of 0 or more\.$"):
        Comparison(seeds=(1, 1))
