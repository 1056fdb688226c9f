from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import sparsetune as st
from sparsetune.errors import ConfigError, DataError, StorageError
from sparsetune.sliced.adapt import frozen_values
from sparsetune.train import loop as training
from sparsetune.train.loop import Epoch, Step

TWO = st.FitConfig(epochs=2, batch_size=64, lr=0.05)
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def values(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def told(history: list[Epoch]) -> list[dict]:
    return [{**record.to_json(), "seconds": 0} for record in history]


def in_pieces(make, data, config, checkpoint) -> tuple[nn.Module, list[Epoch], int]:
    """Train with a time budget of nothing, so that each call takes one step, each on a fresh model."""
    for calls in range(1, 100):
        net = make()
        history = st.fit(net, data, config, checkpoint=checkpoint, resume=True, time_budget=0.0)
        if len(history) == config.epochs:
            return net, history, calls
    raise AssertionError


def test_learns_the_digits(tiny):
    net = tiny(seed=1)
    history = st.fit(net, st.open_data("digits"), st.FitConfig(epochs=4, lr=0.1))
    assert history[-1].test_top1 > 0.8
    assert history[-1].test_loss < history[0].test_loss
    assert history[-1].train_loss < history[0].train_loss


def test_any_classifier_trains_what_requires_gradients_and_goes_on_as_if_never_stopped(digits, tmp_path):
    def make():
        net = st.create("wrn28_4", depth=10, width=1, num_classes=10)
        return net.requires_grad_(False), net.fc.requires_grad_(True)

    straight, _ = make()
    before = values(straight)
    history = training.train(straight, digits, TWO, {"model": "a"})
    assert {n for n, p in straight.named_parameters() if not torch.equal(p, before[n])} == {
        "fc.weight",
        "fc.bias",
    }
    assert not torch.equal(straight.bn1.running_mean, before["bn1.running_mean"])
    stopped, file = [], tmp_path / "checkpoint.safetensors"
    while len(stopped) < TWO.epochs:
        net, _ = make()
        stopped = training.train(
            net, digits, TWO, {"model": "a"}, checkpoint=file, resume=True, time_budget=0.0
        )
    assert told(stopped) == told(history)
    assert same(values(net), values(straight))
    with pytest.raises(StorageError, match="is from a training with model = 'a', not 'b'"):
        training.train(make()[0], digits, TWO, {"model": "b"}, checkpoint=file, resume=True)


def test_records_tell_what_happened(tiny, digits):
    net, events = tiny(), []
    history = st.fit(net, digits, TWO, watch=events.append)
    epochs = [event for event in events if isinstance(event, Epoch)]
    steps = [event for event in events if isinstance(event, Step)]
    assert epochs == history
    assert [record.epoch for record in history] == [1, 2]
    assert [(s.epoch, s.step, s.steps) for s in steps] == [(e, s, 5) for e in (1, 2) for s in range(1, 6)]
    assert steps[4].loss == history[0].train_loss
    assert 0 < history[-1].lr < 0.05 * 0.1
    x = torch.stack([digits.preprocessing.apply(digits.test[i][0]) for i in range(len(digits.test))])
    with torch.no_grad():
        logits = net(x)
    assert history[-1].test_top1 == (logits.argmax(1) == digits.test.labels).double().mean()
    loss = nn.functional.cross_entropy(logits, digits.test.labels).item()
    assert history[-1].test_loss == pytest.approx(loss, rel=1e-5)


def test_without_a_schedule_the_rate_stays(tiny, digits):
    history = st.fit(tiny(), digits, replace(TWO, sched="none"))
    assert [record.lr for record in history] == [0.05, 0.05]


@pytest.mark.parametrize(
    ("changes", "kwargs"),
    [
        ({}, {}),
        ({"opt": "adamw", "lr": 0.003}, {}),
        ({"opt": "adan", "lr": 0.003}, {}),
        ({"sched": "none"}, {"drop_rate": 0.3}),
        ({"amp": "bf16"}, {}),
        ({"mixup": 0.4, "cutmix": 1.0, "smoothing": 0.1, "class_weights": "balanced"}, {}),
        ({"aa": "rand-m9-mstd0.5-inc1", "reprob": 0.5, "model_ema": True}, {"drop_rate": 0.3}),
        ({"layer_decay": 0.75}, {}),
        pytest.param({"amp": "fp16"}, {}, marks=CUDA),
    ],
    ids=["momentum", "adamw", "adan", "dropout", "bf16", "mixed", "changed", "layers", "fp16"],
)
def test_stopped_at_every_step_it_ends_the_same(tmp_path, tiny, digits, changes, kwargs):
    config = replace(TWO, **changes)
    straight = tiny(**kwargs)
    history = st.fit(straight, digits, config)
    pieces, again, calls = in_pieces(lambda: tiny(**kwargs), digits, config, tmp_path / "c")
    assert calls >= 10
    assert same(values(straight), values(pieces))
    assert told(again) == told(history)


@pytest.mark.parametrize("changes", [{}, {"aa": "rand-m9-mstd0.5", "reprob": 0.25, "mixup": 0.2}])
def test_workers_change_no_bit(tiny, digits, changes):
    one, two, config = tiny(drop_rate=0.3), tiny(drop_rate=0.3), replace(TWO, **changes)
    first, second = st.fit(one, digits, config), st.fit(two, digits, replace(config, workers=2))
    assert same(values(one), values(two))
    assert told(first) == told(second)


def test_workers_may_differ_when_it_goes_on(tmp_path, tiny, digits):
    straight, stopped, resumed = tiny(), tiny(), tiny()
    st.fit(straight, digits, TWO)
    st.fit(stopped, digits, TWO, checkpoint=tmp_path / "c", time_budget=0.0)
    st.fit(resumed, digits, replace(TWO, workers=1, device="cpu"), checkpoint=tmp_path / "c", resume=True)
    assert same(values(straight), values(resumed))


def test_a_seed_changes_the_training_and_nothing_else_does(tiny, digits):
    nets = [tiny(drop_rate=0.3) for _ in range(3)]
    for net, seed, noise in zip(nets, (0, 0, 1), (1, 2, 3), strict=True):
        torch.manual_seed(noise)
        st.fit(net, digits, replace(TWO, epochs=1, seed=seed))
    assert same(values(nets[0]), values(nets[1]))
    assert not same(values(nets[0]), values(nets[2]))


def test_a_seed_may_be_any_number(tiny, digits):
    assert st.fit(tiny(), digits, replace(TWO, epochs=1, seed=10**30))


def test_saves_on_the_way_through_a_long_epoch(tmp_path, tiny, digits, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)

    class Killed(BaseException):
        pass

    def kill(event):
        if isinstance(event, Step) and event.step == 4:
            raise Killed

    stopped, resumed, straight = tiny(), tiny(), tiny()
    with pytest.raises(Killed):
        st.fit(stopped, digits, TWO, checkpoint=tmp_path / "c", watch=kill)
    steps = []
    st.fit(resumed, digits, TWO, checkpoint=tmp_path / "c", resume=True, watch=steps.append)
    assert (steps[0].epoch, steps[0].step) == (1, 4)
    st.fit(straight, digits, TWO)
    assert same(values(straight), values(resumed))


@pytest.mark.parametrize("opt", ["momentum", "adamw", "lamb", "adadelta", "rmsproptf"])
def test_frozen_values_do_not_move(tiny, digits, opt):
    net = tiny()
    plan = training.adapted(net).plan
    before = {name: value.clone() for name, value in frozen_values(net, plan)}
    learned = values(net)
    st.fit(net, digits, replace(TWO, opt=opt, lr=0.01, weight_decay=0.1))
    assert before
    assert all(torch.equal(value, before[name]) for name, value in frozen_values(net, plan))
    after = values(net)
    assert all(not torch.equal(after[name], learned[name]) for name in learned)


def test_leaves_the_model_as_any_other(tmp_path, tiny, digits):
    net = tiny()
    kind, names = type(net), set(vars(net))
    st.fit(net, digits, TWO)
    assert (type(net), set(vars(net)) - names) == (kind, {"_sparsetune_taught"})
    assert "forward" not in vars(net)
    assert not any(module.training for module in net.modules())
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = net(x)
    st.save(net, tmp_path / "d.safetensors")
    assert torch.equal(st.load(tmp_path / "d.safetensors")(x), expected)
    assert torch.equal(st.merge_(net)(x), expected)


def test_is_left_in_evaluation_mode_by_an_error_too(tiny, digits):
    def fail(event):
        raise KeyboardInterrupt

    net = tiny()
    with pytest.raises(KeyboardInterrupt):
        st.fit(net, digits, TWO, watch=fail)
    assert not net.training


def test_leaves_random_states_alone(tiny, digits):
    net = tiny(drop_rate=0.5)
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    st.fit(net, digits, replace(TWO, workers=1, mixup=0.2, cutmix=1.0, aa="augmix", reprob=0.2))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_several_precisions_in_one_process(tiny, digits):
    results = []
    for amp in (None, "bf16", "fp16" if torch.cuda.is_available() else "bf16", None):
        net = tiny()
        history = st.fit(net, digits, replace(TWO, amp=amp))
        results.append(values(net))
        assert history[-1].train_loss < history[0].train_loss
        assert net(torch.randn(2, 3, 8, 8)).dtype == torch.float32
        assert all(v.dtype == torch.float32 for v in net.state_dict().values() if v.is_floating_point())
    assert same(results[0], results[3])
    assert not same(results[0], results[1])


def test_goes_on_training_after_fit(tiny, digits):
    net = tiny()
    st.fit(net, digits, TWO)
    first = values(net)
    st.fit(net, digits, TWO)
    assert not same(values(net), first)


def test_a_lone_last_picture_is_no_batch_of_its_own(digits):
    # 8x8 pictures are 1x1 before this model's last batch norm, which cannot learn from one value
    data = st.open_data("digits", train_limit=65, test_limit=20)
    net = st.adapt_(st.create("test_resnet", num_classes=10), st.Learn(fraction=0.25))
    steps = []
    st.fit(net, data, replace(TWO, epochs=1), watch=lambda e: steps.append(e))
    assert [type(event) for event in steps] == [Step, Epoch]


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_efficientnet"])
def test_other_kinds_of_models(name, digits):
    size = 160 if name == "test_vit" else 32
    data = st.open_data("digits", train_limit=32, test_limit=16, size=size)
    net = st.adapt_(st.create(name, num_classes=10), st.Learn(fraction=0.25))
    assert st.fit(net, data, st.FitConfig(epochs=1, batch_size=16, lr=0.01))


@pytest.mark.slow
def test_compiles(tiny, digits):
    plain, compiled = tiny(), tiny()
    history = st.fit(plain, digits, TWO)
    again = st.fit(compiled, digits, replace(TWO, compile=True))
    assert again[-1].train_loss == pytest.approx(history[-1].train_loss, rel=0.05)
    assert compiled(torch.randn(2, 3, 8, 8)).shape == (2, 10)
    assert list(compiled.state_dict()) == list(plain.state_dict())


def refused(kind, words, net, data, config=TWO, **kwargs) -> None:
    with pytest.raises(kind, match=words) as caught:
        st.fit(net, data, config, **kwargs)
    assert len(str(caught.value).splitlines()) == 1


def test_refuses_what_cannot_be_trained(tmp_path, tiny, digits):
    plain = st.create("wrn28_4", depth=10, width=1, num_classes=10)
    refused(ConfigError, r"is not adapted; call sparsetune\.adapt_", plain, digits)
    refused(ConfigError, "has 7 classes but digits has 10; create it with num_c", tiny(num_classes=7), digits)
    refused(DataError, "digits has no training pictures", tiny(), replace(digits, train=None))
    nothing = tiny(st.Learn(filters=0, norm=False, head=False))
    refused(ConfigError, "nothing is left to learn", nothing, digits)
    refused(ConfigError, "device 'banana' is unknown", tiny(), digits, replace(TWO, device="banana"))
    refused(ConfigError, "device 'meta' cannot be used", tiny(), digits, replace(TWO, device="meta"))
    refused(ConfigError, "the loss became nan in epoch 1; lower lr 1e", tiny(), digits, replace(TWO, lr=1e30))
    vit = st.adapt_(st.create("test_vit", num_classes=10), st.Learn(fraction=0.5))
    own = st.open_data("digits", size=8, train_limit=64, test_limit=10)
    refused(ConfigError, r"cannot learn from a batch of 64x3x8x8 \(Input height .*\); try another", vit, own)
    refused(ConfigError, "'adahessian' |cannot learn from", tiny(), digits, replace(TWO, opt="adahessian"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
def test_refuses_cuda_where_there_is_none(tiny, digits):
    refused(ConfigError, "device 'cuda' cannot be used here", tiny(), digits, replace(TWO, device="cuda"))
    refused(ConfigError, "amp 'fp16' needs a GPU; choose bf16", tiny(), digits, replace(TWO, amp="fp16"))
    refused(ConfigError, "optimiser 'fusedsgd' cannot be used", tiny(), digits, replace(TWO, opt="fusedsgd"))


def test_a_checkpoint_of_another_training_is_refused(tmp_path, tiny, digits):
    path = tmp_path / "c"
    st.fit(tiny(), digits, TWO, checkpoint=path, time_budget=0.0)
    again = {"checkpoint": path, "resume": True}
    refused(StorageError, r"lr = 0\.05, not 0\.1", tiny(), digits, replace(TWO, lr=0.1), **again)
    refused(StorageError, "with fingerprint = ", tiny(seed=9), digits, TWO, **again)
    refused(StorageError, "with learn = ", tiny(st.Learn(fraction=0.5)), digits, TWO, **again)
    other = st.open_data("digits", train_limit=200, test_limit=100)
    refused(StorageError, "with train_count = 300, not 200", tiny(), other, TWO, **again)


def test_a_checkpoint_that_cannot_be_written_is_one_sentence(tmp_path, tiny, digits):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "c"
    refused(StorageError, "cannot write .*file/c", tiny(), digits, TWO, checkpoint=path, time_budget=0.0)


def test_a_diverged_state_is_not_kept(tmp_path, tiny, digits):
    config = replace(TWO, lr=1e30)
    refused(ConfigError, "the loss became", tiny(), digits, config, checkpoint=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_corrupt_picture_is_named(tmp_path, tiny):
    for label in "ab":
        (tmp_path / label).mkdir()
        for i in range(10):
            picture = np.full((16, 16, 3), 20 * i, dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / label / f"{i}.jpg")
    data = st.open_data(str(tmp_path))
    (tmp_path / "b" / "3.jpg").write_bytes((tmp_path / "b" / "3.jpg").read_bytes()[:100])
    for workers in (0, 1):
        net = tiny(num_classes=2)
        refused(DataError, r"b/3\.jpg' cannot be decoded", net, data, replace(TWO, workers=workers))


def share_right(net, split, preprocessing) -> float:
    """Share of a split's pictures that are classified rightly, by torch alone."""
    x = torch.stack([preprocessing.apply(split[i][0]) for i in range(len(split))])
    with torch.no_grad():
        return (net(x).argmax(1) == split.labels).double().mean().item()


class Counted:
    """Pictures that count how often each is decoded."""

    def __init__(self, images):
        self.images, self.reads = images, 0

    def __getattr__(self, name):
        return getattr(self.images, name)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.reads += 1
        return self.images[index]


def test_a_validation_split_is_watched_and_test_is_kept_for_the_end(tiny, digits, tmp_path):
    held = digits.train.take(np.arange(40))
    images = Counted(digits.test.images)
    test = replace(digits.test, images=images)
    data = replace(digits, train=digits.train.take(np.arange(40, 300)), validation=held, test=test)
    seen, net = [], tiny()
    history = st.fit(
        net, data, TWO, watch=lambda e: seen.append((e, images.reads)) if isinstance(e, Epoch) else None
    )
    first, last = history
    assert [reads for _, reads in seen] == [0, len(test)]
    assert (first.watched, last.watched) == ("validation", "validation")
    assert not {"test_top1", "test_top5", "test_loss"} & first.to_json().keys()
    assert last.validation_top1 == share_right(net, held, data.preprocessing)
    assert last.test_top1 == share_right(net, digits.test, data.preprocessing)
    assert Epoch(**first.to_json()) == first
    _, pieces, _ = in_pieces(tiny, data, TWO, tmp_path / "c")
    assert told(pieces) == told(history)
    plain = st.fit(tiny(), replace(data, validation=None), TWO)
    assert "validation_top1" not in plain[-1].to_json()
    assert plain[-1].test_top1 == last.test_top1  # what is watched changes nothing of what is learned


def test_the_last_look_at_the_test_pictures_is_handed_on(tiny, digits, tmp_path):
    held, rest = (digits.train.take(rows) for rows in (np.arange(40), np.arange(40, 300)))
    for data in (digits, replace(digits, train=rest, validation=held)):
        looks, net = [], tiny()
        st.fit(net, data, TWO, looked=lambda *look, looks=looks: looks.append(look))
        ((logits, labels),) = looks
        x = torch.stack([data.preprocessing.apply(data.test[i][0]) for i in range(len(data.test))])
        with torch.no_grad():
            torch.testing.assert_close(logits, net(x), rtol=1e-4, atol=1e-5)
        assert torch.equal(labels, data.test.labels)
    again = {"checkpoint": tmp_path / "c", "resume": True, "looked": lambda *_: pytest.fail("looks")}
    st.fit(tiny(), digits, TWO, time_budget=0.0, **again)
    st.fit(tiny(), digits, TWO, checkpoint=tmp_path / "c", resume=True)
    st.fit(tiny(), digits, TWO, **again)  # it is done already


def test_few_classes_have_no_top5_and_records_that_have_it_are_read(tiny, digits, tmp_path):
    data = digits.regroup("two", {"low": ["0", "1"], "high": ["8", "9"]})
    (first, last) = st.fit(tiny(num_classes=2), data, TWO)
    assert not {"test_top5", "validation_top5"} & {*first.to_json(), *last.to_json()}
    assert Epoch(**{**first.to_json(), "test_top5": 1.0}).test_top5 == 1.0


def test_a_checkpoint_of_changed_data_is_refused_and_of_moved_data_is_not(tmp_path, tiny, digits):
    path = tmp_path / "c"
    straight = st.fit(tiny(), digits, TWO)
    again = {"checkpoint": path, "resume": True}

    def begin():
        path.unlink(missing_ok=True)
        st.fit(tiny(), digits, TWO, checkpoint=path, time_budget=0.0)

    begin()
    labels = digits.train.labels.clone()
    labels[7] = (labels[7] + 1) % 10
    for changed in (
        replace(digits, train=replace(digits.train, labels=labels)),
        replace(digits, train=digits.train.take(np.arange(299, -1, -1))),
        replace(digits, test=digits.test.take(np.arange(99))),
        replace(digits, classes=tuple("abcdefghij")),
    ):
        refused(StorageError, "with other pictures or labels; its data has ch", tiny(), changed, **again)
    fewer = replace(digits, train=digits.train.take(np.arange(299)))
    refused(StorageError, "train_count = 300, not 299; its data has changed since", tiny(), fewer, **again)
    moved = replace(digits, name="moved", source="/elsewhere/moved")
    assert told(st.fit(tiny(), moved, TWO, **again)) == told(straight)


def test_a_checkpoint_of_a_version_without_digest_goes_on(tmp_path, tiny, digits):
    path = tmp_path / "c"
    st.fit(tiny(), digits, TWO, checkpoint=path, time_budget=0.0)
    with safe_open(path, framework="pt") as file:
        value = json.loads(file.metadata()["sparsetune.training"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert value["config"].pop("data_digest") == digits.digest()
    save_file(tensors, path, {"sparsetune.training": json.dumps(value)})
    history = st.fit(tiny(), digits, TWO, checkpoint=path, resume=True)
    assert told(history) == told(st.fit(tiny(), digits, TWO))


def test_layers_that_were_put_to_rest_stay_so(digits, tmp_path):
    """Batch norm in evaluation mode keeps its statistics to the bit, over epochs and a resumed training."""

    def make() -> nn.Module:
        net = st.adapt_(st.create("test_resnet", num_classes=10), st.Learn(fraction=0.25))
        for module in net.modules():
            module.training = module is net.bn1 or not isinstance(module, nn.BatchNorm2d)
        return net

    plain, net = make(), make()
    st.fit(net, digits, TWO)
    found = dict(net.named_buffers())
    moved = {name for name, before in plain.named_buffers() if not torch.equal(found[name], before)}
    assert moved == {f"bn1.{name}" for name, _ in net.bn1.named_buffers()}
    assert net.bn1.num_batches_tracked == 10
    assert not any(module.training for module in net.modules())
    resumed, _, _ = in_pieces(make, digits, TWO, tmp_path / "checkpoint")
    assert same(values(resumed), values(net))


def test_a_model_at_rest_as_a_whole_trains(tiny, digits):
    net = tiny().eval()
    st.fit(net, digits, TWO)
    assert {int(b) for name, b in net.named_buffers() if name.endswith("num_batches_tracked")} == {10}
