"""What is compared, against sizes counted by hand; and what is found, from results made by hand."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sparsetune as st
from sparsetune.comparison.comparison import Comparison
from sparsetune.comparison.drawing import draw
from sparsetune.comparison.methods import FAMILIES
from sparsetune.comparison.points import choices, find, lines, read_lines, verdicts
from sparsetune.comparison.presets import PRESETS
from sparsetune.comparison.tables import budgets, chosen, methods
from sparsetune.errors import ConfigError, DataError, UnknownNameError
from sparsetune.lowrank import learned_tensors, uniform_lora
from sparsetune.reproduce.counts import learned_parameters
from sparsetune.reproduce.store import Row


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


def by_name(made):
    """For :func:`rows_of`: bytes, a share for each seed, and seconds of a step, by the entry's name."""

    def values(entry, seed):
        if entry.name not in made:
            return None
        count, shares, seconds = made[entry.name]
        return count, shares[seed], seconds

    return values


def test_every_final_training_needs_its_tuning_and_its_backbone():
    comparison = Comparison(preset="full", seeds=(0, 5))
    place = {job.id: number for number, job in enumerate(comparison.jobs)}
    assert len(place) == len(comparison.jobs) == 1 + 2 * 57 * (3 + 2) + 2
    (backbone,) = [job for job in comparison.jobs if job.settings["kind"] == "fit"]
    assert (backbone.settings["data"], backbone.settings["fraction"]) == ("tiny-imagenet", 1.0)
    trained = [entry for entry in comparison.entries if entry.ground == "trained"]
    assert len(trained) == 57
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
    for ground, pace in comparison.paces.items():
        first = [entry.jobs[0].id for entry in comparison.entries if entry.ground == ground]
        assert pace.settings["of"] == first == [each.id for each in pace.needs]
        assert max(place[each] for each in first) < place[pace.id]


@pytest.mark.parametrize("preset", PRESETS)
def test_all_methods_of_a_preset_differ_in_the_method_alone(preset):
    comparison = Comparison(preset=preset)
    own = {"kind", "fraction", "filters", "rank", "budget", "spread", "layers", "norm", "of"}
    for ground in comparison.grounds:
        same = {
            json.dumps({k: v for k, v in job.settings.items() if k not in own and k != "seed"})
            for entry in comparison.entries
            if entry.ground == ground
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
    assert whole.error == pytest.approx(10 / 3**0.5)
    assert (whole.bytes, int8.bytes, whole.seconds) == (12_000, 3_000, 4 * 45 * 5.0)  # 45 steps of 32
    assert int8.top1.mean == pytest.approx(50)
    assert points[3].top1.values == pytest.approx((80, 10, 80))  # one that diverged counts as chance
    assert points[3].top1.diverged == 1


def test_a_verdict_takes_the_best_of_each_side_below_the_budget():
    comparison = Comparison(preset="digits", only=("norm", "rank", "everything", "lora"), seeds=(0, 1))
    made = {
        "norm and head": (30_000, (0.60, 0.60), 5.0),
        "rank 1": (200_000, (0.79, 0.79), 8.0),
        "everything": (300_000, (0.99, 0.99), 9.0),
        "LoRA 1": (190_000, (0.76, 0.84), 10.0),
        "LoRA 2": (900_000, (0.95, 0.95), 10.0),
    }

    found = {v.budget: v for v in verdicts(find(rows_of(comparison, by_name(made)), comparison))}
    assert found[5_000].ours is found[5_000].theirs is found[5_000].holds is None
    small = found[20_000]
    assert (small.ours.name, small.ours.dtype, small.theirs, small.holds) == (
        "norm and head",
        "bf16",
        None,
        None,
    )
    near = found[160_000]
    assert (near.ours.name, near.ours.dtype) == ("rank 1", "bf16")
    assert (near.theirs.name, near.theirs.dtype) == ("LoRA 1", "bf16")
    assert near.holds  # 79 is within 80 less the standard error, 4
    assert near.time_ratio == near.fastest_ratio == pytest.approx(0.8)
    large = found[640_000]
    assert (large.ours.name, large.theirs.name, large.holds) == ("rank 1", "LoRA 2", False)
    header, cells = budgets([*found.values()])
    assert [row[-2:] for row in cells[-3:]] == [["no", ""]] * 3
    assert {len(row) for row in cells} == {len(header)}


def test_the_fastest_of_ours_that_is_as_good_is_told():
    comparison = Comparison(preset="digits", only=("norm", "rank", "lora"), seeds=(0, 1))
    made = {
        "norm and head": (30_000, (0.60, 0.60), 2.0),
        "rank 1": (60_000, (0.76, 0.76), 5.0),
        "rank 2": (70_000, (0.90, 0.90), 9.0),
        "rank 4": (900_000, (0.95, 0.95), 1.0),
        "LoRA 1": (70_000, (0.75, 0.79), 10.0),
    }

    found = {v.budget: v for v in verdicts(find(rows_of(comparison, by_name(made)), comparison))}
    assert (found[80_000].ours.name, found[80_000].fastest.name) == ("rank 2", "rank 1")
    assert (found[80_000].time_ratio, found[80_000].fastest_ratio) == pytest.approx((0.9, 0.5))
    assert (found[2_500_000].ours.name, found[2_500_000].fastest.name) == ("rank 4", "rank 4")
    assert found[10_000].fastest is None  # LoRA has nothing so small
    _, cells = budgets([found[80_000]])
    told = "80 KB|rank 2, float32|90.00 ± 0.00|LoRA 1, float32|77.00 ± 2.83|0.90|yes|rank 1, float32: 0.50"
    assert cells == [told.split("|")]
    untimed = find(
        [row for row in rows_of(comparison, by_name(made)) if "steps" not in row.result], comparison
    )
    assert {point.seconds for point in untimed} == {None}
    assert {(v.time_ratio, v.fastest) for v in verdicts(untimed)} == {(None, None)}


def test_choosing_counts_as_training():
    comparison = Comparison(preset="digits", only=("budget",), seeds=(0, 1))
    rows = rows_of(comparison, lambda entry, seed: (10_000, 0.5, 2.0))
    for row in rows:
        if "stored" in row.result:
            row.result.update(choice={"name": "slices"}, choosing_seconds=1.0 + row.settings["seed"])
    assert {point.seconds for point in find(rows, comparison)} == {4 * 45 * 2.0 + 1.5}


def test_a_choice_is_judged_by_the_best_fixed_method_of_ours_that_fits_as_half_of_the_seeds_tell():
    comparison = Comparison(preset="digits", only=("norm", "rank", "budget", "lora"), seeds=(0, 1, 2, 3))
    made = {
        "norm and head": (70_000, (0.70, 0.72, 0.99, 0.99)),  # the best by seeds that do not tell
        "rank 1": (150_000, (0.75, 0.75, 0.76, 0.84)),
        "rank 2": (700_000, (0.90, 0.90, 0.90, 0.90)),  # in half the bytes it fits the larger budget
        "LoRA 1": (150_000, (0.99, 0.99, 0.99, 0.99)),
        "budget 160 KB": (636_000, (0.20, 0.30, 0.82, 0.88)),  # in a byte a value, .1 worse
        "budget 640 KB": (900_000, (0.99, 0.99, 0.99, 0.99)),
    }

    def values(entry, seed):
        if entry.name not in made:
            return None
        count, shares = made[entry.name]
        return count, shares[seed], 5.0

    rows = rows_of(comparison, values)
    names = iter(("low rank", *["slices"] * 7))
    for row in rows:
        if row.settings["budget"] and "stored" in row.result:
            row.result["choice"] = {"name": next(names)}
    one, other = choices(find(rows, comparison))
    assert (one.budget, one.ours.name, one.theirs.name) == (
        160_000,
        "budget 160 KB: low rank / slices",
        "rank 1",
    )
    assert one.ours.seeds == one.theirs.seeds == (2, 3)
    assert one.slack == pytest.approx((3**2 + 4**2) ** 0.5)
    assert one.holds  # 75 is 80 less that, 5
    assert (other.budget, other.ours.name, other.theirs.name) == (640_000, "budget 640 KB: slices", "rank 2")
    assert (other.ours.dtype, other.theirs.dtype) == ("int8", "bf16")
    assert not other.holds
    header, cells = chosen([one, other])
    assert [row[-1] for row in cells] == ["yes", "no"]
    assert len(header) == len(cells[0])
    alone = find(rows, replace(comparison, seeds=(1,)))
    assert [v.theirs.name for v in choices(alone)] == ["rank 1", "rank 2"]  # one seed both tells and judges
    absent = {job.id for entry in comparison.entries if entry.name == "rank 1" for job in entry.jobs[2:]}
    fewer = find([row for row in rows if row.id not in absent], comparison)
    assert choices(fewer)[0].holds is None


def test_which_pictures_were_right_makes_the_error_that_of_pictures_too():
    comparison = Comparison(preset="digits", only=("norm", "budget"), seeds=(0, 1))
    rows = rows_of(comparison, lambda entry, seed: (60_000, 0.5, 1.0))
    for row in rows:
        if "stored" in row.result:
            ours = row.settings["budget"] is not None
            row.result.update(choice={"name": "low rank"}, test_pictures=10)
            for each in row.result["stored"]:
                each["right"] = "ff80" if ours else "fc00"  # nine of ten, and six: 7 bits pad the last byte
    verdict = choices(find(rows, comparison))[0]
    assert [sum(seed) for seed in verdict.ours.right] == [9]
    assert [len(seed) for seed in verdict.theirs.right] == [10]
    assert verdict.slack == pytest.approx(100 * (0.21 / 9) ** 0.5)  # gaps of 1 at three of ten pictures
    del rows[0].result["stored"][0]["right"]
    assert find(rows, comparison)[0].right is None


def test_a_gap_of_exactly_one_error_holds_whatever_the_rounding():
    """Where one seed alone differs, the gap of the means is their standard error: d / n."""
    comparison = Comparison(preset="digits", only=("norm", "budget"), seeds=(*range(12),))
    rows = rows_of(comparison, lambda entry, seed: (60_000, 0.5, 1.0))
    for row in rows:
        if "stored" in row.result:
            ours, seed = row.settings["budget"] is not None, row.settings["seed"]
            right = np.ones(360, bool)
            right[:3] = not (ours and seed == 7)
            row.result.update(choice={"name": "low rank"}, test_pictures=360)
            for each in row.result["stored"]:
                each.update(top1=float(right.mean()), right=np.packbits(right).tobytes().hex())
    verdict = choices(find(rows, comparison))[0]
    gap = 100 * 3 / 360 / 6
    assert verdict.theirs.top1.mean - verdict.ours.top1.mean == pytest.approx(gap)
    assert verdict.slack == pytest.approx(gap)
    assert verdict.holds


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


def test_what_is_unknown_is_one_sentence():
    with pytest.raises(UnknownNameError, match="preset 'digit' is unknown; did you mean digits"):
        Comparison(preset="digit")
    with pytest.raises(UnknownNameError, match="family of methods 'ranks' is unknown; did you mean rank"):
        Comparison(only=("ranks",))
    with pytest.raises(ConfigError, match=r"^seeds \(1, 1\) are not different whole numbers of 0 or more\.$"):
        Comparison(seeds=(1, 1))
