"""``choose`` and ``fit --budget``: the choice, what it costs, and what is kept of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import sparsetune as st
from sparsetune.delta.saving import write_plain
from sparsetune.errors import ConfigError, DataError
from sparsetune.runs.choosing import Trial, kept_in
from sparsetune.runs.members import run_members
from sparsetune.runs.run import run
from sparsetune.runs.settings import Run
from sparsetune.runs.spend import LATER, UNIFORM, VECTOR
from sparsetune.train.recipe import decide

LONG = st.FitConfig(epochs=900, batch_size=64, lr=0.05)
"""Of 300 digits: 5 steps an epoch, 4,500 in all."""


@pytest.fixture(scope="module")
def few():
    return st.open_data("digits", train_limit=300, test_limit=20)


def plain():
    return st.create("wrn28_4", depth=10, width=1, num_classes=10)


@pytest.fixture(scope="module")
def chosen(few):
    seen = []
    state = torch.get_rng_state()
    net = plain()
    choice = st.choose(net, few, LONG, 25_000, watch=seen.append)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), plain().parameters(), strict=True))
    return choice, seen


def test_trials_take_at_most_a_tenth_of_the_steps(chosen):
    choice, seen = chosen
    assert 2 * 200 <= choice.steps <= 0.1 * 900 * 5
    assert sum(trial.steps for trial in seen) == choice.steps
    assert [trial.name for trial in seen] == [UNIFORM, LATER]
    assert len({trial.steps for trial in seen}) == 1


def test_every_candidate_keeps_the_budget_and_uses_it(chosen):
    choice, _ = chosen
    assert len(choice.trials) == 2
    for trial in choice.trials:
        made = st.plan(plain(), trial.learn)
        assert (made.learned_parameters, made.delta_bytes) == (trial.learned_parameters, trial.delta_bytes)
        assert 0.8 * 25_000 <= trial.delta_bytes <= 25_000
    assert choice.learn == {trial.name: trial.learn for trial in choice.trials}[choice.name]


def test_again_the_same_is_chosen_and_test_pictures_are_not_looked_at(chosen, few):
    other = replace(few, test=few.test.take(few.test.rows[:1] * 0))
    assert st.choose(plain(), other, LONG, 25_000) == chosen[0]


def test_json_keeps_the_choice(chosen):
    choice, _ = chosen
    assert st.Choice.from_json(json.loads(json.dumps(choice.to_json()))) == choice
    for wrong in ({}, None, {"trials": []}, {**choice.to_json(), "trials": [{}]}):
        with pytest.raises(ConfigError):
            st.Choice.from_json(wrong)


def test_another_is_chosen_where_it_is_better_by_more_than_noise():
    """Four pictures; the gaps' deviation is 0.2, so the standard error of their mean 0.1."""
    default = torch.full((4,), 2.0, dtype=torch.float64)
    spread = 0.2 * 0.75**0.5 * torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    clear, close = default - 0.11 - spread, default - 0.09 - spread
    assert decide("a", {"a": default, "b": close, "c": clear}) == (
        "c",
        "its held-out loss is below that of a by 0.110 ± 0.100.",
    )
    assert decide("a", {"a": default, "b": close}) == (
        "a",
        "b has a lower held-out loss by 0.090 ± 0.100, which is within the noise.",
    )
    assert decide("a", {"b": clear, "a": default - 1})[0] == "a"
    assert decide("a", {"b": clear, "c": close}) == (
        "b",
        "a diverged, and this has the lowest held-out loss.",
    )
    assert decide("a", {}) == ("a", "no candidate has a lower held-out loss.")


@pytest.mark.parametrize(("opt", "epochs"), [("momentum", 10), ("momentum", 100), ("adamw", 10)])
def test_where_steps_are_too_few_nothing_is_tried(few, opt, epochs):
    seen = []
    config = st.FitConfig(epochs=epochs, opt=opt)
    choice = st.choose(plain(), few, config, 25_000, watch=seen.append)
    assert (choice.name, choice.steps, seen) == (UNIFORM, 0, [])
    assert choice.why.startswith(f"a tenth of the training is {epochs // 2} steps, and a comparison needs")


def test_over_a_trained_backbone_shorter_trials_tell(few, tmp_path):
    path = tmp_path / "whole.safetensors"
    write_plain(plain(), path)
    net = st.create("wrn28_4", depth=10, width=1, num_classes=10, checkpoint=path)
    seen = []
    choice = st.choose(net, few, replace(LONG, epochs=300), 25_000, watch=seen.append)
    assert [trial.name for trial in seen] == [VECTOR, LATER]
    assert 2 * 50 <= choice.steps <= 0.1 * 300 * 5
    assert {trial.learn.norm_stats for trial in choice.trials} == {"frozen"}  # as fit's recipe has it
    assert all(0.8 * 25_000 <= trial.delta_bytes <= 25_000 for trial in choice.trials)


def test_a_budget_without_room_for_sums_has_one_candidate(few):
    choice = st.choose(plain(), few, LONG, 9_470)
    assert [*choice.learn.amounts] == ["dimensions"]
    assert choice.why == "9,470 bytes leave no choice."


def test_without_training_pictures_nothing_is_chosen(few):
    with pytest.raises(DataError, match="no training pictures"):
        st.choose(plain(), replace(few, train=None), LONG, 25_000)


RUN = Run(
    model="wrn28_4",
    model_kwargs={"depth": 10, "width": 1},
    learn=st.Learn(filters=0),
    config=st.FitConfig(epochs=2, lr=0.05),
    train_limit=300,
    test_limit=50,
    budget=25_000,
)


def test_a_run_learns_what_was_chosen_and_keeps_to_the_budget(tmp_path):
    told = []
    outcome = run(RUN, tmp_path / "r", choosing=told.append)
    assert told[-1] == outcome.choice
    path = tmp_path / "r" / "delta.safetensors"
    assert 0.95 * 25_000 <= path.stat().st_size <= 25_000
    assert st.inspect(path).learn == outcome.choice.learn
    assert RUN.name == "wrn28_4-digits-25000B-s0"


@pytest.fixture(scope="module")
def wordy(tmp_path_factory):
    """Pictures of two classes with long names that are not ASCII, in a folder with a long name."""
    folder = tmp_path_factory.mktemp("a" * 200)
    for number in range(16):
        place = folder / ("train" if number < 12 else "test") / (f"{number % 2}" + "é" * 100)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 10 * number, dtype=np.uint8)).save(place / f"{number}.png")
    return folder


@pytest.mark.parametrize("dtype", [None, "int8"])
def test_the_file_keeps_the_budget_whatever_it_says_of_itself(tmp_path, wordy, dtype):
    config = st.FitConfig(
        epochs=1, batch_size=4, lr=0.05, sched="multistep", decay_milestones=tuple(range(1, 900))
    )
    asked = replace(RUN, data=str(wordy), config=config, train_limit=None, test_limit=None, dtype=dtype)
    run(asked, tmp_path / "r")
    path = tmp_path / "r" / "delta.safetensors"
    assert 0.9 * 25_000 <= path.stat().st_size <= 25_000
    with pytest.raises(ConfigError, match=r"budget 3,000 bytes is below \d,... bytes, the least that"):
        run(replace(asked, dtype=None, budget=3_000), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_choice_from_elsewhere_that_takes_more_is_refused_before_the_training(tmp_path, few):
    choice = st.choose(plain(), few, RUN.config, 40_000)
    with pytest.raises(
        ConfigError, match=r"takes a file of [34]\d,\d{3} bytes, more than the budget of 25,000"
    ):
        run(RUN, tmp_path / "r", choice=choice)
    assert not (tmp_path / "r").exists()


def test_resume_goes_on_with_the_recorded_choice(tmp_path):
    """The recorded choice is changed by hand, so that a second comparison would be seen."""
    folder = tmp_path / "r"
    first = run(RUN, folder, time_budget=0.0)
    assert not first.finished
    value = json.loads((folder / "config.json").read_text())
    assert st.Choice.from_json(value["choice"]) == first.choice
    value["choice"]["why"] = "by hand"
    (folder / "config.json").write_text(json.dumps(value))
    told = []
    again = run(RUN, folder, resume=True, choosing=told.append)
    assert again.finished
    assert [type(event) for event in told] == [st.Choice]
    assert again.choice.why == "by hand"
    assert st.load(folder / "delta.safetensors")
    straight = run(RUN, tmp_path / "s")
    assert straight.history[-1].test_loss == again.history[-1].test_loss
    with pytest.raises(ConfigError, match="budget = 25000, not 30000"):
        run(replace(RUN, budget=30_000), folder, resume=True)


def test_a_delta_to_start_from_has_chosen_already(tmp_path):
    st.save(st.adapt_(plain(), st.Learn(filters=1)), tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match="is a delta, which says what is learned, and so would the budget"):
        run(replace(RUN, init_from=str(tmp_path / "a.safetensors")), tmp_path / "r")


def test_members_learn_what_the_first_one_chose(tmp_path):
    told = []
    together = run_members(RUN, 2, tmp_path / "m", choosing=told.append)
    specs = {st.inspect(delta).learn for delta in together.deltas}
    assert specs == {together.members[0].choice.learn}
    assert len([event for event in told if not isinstance(event, Trial)]) == 1


def test_a_tiny_budget_over_random_weights_is_a_vector_with_its_own_recipe(tmp_path):
    """The file keeps the budget, and a run that was stopped goes on with what it chose."""
    config, kwargs = st.FitConfig(epochs=2), {"depth": 10, "width": 2}
    tiny = replace(RUN, budget=6_000, dtype=kept_in(6_000), config=config, model_kwargs=kwargs)
    first = run(tiny, tmp_path / "r", time_budget=0.0)
    assert (first.choice.name, first.finished) == (VECTOR, False)
    again = run(tiny, tmp_path / "r", resume=True)
    path = tmp_path / "r" / "delta.safetensors"
    header = st.inspect(path)
    assert 0.75 * 6_000 <= path.stat().st_size <= 6_000
    assert header.learn == again.choice.learn
    assert (header.learn.norm, header.learn.head) == (False, False)
    config = json.loads((tmp_path / "r" / "config.json").read_text())
    assert (config["recipe"]["opt"], config["recipe"]["batch_size"]) == ("adam", 32)
    assert {entry.dtype for entry in header.entries} == {"int6", "line4", "curve4", "int64"}
    assert st.load(path)


@pytest.mark.parametrize(("nbytes", "kept"), [(2_000, "int6"), (31_999, "int6"), (32_000, "int8")])
def test_small_budgets_are_kept_in_fewer_bits(nbytes, kept):
    assert kept_in(nbytes) == kept
