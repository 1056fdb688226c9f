"""What a training follows where it is not told."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

import sparsetune as st
from sparsetune.backbone import loss_of
from sparsetune.errors import ConfigError, Notice
from sparsetune.runs.run import run
from sparsetune.runs.settings import Run
from sparsetune.spec.recipe import PAPER, SUBSPACE, TRANSFER
from sparsetune.train.recipe import class_weights, find_rate, is_trained, oversampled, parted, recipe_for

TEN = st.Learn(fraction=0.1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint of five classes whose running statistics have moved."""
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=5)
    for _ in range(3):
        net(torch.randn(8, 3, 32, 32))
    path = tmp_path_factory.mktemp("whole") / "whole.safetensors"
    save_file(net.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def few():
    return st.open_data("digits", size=32, train_limit=200, test_limit=60)


def over(checkpoint, learn=TEN, classes=10):
    return st.adapt_(st.create("test_resnet", num_classes=classes, checkpoint=checkpoint), learn)


def test_backbones_that_are_trained(checkpoint):
    assert is_trained(st.create("test_resnet", checkpoint=checkpoint))
    assert is_trained(over(checkpoint))
    assert not is_trained(st.create("test_resnet"))
    assert not is_trained(st.adapt_(st.create("wrn28_4", depth=10, width=1), TEN))
    zeroed = st.adapt_(st.create("test_resnet", checkpoint=checkpoint), replace(TEN, frozen="zero"))
    assert not is_trained(zeroed)


@pytest.mark.parametrize(
    "make",
    [
        lambda: timm.create_model("test_resnet"),
        lambda: timm.create_model("test_vit", img_size=32),
        lambda: torchvision.models.get_model("mobilenet_v3_small", weights=None),
    ],
)
def test_a_model_made_elsewhere_is_trained_where_its_normalisation_has_learned(make):
    net = make()
    assert not is_trained(net)
    net.train()(torch.randn(4, 3, 32, 32))
    assert not is_trained(net), "statistics move in any pass"
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    net(torch.randn(4, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    assert is_trained(net)


def test_a_random_backbone_follows_the_paper(few):
    net = st.adapt_(st.create("test_resnet", num_classes=10), TEN)
    assert recipe_for(net, few, st.FitConfig(), TEN) is PAPER
    assert recipe_for(net, few, st.FitConfig(), st.Learn(dimensions=9)) is SUBSPACE
    assert st.FitConfig(epochs=3).following(PAPER) == st.FitConfig(epochs=3)


def test_a_trained_backbone_follows_the_transfer_where_nothing_else_is_given(checkpoint, few):
    config = st.FitConfig(epochs=4, weight_decay=0.2)
    found = config.following(recipe_for(over(checkpoint), few, config, TEN))
    assert (found.opt, found.lr, found.batch_size, found.smoothing) == ("adamw", "auto", 16, 0.1)
    assert (found.epochs, found.weight_decay, found.warmup_epochs) == (4, 0.2, 0.4)
    assert found.complete
    explicit = st.FitConfig(opt="momentum", lr=0.1)
    kept = explicit.following(recipe_for(over(checkpoint), few, explicit, TEN))
    assert (kept.opt, kept.lr) == ("momentum", 0.1), "also where it is the paper's own"


def test_channels_lie_side_by_side_where_that_is_faster(checkpoint, few):
    def laid(learn, net=None, **config):
        config = st.FitConfig(**config)
        return config.following(recipe_for(net or over(checkpoint), few, config, learn)).channels_last

    assert laid(st.Learn(filters=0))
    assert laid(st.Learn(rank=2))
    assert not laid(TEN), "slices of whole convolutions have kernels of their own"
    assert laid(TEN, channels_last=True)
    assert not laid(st.Learn(filters=0), channels_last=False)
    assert not laid(st.Learn(filters=0), net=st.create("test_resnet", num_classes=10))


def test_where_channels_lie_changes_nothing_but_rounding(checkpoint, few):
    found = []
    for last in (False, True):
        net = over(checkpoint, st.Learn(filters=0))
        st.fit(net, few, st.FitConfig(epochs=1, lr=0.001, channels_last=last))
        found.append(torch.cat([value.flatten() for value in net.parameters() if value.requires_grad]))
    assert not torch.equal(*found), "else nothing was laid otherwise"
    assert torch.allclose(*found, atol=2e-4)


@pytest.mark.parametrize(
    ("pictures", "epochs"), [(10, 50), (32, 50), (50, 32), (300, 16), (640, 8), (1000, 5), (10**6, 5)]
)
def test_there_are_enough_steps(pictures, epochs):
    from sparsetune.spec import transfer

    assert transfer(pictures, 2, {}, st.Learn(fraction=1.0)).settings["epochs"] == epochs


@pytest.mark.parametrize(
    ("learn", "epochs"),
    [
        (st.Learn(fraction=1.0), (16, 8, 5)),
        (st.Learn(filters=0, norm=False), (16, 8, 5)),
        (st.Learn(fraction=0.1), (22, 11, 7)),
        (st.Learn(rank=4), (22, 11, 7)),
        (st.Learn(dimensions=4000), (28, 14, 9)),
    ],
)
def test_a_part_has_more_steps_and_a_vector_more_still(learn, epochs):
    """1.4 and 1.75 times 300 steps of 16 pictures, and 16 epochs."""
    from sparsetune.spec import transfer

    found = [transfer(pictures, 2, {}, learn).settings["epochs"] for pictures in (250, 640, 1000)]
    assert tuple(found) == epochs


def test_steps_of_several_batches_are_counted_once(checkpoint, few):
    from sparsetune.spec import transfer

    assert transfer(1000, 2, {"grad_accum_steps": 2}, st.Learn(fraction=1.0)).settings["epochs"] == 10
    config = st.FitConfig(epochs=30, batch_size=16, grad_accum_steps=3, lr="auto", opt="adamw")
    why = find_rate(over(checkpoint), few, config, st.fit).why
    assert why.startswith(f"8% of the training is {int(0.08 * 30 * math.ceil(len(few.train) / 48))} steps")


@pytest.mark.parametrize("setting", [{"mixup": 0.2}, {"cutmix": 1.0}, {"aa": "rand"}, {"reprob": 0.25}])
def test_a_head_alone_sees_pictures_that_change_where_that_is_asked_for(setting):
    from sparsetune.spec import transfer

    alone = st.FitConfig().following(transfer(100, 2, {}, st.Learn(filters=0, norm=False)))
    assert (alone.aug, alone.scale, alone.views) == (False, None, 1)
    given = st.FitConfig(**setting)
    found = given.following(transfer(100, 2, setting, st.Learn(filters=0, norm=False)))
    assert (found.aug, found.scale, found.views) == (True, 0.35, 0)


def test_very_few_pictures_are_told_of(checkpoint, few):
    train = few.train.take(np.arange(12))
    with pytest.warns(Notice, match="12 training pictures of 10 classes are very few; 50 or more"):
        st.fit(over(checkpoint), replace(few, train=train), st.FitConfig(epochs=1))


def test_a_head_that_was_drawn_starts_at_zero_and_another_stays(checkpoint, few):
    still = st.FitConfig(epochs=1, lr=0.0, opt="adamw")
    drawn = over(checkpoint)
    assert drawn.fc.weight.abs().max() > 0
    st.fit(drawn, few, still)
    assert not drawn.fc.weight.count_nonzero()
    five = few.regroup("five", {str(i): [few.classes[i]] for i in range(5)})
    kept = over(checkpoint, classes=5)
    before = kept.fc.weight.detach().clone()
    st.fit(kept, five, still)
    assert torch.equal(kept.fc.weight, before)
    moved = over(checkpoint)
    with torch.no_grad():
        moved.fc.weight.add_(1)
    before = moved.fc.weight.detach().clone()
    st.fit(moved, few, still)
    assert torch.equal(moved.fc.weight, before)
    assert not moved.fc.bias.count_nonzero()


def test_statistics_stay_over_a_trained_backbone_unless_told(checkpoint, few):
    config = st.FitConfig(epochs=1, lr=0.001)
    for learn, stays in ((TEN, True), (replace(TEN, norm_stats="updated"), False)):
        net = over(checkpoint, learn)
        before = net.bn1.running_mean.clone()
        st.fit(net, few, config)
        assert torch.equal(net.bn1.running_mean, before) is stays


def test_validation_pictures_are_chosen_by_content(few):
    config = st.FitConfig(val_share=0.2)
    data = parted(few, config)
    assert len(data.train) + len(data.validation) == len(few.train)
    assert 0.1 < len(data.validation) / len(few.train) < 0.3
    mine = {*data.validation.keys().tolist()}
    assert not mine & {*data.train.keys().tolist()}
    fewer = parted(replace(few, train=few.train.take(np.arange(0, 200, 2))), config)
    both = {*few.train.take(np.arange(0, 200, 2)).keys().tolist()}
    moved = ({*fewer.validation.keys().tolist()} ^ mine) & both
    assert len(moved) <= len(few.classes), "only small classes may differ"
    assert parted(data, config) is data
    assert parted(few, st.FitConfig()) is few


def test_the_test_is_looked_at_once(checkpoint, few):
    history = st.fit(over(checkpoint), few, st.FitConfig(epochs=3, lr=0.001))
    assert [record.test_top1 is None for record in history] == [True, True, False]
    assert all(record.watched == "validation" for record in history)


def test_rates_are_tried_where_there_is_time(checkpoint):
    data = st.open_data("digits", size=32, train_limit=400, test_limit=20)
    net = over(checkpoint)
    before = copy.deepcopy(net.state_dict())
    config = st.FitConfig(epochs=110, batch_size=16, lr="auto", opt="adamw", smoothing=0.1)
    rate = find_rate(net, data, config, st.fit)
    assert [round(trial.lr, 6) for trial in rate.trials] == [0.000167, 0.0005, 0.0015]
    losses = {trial.lr: trial.loss for trial in rate.trials}
    assert rate.lr in losses
    assert losses[rate.lr] <= losses[0.0005]
    steps = sum(trial.steps for trial in rate.trials)
    assert 180 <= steps <= 0.08 * 110 * 25
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert find_rate(net, data, config, st.fit) == rate
    assert type(rate).from_json(rate.to_json()) == rate


def test_short_trainings_take_the_usual_rate_and_say_so(checkpoint, few):
    rate = find_rate(over(checkpoint), few, st.FitConfig(epochs=5, lr="auto", opt="adamw"), st.fit)
    assert (rate.lr, rate.trials) == (0.0005, ())
    assert "8% of the training is" in rate.why


def test_a_run_is_of_the_recipe_and_goes_on(checkpoint, tmp_path):
    few = {"size": 32, "train_limit": 100, "test_limit": 20}
    config = st.FitConfig(epochs=2)
    settings = Run(model="test_resnet", learn=TEN, config=config, init_from=str(checkpoint), **few)
    whole = run(settings, tmp_path / "whole")
    header = st.inspect(whole.folder / "delta.safetensors")
    assert header.learn.norm_stats == "frozen"
    assert header.training["config"]["opt"] == "adamw"
    assert header.training["config"]["lr"] == 0.0005
    while not (part := run(settings, tmp_path / "parts", resume=True, time_budget=0.0)).finished:
        pass
    assert (part.folder / "delta.safetensors").read_bytes() == (
        whole.folder / "delta.safetensors"
    ).read_bytes()


def falling(history):
    return [record.validation_loss for record in history]


def test_the_best_epoch_is_kept_and_patience_ends(checkpoint, few):
    wild = st.FitConfig(
        epochs=8, lr=0.05, opt="adamw", batch_size=16, val_share=0.2, sched="none", smoothing=0.0
    )
    last, best = over(checkpoint), over(checkpoint)
    history = st.fit(last, few, wild)
    kept = st.fit(best, few, wild.but(keep="best"))
    assert falling(kept) == falling(history)
    number = 1 + falling(history).index(min(falling(history)))
    assert number < 8, "else this tests nothing"
    assert kept[-1].kept == number
    early = over(checkpoint)
    ended = st.fit(early, few, wild.but(keep="best", patience=1))
    assert len(ended) < 8
    assert ended[-1].stopped
    assert falling(ended) == falling(history)[: len(ended)]
    assert ended[-1].test_top1 is not None


@pytest.mark.parametrize("more", [{"keep": "best"}, {"patience": 2}])
def test_both_want_validation_pictures(few, more):
    net = st.adapt_(st.create("wrn28_4", depth=10, width=1, num_classes=10), TEN)
    with pytest.raises(ConfigError, match=r"looks at validation pictures and digits has none"):
        st.fit(net, few, st.FitConfig(epochs=1, **more))


def test_transfer_is_data():
    assert TRANSFER.zero_head
    assert {*TRANSFER.settings} <= {
        *st.FitConfig().to_json(),
        "warmup_epochs",
        "smoothing",
        "scale",
        "val_share",
    }


def test_classes_count_alike(few):
    labels = torch.tensor([0] * 6 + [1] * 3 + [3])
    weights = class_weights(labels, 4)
    assert weights.tolist() == pytest.approx([10 / 18, 10 / 9, 0, 10 / 3])
    assert weights[labels].mean().item() == pytest.approx(1)
    logits = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    plain = -logits.log_softmax(1)[torch.arange(10), labels]
    assert loss_of(logits, labels, 0.0, weights).item() == pytest.approx(
        (plain * weights[labels]).mean().item()
    )


def test_pictures_of_rare_classes_are_repeated(few):
    data = few.regroup("rare", {"one": list("0123"), "two": ["5"], "three": ["9"]})
    before = torch.bincount(data.train.labels)
    train = oversampled(data.train)
    assert torch.bincount(train.labels).tolist() == [before.max()] * 3
    rows, times = np.unique(train.rows, return_counts=True)
    assert rows.tolist() == sorted(data.train.rows.tolist())
    labels = torch.from_numpy(np.searchsorted(train.rows, rows))
    for label, had in enumerate(before.tolist()):
        repeats = times[(train.labels[labels] == label).numpy()]
        assert repeats.sum() == before.max()
        assert repeats.max() - repeats.min() <= (before.max() % had > 0)
    assert np.array_equal(oversampled(train).rows, train.rows)


def test_a_rare_class_is_learned_better_where_classes_count_alike(few):
    """Nine pictures of one class to each of the other; without weights the loss would rather miss these."""
    data = few.regroup("rare", {"common": list("01235678"), "rare": ["9"]})
    found = {}
    for weights in (None, "balanced", "oversample"):
        net = st.adapt_(st.create("wrn28_4", depth=10, width=1, num_classes=2), st.Learn(filters=0))
        st.fit(net, data, st.FitConfig(epochs=3, lr=0.02, class_weights=weights))
        probabilities = torch.cat(
            [net(data.preprocessing.apply(data.test[i][0])[None]) for i in range(len(data.test))]
        ).softmax(1)
        found[weights] = probabilities[data.test.labels == 1, 1].mean().item()
    assert min(found["balanced"], found["oversample"]) > found[None] + 0.05


LONG = st.FitConfig(epochs=120, batch_size=16, opt="adamw", lr="auto")


def test_a_rate_is_found_once_and_its_time_counts(checkpoint, tmp_path, monkeypatch):
    data = st.open_data("digits", size=32, train_limit=480, test_limit=20)
    searches, steps = [], []

    def counted(*args):
        """Search once, and later wait for longer than the budget."""
        time.sleep(0.6 * bool(searches))
        searches.append(searches[0] if searches else find_rate(*args))
        return searches[0]

    for module in ("train.loop", "runs.run"):
        monkeypatch.setattr(import_module(f"sparsetune.{module}"), "find_rate", counted)
    how = {"checkpoint": tmp_path / "c", "time_budget": 0.5, "watch": steps.append}
    history = st.fit(over(checkpoint), data, LONG, **how)
    assert (len(steps), len(searches)) == (1, 1), "the trials took longer than the budget"
    assert history.rate == searches[0]
    assert history.rate.trials
    assert not history.finished
    assert f"chosen  lr {history.rate.lr:.2g}: {history.rate.why}" in history.about
    again = st.fit(over(checkpoint), data, LONG, resume=True, **how)
    assert len(searches) == 1
    assert again.rate == history.rate
    assert again.config.lr == history.rate.lr
    settings = Run(
        model="test_resnet",
        learn=TEN,
        config=LONG,
        size=32,
        train_limit=480,
        test_limit=20,
        init_from=str(checkpoint),
    )
    steps.clear()
    outcome = run(settings, tmp_path / "run", time_budget=0.5, watch=steps.append)
    assert (len(steps), len(searches)) == (1, 2)
    assert not outcome.finished


def test_what_is_held_out_already_is_not_divided_again(checkpoint, few):
    untested = replace(few, test=None, validation=few.test)
    config = st.FitConfig(epochs=1, lr=0.001)
    history = st.fit(over(checkpoint), untested, config)
    assert history.recipe.name == "transfer"
    assert history.config.val_share == 0.1
    assert f" on {len(few.train)} pictures of digits" in history.about[1]
    assert history[-1].test_top1 is None
    assert round(history[-1].validation_top1 * 60, 6) % 1 == 0
