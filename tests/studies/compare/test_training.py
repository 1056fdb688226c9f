"""Entries of the comparison against the same done by hand."""

from __future__ import annotations

import json

import pytest
import torch

import sparsetune as st
from sparsetune.data.loading import loader
from sparsetune.data.splits import split_in_two
from sparsetune.errors import DivergedError
from sparsetune.runs.spend import spend
from sparsetune.studies.compare.training import best_rate
from sparsetune.studies.jobs import Job, in_order
from sparsetune.studies.runner import go
from sparsetune.studies.store import open_store
from sparsetune.studies.work import perform


def accuracy(net, data):
    with torch.no_grad():
        batches = [
            (net.eval()(x).argmax(1) == y) for x, y in loader(data.test, data.preprocessing, batch_size=50)
        ]
    return float(torch.cat(batches).double().mean())


def test_ours_is_what_fit_does_and_its_bytes_are_those_of_its_files(small, place, tmp_path):
    job = small(kind="ours", seed=2, epochs=2)
    result = perform(job.id, job.settings, place)
    data = st.open_data("digits", train_limit=100, test_limit=50)
    net = st.adapt_(st.create("wrn28_4", depth=10, width=1, num_classes=10, seed=2), st.Learn(fraction=0.25))
    last = st.fit(net, data, st.FitConfig(epochs=2, batch_size=32, seed=2))[-1]
    assert (result["top1"], result["loss"]) == (last.test_top1, last.test_loss)
    assert result["learned_parameters"] == st.adapted(net).plan.learned_parameters
    delta = place.run(job.id) / "delta.safetensors"
    assert [path.name for path in place.run(job.id).iterdir()] == [delta.name]
    stored = {each["dtype"]: each for each in result["stored"]}
    assert stored["float32"]["bytes"] == delta.stat().st_size
    bits = "".join(f"{int(digit, 16):04b}" for digit in stored["float32"]["right"])
    with torch.no_grad():
        logits = torch.cat([net.eval()(x) for x, _ in loader(data.test, data.preprocessing, batch_size=50)])
    labels = torch.cat([y for _, y in loader(data.test, data.preprocessing, batch_size=50)])
    assert bits[: result["test_pictures"]] == "".join(str(int(r)) for r in logits.argmax(1) == labels)
    assert result["test_pictures"] == 50
    for dtype in ("bf16", "int8"):
        st.save(net, tmp_path / dtype, dtype=dtype)
        assert stored[dtype]["top1"] == accuracy(st.load(tmp_path / dtype), data)
        told = json.dumps(st.inspect(tmp_path / dtype).training)  # of the pictures that fit saw
        more = stored[dtype]["bytes"] + len(told) - (tmp_path / dtype).stat().st_size
        assert abs(more) < 100


def test_a_tuning_learns_from_the_rest_and_is_scored_on_what_was_held_out(small, place):
    job = small(kind="ours", held_out=0.2)
    result = perform(job.id, job.settings, place)
    data = st.open_data("digits", train_limit=100, test_limit=50)
    rest, held_out = split_in_two(data.train, 0.2, seed=job.settings["seed"])
    assert (len(rest), len(held_out)) == (80, 20)
    assert not set(rest.rows) & set(held_out.rows)
    assert result["train_pictures"] == 80
    assert (result["top1"] * 20) % 1 == 0
    assert "stored" not in result


def test_a_budget_is_spent_as_choose_says_and_choosing_counts_as_training(small, place):
    job = small(kind="ours", fraction=None, budget=20_000, epochs=2)
    result = perform(job.id, job.settings, place)
    data = st.open_data("digits", train_limit=100, test_limit=50)
    net = st.create("wrn28_4", depth=10, width=1, num_classes=10)
    choice = st.choose(net, data, st.FitConfig(epochs=2, batch_size=32), 20_000, dtype="int8")
    assert result["choice"] == choice.to_json()
    st.adapt_(net, choice.learn)
    last = st.fit(net, data, st.FitConfig(epochs=2, batch_size=32))[-1]
    assert (result["top1"], result["loss"]) == (last.test_top1, last.test_loss)
    assert [stored["dtype"] for stored in result["stored"]] == ["float32", "bf16", "int8"]
    assert 15_000 < result["stored"][2]["bytes"] <= 20_000
    assert 0 < result["choosing_seconds"] < result["seconds"]


def test_what_was_chosen_before_a_stop_is_trained_after_it(small, place):
    """The note of the choice is changed by hand, so that a second comparison would be seen."""
    job = small(kind="ours", fraction=None, budget=20_000, epochs=2)
    assert perform(job.id, job.settings, place, 0.0) is None
    note = place.run(job.id) / "choice.json"
    value = json.loads(note.read_text())
    note.write_text(json.dumps({**value, "choice": {**value["choice"], "why": "by hand"}}))
    result = perform(job.id, job.settings, place)
    assert result["choice"]["why"] == "by hand"
    assert result["choosing_seconds"] == value["choosing_seconds"]
    assert {path.name for path in place.run(job.id).iterdir()} == {"delta.safetensors"}


def test_a_budget_is_spread_as_the_job_says(small, place):
    job = small(kind="ours", fraction=None, budget=20_000, spread="low rank, last third")
    perform(job.id, job.settings, place)
    net = st.load(place.run(job.id) / "delta.safetensors")
    plain = st.create("wrn28_4", depth=10, width=1, num_classes=10)
    wanted = spend("low rank, last third", plain, 20_000, classes=map(str, range(10)), dtype="int8")
    assert st.adapted(net).plan.learn == wanted
    assert "low rank, last third" in job.name


def test_the_first_classes_are_all_that_is_learned(small, place):
    job = small(kind="ours", classes=3, train_limit=60, test_limit=30)
    result = perform(job.id, job.settings, place)
    header = st.inspect(place.run(job.id) / "delta.safetensors")
    assert header.classes == ("0", "1", "2")
    assert result["train_pictures"] == 60
    digits = st.open_data("digits")
    assert min((digits.train.labels == label).sum() for label in range(3)) > 20
    assert st.load(place.run(job.id) / "delta.safetensors").num_classes == 3


def test_lora_trains_by_the_same_loop_and_its_bytes_are_its_values(small, place):
    job = small(kind="lora", fraction=None, rank=2)
    result = perform(job.id, job.settings, place)
    net = st.create("wrn28_4", depth=10, width=1, num_classes=10)
    values = adapters = 0
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            outputs, *rest = module.weight.shape
            adapters += 2 * (outputs + torch.Size(rest).numel())
        elif isinstance(module, torch.nn.BatchNorm2d):
            values += 4 * module.num_features
    norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules())
    head = net.fc.weight.numel() + net.fc.bias.numel()
    assert result["learned_parameters"] == adapters + values // 2 + head
    first, bf16, int8 = result["stored"]
    assert first["bytes"] == 4 * (adapters + values + head) + 8 * norms
    assert bf16["bytes"] == 2 * (adapters + values + head) + 8 * norms
    assert adapters + values + head < int8["bytes"] < bf16["bytes"]
    assert not (place.run(job.id) / "checkpoint.safetensors").exists()


def test_a_plain_model_around_lora_is_trained_bit_for_bit_alike_when_it_is_stopped(small, place):
    job = small(kind="lora", fraction=None, rank=2, epochs=3)
    calls = 0
    while (result := perform(job.id, job.settings, place, budget=0.0)) is None:
        calls += 1
    straight = perform("straight", job.settings, place)
    assert calls > 5
    assert {**result, "seconds": 0} == {**straight, "seconds": 0}


def test_the_rate_is_the_best_on_held_out_pictures_in_the_mean_of_seeds_that_all_converged(small, row, place):
    found = {
        0.01: [{"top1": 0.9, "loss": 0.1}, {"top1": 0.6, "loss": 0.1}],
        0.1: [{"top1": 0.7, "loss": 1.0}, {"top1": 0.9, "loss": 0.9}],
        1.0: [{"top1": 0.8, "loss": 0.9}, {"top1": 0.8, "loss": 0.9}],
        10.0: [{"top1": 1.0, "loss": 0.1}, {"diverged": "the loss became nan"}],
    }
    jobs = {(lr, seed): small(kind="ours", held_out=0.2, lr=lr, seed=seed) for lr in found for seed in (0, 1)}
    final = small(kind="ours", lr=None, of=[job.id for job in jobs.values()]).settings
    with open_store(place.folder, write=True) as store:
        store.add(row(jobs[10.0, 1], **found[10.0][1]))
        store.add(row(small(kind="ours", held_out=0.2, lr=0.5), top1=1.0, loss=0.0))
        said = r"^no learning rate of the tuning converged with every seed\.$"
        with pytest.raises(DivergedError, match=said):
            best_rate(final, place)
        for (lr, seed), job in jobs.items():
            if (lr, seed) != (10.0, 1):
                store.add(row(job, **found[lr][seed]))
        assert best_rate(final, place) == 1.0


def test_a_final_training_follows_from_its_tuning(small, inline, place):
    tuning = tuple(small(kind="ours", held_out=0.2, lr=lr) for lr in (1e-6, 0.05))
    final = Job(
        {**tuning[0].settings, "held_out": None, "lr": None, "of": [job.id for job in tuning]}, tuning
    )
    with open_store(place.folder, write=True) as store:
        go([*in_order([final])], store, inline)
        rows = {each.id: each for each in store.rows()}
    assert inline.given == [tuning[0].id, tuning[1].id, final.id]
    best = max(tuning, key=lambda job: (rows[job.id].result["top1"], -rows[job.id].result["loss"]))
    assert rows[final.id].result["lr"] == best.settings["lr"] == 0.05
    assert rows[final.id].about["jobs"] == 1


def test_a_backbone_that_was_trained_is_what_stays_frozen(small, place):
    start = small(fraction=1.0, epochs=2)
    perform(start.id, start.settings, place)
    trained = st.merge_(st.load(place.run(start.id) / "delta.safetensors")).state_dict()
    job = small(kind="ours", filters=1, fraction=None, init_from=start.id)
    perform(job.id, job.settings, place)
    whole = place.run(start.id) / "whole.safetensors"
    net = st.merge_(st.load(place.run(job.id) / "delta.safetensors", backbone=whole)).state_dict()
    name = "block2.0.conv1.weight"
    assert torch.equal(net[name][1:], trained[name][1:])
    assert not torch.equal(net[name][:1], trained[name][:1])
