"""A job's result against the same done by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from PIL import Image

import sparsetune as st
from sparsetune.errors import DataError, DivergedError
from sparsetune.studies.intervals import unpacked
from sparsetune.studies.jobs import in_order
from sparsetune.studies.work import about, perform


def done(job, place):
    results = {}
    for each in in_order([job]):
        results[each.id] = json.loads(json.dumps(perform(each.id, each.settings, place)))
    return results


def net_of(settings, seed):
    net = st.create("wrn28_4", depth=10, width=1, num_classes=10, seed=seed)
    return st.adapt_(net, st.Learn(fraction=settings["fraction"], frozen=settings["frozen"]))


def test_a_training_is_what_fit_does(small, place):
    job = small(seed=3, frozen="zero", epochs=2)
    result = done(job, place)[job.id]
    net = net_of(job.settings, 3)
    data = st.open_data("digits", train_limit=100, test_limit=50)
    history = st.fit(net, data, st.FitConfig(epochs=2, batch_size=32, seed=3))
    last = history[-1]
    assert (result["top1"], result["loss"]) == (last.test_top1, last.test_loss)
    assert (result["train_top1"], result["train_loss"]) == (last.train_top1, last.train_loss)
    assert result["learned_parameters"] == st.adapted(net).plan.learned_parameters
    assert result["train_pictures"] == 100
    loaded = st.load(place.run(job.id) / "delta.safetensors")
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_an_ensemble_starts_from_one_model_and_averages_its_members(small, place):
    job = small(kind="ensemble", members=2, opt="adam", lr=0.001)
    results = done(job, place)
    start = job.needs[0].needs[0]
    whole = place.run(start.id) / "whole.safetensors"
    started = st.merge_(st.load(place.run(start.id) / "delta.safetensors")).state_dict()
    deltas = [place.run(member.id) / "delta.safetensors" for member in job.needs]
    nets = [st.load(delta, backbone=whole).eval() for delta in deltas]
    for net in nets:
        frozen = st.merge_(st.load(deltas[0], backbone=whole)).state_dict()["block1.0.conv1.weight"][4:]
        assert torch.equal(frozen, started["block1.0.conv1.weight"][4:])
        assert not torch.equal(st.merge_(net).state_dict()["fc.weight"], started["fc.weight"])
    data = st.open_data("digits", test_limit=50)
    (x, y), *rest = st.data.loader(data.test, data.preprocessing, batch_size=50)
    assert not rest
    with torch.no_grad():
        members = torch.stack([net.eval()(x).double().softmax(1) for net in nets])
    right = [float((p.argmax(1) == y).double().mean()) for p in members]
    result = results[job.id]
    assert result["members"] == pytest.approx(right)
    assert result["mean_top1"] == pytest.approx(sum(right) / 2)
    assert result["top1"] == pytest.approx(float((members.mean(0).argmax(1) == y).double().mean()))
    assert not torch.equal(*members)
    together = members.mean(0).argmax(1) == y
    assert unpacked(result["right"], result["test_pictures"]).tolist() == together.tolist()
    alone = [unpacked(results[member.id]["right"], 50).tolist() for member in job.needs]
    assert alone == [(p.argmax(1) == y).tolist() for p in members]


def test_members_that_start_from_a_trained_model_keep_the_papers_protocol(small, place):
    """Its augmentation, its pictures and moving statistics, not those of a transfer."""
    job = small(kind="ensemble", members=2, opt="adam", lr=0.001)
    done(job, place)
    member = job.needs[0]
    first, second = (
        json.loads((place.run(each.id) / "config.json").read_text()) for each in (member.needs[0], member)
    )
    before, now = first["recipe"], second["recipe"]
    other = {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
    assert other == {"opt", "lr", "seed"}
    start, after = (
        st.load(place.run(each.id) / "delta.safetensors", **backbone)
        for each, backbone in (
            (member.needs[0], {}),
            (member, {"backbone": place.run(member.needs[0].id) / "whole.safetensors"}),
        )
    )
    name = "block1.0.bn1.running_mean"
    assert not torch.equal(st.merge_(start).state_dict()[name], st.merge_(after).state_dict()[name])


def test_magnitudes_are_those_of_the_merged_weights(small, place):
    job = small(kind="weights")
    layers = done(job, place)[job.id]["layers"]
    net = st.merge_(st.load(place.run(job.needs[0].id) / "delta.safetensors"))
    convs = {n: m.weight.detach().double().numpy() for n, m in net.named_modules() if hasattr(m, "stride")}
    assert [layer["name"] for layer in layers] == [f"{name}.weight" for name in convs]
    for layer, weight in zip(layers, convs.values(), strict=True):
        assert layer["mean"] == pytest.approx(np.abs(weight).mean())
        assert layer["variance"] == pytest.approx(weight.var())
        part = weight[: len(weight) // 4]
        assert layer["learned"] == pytest.approx({"mean": np.abs(part).mean(), "variance": part.var()})


def test_magnitudes_as_drawn_are_those_of_the_seeded_model(small, place):
    drawn = small(kind="weights", fraction=None, model_kwargs=None, seed=2)
    assert not drawn.needs
    layers = done(drawn, place)[drawn.id]["layers"]
    weight = st.create("wrn28_4", num_classes=10, seed=2).conv1.weight.detach()
    assert layers[0]["mean"] == pytest.approx(float(weight.abs().mean()))
    assert layers[0]["learned"] is None


def test_time_that_is_up_is_no_result_and_the_next_call_goes_on(small, place):
    job = small(epochs=3)
    assert perform(job.id, job.settings, place, budget=0.0) is None
    result = perform(job.id, job.settings, place)
    straight = perform("straight", job.settings, place)
    assert {**result, "seconds": 0} == {**straight, "seconds": 0}


def test_a_result_that_nobody_wrote_down_is_told_again(small, place):
    """The process that gives the jobs may be killed between the end of a training and its row."""
    job = small(epochs=2)
    first = perform(job.id, job.settings, place)
    assert len(unpacked(first["right"], first["test_pictures"])) == 50
    assert perform(job.id, job.settings, place) == first


def test_a_worker_refuses_other_data_than_the_job_is_for(small, place):
    job = small(digest="0123456789abcdef")
    said = r"^digits holds other pictures \(digest [0-9a-f]{16}\) than those of this job \(digest 0123456789a"
    with pytest.raises(DataError, match=said):
        perform(job.id, job.settings, place)
    assert not place.run(job.id).exists()
    right = small(digest=st.open_data("digits").digest())
    assert perform(right.id, right.settings, place)["train_pictures"] == 100


def test_a_half_done_training_whose_data_was_moved_begins_again(small, place, tmp_path):
    for number, label in product(range(6), range(10)):
        path = tmp_path / "there" / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * label, number, 0)).save(path)
    job = small(epochs=2, train_limit=None, test_limit=None)
    there, here = (replace(place, sources={"digits": str(tmp_path / name)}) for name in ("there", "here"))
    assert perform(job.id, job.settings, there, budget=0.0) is None
    (tmp_path / "there").rename(tmp_path / "here")
    assert perform(job.id, job.settings, here) == {**perform("straight", job.settings, here), "seconds": ANY}


def test_a_loss_that_is_no_number_is_told(small, place):
    with pytest.raises(DivergedError, match="the loss became"):
        perform("x", small(lr=1e30, model="vgg19_cifar", model_kwargs=None).settings, place)
    lost = small(kind="weights")
    with pytest.raises(DivergedError, match="did not converge"):
        perform(lost.id, lost.settings, place)


def test_a_result_says_what_it_was_measured_on(small, place):
    told = about(small().settings, place)
    assert told["data"] == {"name": "digits", "lossy": False}
    assert {"processor", "threads", "accelerator", "versions", "commit", "date"} <= set(told)
