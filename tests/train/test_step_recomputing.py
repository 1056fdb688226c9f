from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import sparsetune as st
from sparsetune.bench.timing import peak_bytes
from sparsetune.errors import ConfigError
from sparsetune.train.step import recomputing

CONFIG = st.FitConfig(epochs=2, batch_size=64, lr=0.05)


def test_fit_ends_with_the_same_bits(tiny, digits):
    plain, recomputed = tiny(drop_rate=0.2), tiny(drop_rate=0.2)
    history = st.fit(plain, digits, CONFIG)
    again = st.fit(recomputed, digits, replace(CONFIG, grad_checkpointing=True))
    assert [record.train_loss for record in again] == [record.train_loss for record in history]
    after = recomputed.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in plain.state_dict().items())
    assert not recomputed.grad_checkpointing


def test_a_steps_peak_is_lower(tiny):
    net, x = tiny(depth=28), torch.randn(8, 3, 32, 32)

    def step() -> None:
        net(x).logsumexp(1).sum().backward()

    step()
    straight = peak_bytes(step, "cpu")
    with recomputing(net, wanted=True):
        assert peak_bytes(step, "cpu") < 0.5 * straight
    assert peak_bytes(step, "cpu") == straight


@pytest.mark.parametrize("was", [False, True])
def test_the_models_own_setting_is_put_back(was):
    net = st.create("test_vit", num_classes=10)
    net.set_grad_checkpointing(was)
    for wanted in (False, True):
        with recomputing(net, wanted):
            assert net.grad_checkpointing == (was or wanted)
        assert net.grad_checkpointing == was


def test_the_models_own_setting_is_put_back_after_an_error_too(tiny, digits):
    def fail(event):
        raise KeyboardInterrupt

    net = tiny()
    with pytest.raises(KeyboardInterrupt):
        st.fit(net, digits, replace(CONFIG, grad_checkpointing=True), watch=fail)
    assert not net.grad_checkpointing


@pytest.mark.parametrize("name", ["torchvision/squeezenet1_1", "dla46x_c", "vgg19_cifar"])
def test_a_model_without_it_is_one_sentence(name, digits):
    learn = st.Learn(filters=0)
    net = st.adapt_(st.create(name, num_classes=10), learn)
    with pytest.raises(ConfigError, match=r"^[A-Za-z0-9]+ has no gradient checkpointing; leave it off") as e:
        st.fit(net, digits, replace(CONFIG, grad_checkpointing=True))
    assert len(str(e.value).splitlines()) == 1


def test_a_users_own_module_has_none():
    with (
        pytest.raises(ConfigError, match=r"^Sequential has no"),
        recomputing(nn.Sequential(nn.Linear(2, 2)), wanted=True),
    ):
        pass


class Own(nn.Module):
    """A user's own model, which checkpoints a part of itself; statistics are averages over all batches."""

    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant
        self.stem = nn.Conv2d(3, 4, 3)
        self.part = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.ReLU())
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = self.stem(x)
        if self.reentrant is not None:
            x = checkpoint(self.part, x, use_reentrant=self.reentrant)
        else:
            x = self.part(x)
        return self.fc(x.mean((2, 3)))


def ends(net, data, **changes):
    st.fit(net, data, replace(CONFIG, epochs=1, **changes))
    return net.state_dict()


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_statistics_of_timms_models_move_once_a_step(name, digits):
    plain, recomputed = (
        st.adapt_(st.create(name, num_classes=10), st.Learn(fraction=0.25)) for _ in range(2)
    )
    expected = ends(plain, digits)
    found = ends(recomputed, digits, grad_checkpointing=True)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert {int(value) for key, value in found.items() if key.endswith("num_batches_tracked")} == {5}


@pytest.mark.filterwarnings("ignore:None of the inputs")
@pytest.mark.parametrize("reentrant", [False, True])
def test_statistics_of_a_users_own_checkpointed_part_move_once_a_step(reentrant, digits):
    torch.manual_seed(0)
    plain = Own(None)
    own = Own(reentrant)
    own.load_state_dict(plain.state_dict())
    learn = st.Learn(fraction=0.5)
    expected = ends(st.adapt_(plain, learn), digits)
    found = ends(st.adapt_(own, learn), digits)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert found["part.1.num_batches_tracked"] == 5
