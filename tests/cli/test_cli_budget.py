"""``fit --budget`` on the command line: the table, the JSON, the refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

import sparsetune as st

SHORT = "fit --model test_resnet --budget 60KB --train-limit 200 --test-limit 50 --epochs 2 --lr 0.05"


def test_shows_the_choice_as_a_table_and_trains_it(sparsetune):
    result = sparsetune(SHORT)
    path = Path("runs/test_resnet-digits-60000B-s0/delta.safetensors")
    assert 55_000 <= path.stat().st_size <= 60_000
    lines = result.err.splitlines()
    assert lines[0].split() == [
        "candidate",
        "learned",
        "bytes",
        "steps",
        "loss",
        "accuracy",
    ]
    assert {entry.dtype for entry in st.inspect(path).entries} == {"int8", "root8", "int64"}
    rows = [line for line in lines if line.startswith("low rank, ")]
    assert [row.split("  ")[0] for row in rows] == [
        "low rank, uniform",
        "low rank, last two thirds",
    ]
    assert [row.rstrip().endswith("chosen") for row in rows] == [True, False]
    said = "chosen  low rank, uniform: a tenth of the training is 0 steps"
    assert any(line.startswith(said) for line in lines)
    assert st.inspect(path).learn.by_layer


def test_json_has_the_choice(sparsetune):
    value = sparsetune(SHORT, "--out", "r", "--json").json
    choice = st.Choice.from_json(value["choice"])
    assert choice.budget == 60_000
    assert {trial.name: trial.learn for trial in choice.trials}[choice.name] == choice.learn
    assert value["learned_parameters"] == next(
        trial.learned_parameters for trial in choice.trials if trial.name == choice.name
    )


def test_trials_are_told_as_they_end(sparsetune):
    result = sparsetune(SHORT, "--epochs", 700, "--batch-size", 32, "--time-budget", "0s")
    lines = [line for line in result.err.splitlines() if line.startswith("trial  ")]
    assert len(lines) == 2
    assert lines[0].startswith("trial  low rank, uniform: held-out loss ")


def test_it_excludes_what_it_chooses(sparsetune):
    result = sparsetune(
        SHORT, "--rank", 3, "--dim", "in", "--frozen", "zero", "--budget", "much", "--dtype", "int4", code=2
    )
    assert result.err.splitlines() == [
        "error: --budget chooses what is learned, and so would --rank and --dim; leave these out.",
        "       --budget chooses among low ranks too, which --frozen zero excludes; leave one out.",
        "       size 'much' is not a number with KB, MB, KiB or MiB behind it, such as 200KB.",
        "       --dtype 'int4' is not one of float32, bf16, fp16, int8, int6.",
    ]


def test_all_bits_have_room_for_fewer_values(sparsetune):
    few, many = (
        sparsetune(SHORT, "--epochs", 1, "--out", name, *more, "--json").json
        for name, more in {"few": ["--dtype", "float32"], "many": []}.items()
    )
    assert (few["choice"]["dtype"], many["choice"]["dtype"]) == (None, "int8")
    for value in (few, many):
        (trial, *_) = value["choice"]["trials"]
        assert 55_000 <= trial["delta_bytes"] <= 60_000
        assert value["delta_bytes"] <= 60_000
    assert many["learned_parameters"] > 2.5 * few["learned_parameters"]


@pytest.mark.parametrize("budget", ["1KB", "500"])
def test_less_than_the_least_is_refused(refused, budget):
    said = refused(SHORT, "--budget", budget)
    assert "the least that a delta of this model takes" in said
    assert not Path("runs").exists()
