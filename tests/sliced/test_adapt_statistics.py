"""Ways in which adapters lose, mix or freeze batch-norm statistics elsewhere; none of them here.

That a resumed ``fit`` equals an undisturbed one bit for bit is in test_training.py, averages of weights are
in test_adapt.py, and distributed training is in test_sliced.py.
"""

import copy

import pytest
import torch
from forge import moved, same, small
from timm.layers.norm_act import FrozenBatchNormAct2d, freeze_batch_norm_2d
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.optim.swa_utils import AveragedModel
from torchvision.ops import FrozenBatchNorm2d

import sparsetune as st
from sparsetune.delta.saving import fill
from sparsetune.errors import ConfigError, DeltaError
from sparsetune.train.metrics import predict_logits

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
GENERATOR = torch.Generator().manual_seed(0)
BATCHES = [torch.randn(n, 3, 8, 8, generator=GENERATOR) * 2 + 1 for n in (6, 6, 6, 2)]
"""The last one small, as at the end of an epoch."""


class Net(nn.Module):
    """Convolution, batch norm, convolution, batch norm, classifier."""

    def __init__(self, **norm):
        super().__init__()
        kind = norm.pop("kind", nn.BatchNorm2d)
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, bias=False), kind(8, **norm)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, bias=False), kind(8, **norm)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        return self.head(x.mean((2, 3)))


def build(**norm):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net(**norm)


def statistics(net):
    return {name: value.clone() for name, value in net.named_buffers() if name.endswith(STATISTICS)}


def equal(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def optimizer_of(net):
    return torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)


def train(net, batches=BATCHES, optimizer=None):
    """Train with the mode as it is."""
    optimizer = optimizer or optimizer_of(net)
    for x in batches:
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    return net


def outputs(net):
    with torch.no_grad():
        return net.eval()(BATCHES[0])


def back(net, tmp_path, **norm):
    st.save(net, tmp_path / "delta")
    return st.load(tmp_path / "delta", module=build(**norm))


def by_hand(batches, momentum=0.1):
    """What batch norm's definition says of the first layer's statistics, in float64."""
    conv = build().conv1.double()
    mean, var = torch.zeros(8, dtype=torch.float64), torch.ones(8, dtype=torch.float64)
    for number, x in enumerate(batches, 1):
        values = conv(x.double()).detach().movedim(1, 0).flatten(1)
        share = 1 / number if momentum is None else momentum
        mean += share * (values.mean(1) - mean)
        var += share * (values.var(1) - var)
    return mean, var


# Saving and loading


@pytest.mark.parametrize("norm", [True, False])
def test_a_reloaded_adapter_predicts_with_the_statistics_of_its_training(norm, tmp_path):
    """Adapters that save parameters only predict with the backbone's statistics (peft#1732)."""
    net = train(st.adapt_(build(), st.Learn(fraction=0.5, norm=norm)))
    loaded = back(net, tmp_path)
    assert equal(statistics(loaded), statistics(net))
    assert not equal(statistics(loaded), statistics(build()))
    assert torch.equal(outputs(loaded), outputs(net))


@pytest.mark.parametrize("momentum", [0.1, 0.01, None])
def test_statistics_of_frozen_layers_are_those_of_the_definition(momentum):
    """Where nothing before it is learned, a layer's statistics follow the data alone."""
    learn = st.Learn(layers=["conv2"], fraction=0.5, norm=False)
    net = train(st.adapt_(build(momentum=momentum), learn))
    mean, var = by_hand(BATCHES, momentum)
    assert torch.allclose(net.bn1.running_mean.double(), mean, atol=1e-5)
    assert torch.allclose(net.bn1.running_var.double(), var, atol=1e-5)
    assert net.bn1.num_batches_tracked == len(BATCHES)


def test_a_cumulative_average_goes_on_where_it_was(tmp_path):
    """``momentum=None`` averages over all batches so far, so a lost counter restarts the average."""
    learn = st.Learn(layers=["conv2"], fraction=0.5, norm=False)
    net = train(st.adapt_(build(momentum=None), learn), BATCHES[:2])
    loaded = train(back(net, tmp_path, momentum=None).train(), BATCHES[2:])
    mean, var = by_hand(BATCHES, None)
    assert loaded.bn1.num_batches_tracked == len(BATCHES)
    assert torch.allclose(loaded.bn1.running_mean.double(), mean, atol=1e-5)
    assert torch.allclose(loaded.bn1.running_var.double(), var, atol=1e-5)


@pytest.mark.parametrize(
    "norm",
    [{"affine": False}, {"track_running_stats": False}, {"affine": False, "track_running_stats": False}],
)
def test_layers_without_affine_or_statistics_come_back(norm, tmp_path):
    """There is nothing to save of some batch norms, and code that expects it fails."""
    net = train(st.adapt_(build(**norm), st.Learn(fraction=0.5)))
    loaded = back(net, tmp_path, **norm)
    assert same(net, loaded)
    assert torch.equal(outputs(loaded), outputs(net))
    assert bool(statistics(net)) == norm.get("track_running_stats", True)


@pytest.mark.parametrize("frozen", [FrozenBatchNorm2d, FrozenBatchNormAct2d])
def test_frozen_batch_norms_travel(frozen, tmp_path):
    """Their scale and shift are buffers, which neither a parameter list nor ``norm=True`` finds."""
    plain = build(kind=frozen)
    for value in plain.bn1.buffers():
        value.add_(1)
    before = copy.deepcopy(plain.bn1.state_dict())
    net = train(st.adapt_(plain, st.Learn(fraction=0.5)))
    assert equal(dict(net.bn1.state_dict()), before)
    loaded = back(net, tmp_path, kind=frozen)
    assert equal(dict(loaded.bn1.state_dict()), before)
    assert torch.equal(outputs(loaded), outputs(net))


def test_layers_that_are_frozen_after_adapting_are_told(tmp_path):
    """Freezing batch norms by replacing them takes learned parameters away; the file would lack them."""
    net = freeze_batch_norm_2d(st.adapt_(build(), st.Learn(fraction=0.5)))
    with pytest.raises(ConfigError, match=r"'bn1.weight' is gone, .* do that before adapt_"):
        st.save(net, tmp_path / "delta")
    net = st.create("wrn28_4", depth=10, width=1, num_classes=10)
    freeze_batch_norm_2d(net)
    with pytest.raises(DeltaError, match=r"layers are not those of wrn28_4.*Backbone\.from_module"):
        st.save(st.adapt_(net, st.Learn(fraction=0.5)), tmp_path / "delta")


def test_statistics_keep_float32_in_a_net_of_half_precision(tmp_path):
    """Statistics cast to half precision on the way lose what training summed up."""
    net = train(st.adapt_(build(), st.Learn(fraction=0.5))).half()
    for norm in (net.bn1, net.bn2):
        norm.float().running_var.add_(1e-6)
    loaded = back(net, tmp_path)
    assert loaded.conv1.weight.dtype == torch.float16
    assert {value.dtype for value in loaded.bn1.state_dict().values()} == {torch.float32, torch.int64}
    assert same(net, loaded)


def test_statistics_of_a_net_in_half_precision_come_back(tmp_path):
    """A net that is in half precision as a whole has such statistics, and they are saved as they are."""
    net = moved(st.adapt_(build(), st.Learn(fraction=0.5))).half()
    loaded = back(net, tmp_path)
    assert loaded.bn1.running_var.dtype == torch.float16
    assert same(net, loaded)


# Several adapters


def test_two_deltas_on_one_backbone_share_no_statistics(tmp_path):
    """Adapters switched on one network would each go on from the other's statistics."""
    first, second = small(), moved(small(), seed=9)
    st.save(first, tmp_path / "first")
    st.save(second, tmp_path / "second")
    net = st.load(tmp_path / "first")
    for path, expected in (("second", second), ("first", first), ("second", second)):
        fill(net, tmp_path / path)
        assert equal(statistics(net), statistics(expected))
    a, b = st.load(tmp_path / "first"), st.load(tmp_path / "second")
    before = statistics(b)
    train(a.train())
    assert equal(statistics(b), before)
    assert not equal(statistics(a), statistics(first))


def test_a_copy_has_statistics_of_its_own():
    """A shallow copy of buffers lets the training of a copy change the original's predictions."""
    net = train(st.adapt_(build(), st.Learn(fraction=0.5)))
    before, expected = statistics(net), outputs(net)
    train(copy.deepcopy(net).train())
    assert equal(statistics(net), before)
    assert torch.equal(outputs(net), expected)


# Modes


@pytest.mark.parametrize("norm", [True, False])
def test_training_mode_updates_statistics_whether_or_not_scale_and_shift_are_learned(norm):
    """A "frozen" batch norm still follows the data in training mode, as it does in plain PyTorch."""
    net = st.adapt_(build(), st.Learn(fraction=0.5, norm=norm)).train()
    with torch.no_grad():
        net(BATCHES[0])
    plain = build()
    plain(BATCHES[0])
    assert equal(statistics(net), statistics(plain))
    assert not equal(statistics(net), statistics(build()))


def test_frozen_scale_and_shift_are_frozen_from_the_first_step():
    """Finetuning callbacks forget to pass on that batch norm is to be frozen (lightning#21531)."""
    net = st.adapt_(build(), st.Learn(fraction=0.5, norm=False))
    before = {name: getattr(net.bn1, name).clone() for name in ("weight", "bias")}
    assert not any("bn" in name for name, _ in net.named_parameters())
    train(net)
    assert all(torch.equal(getattr(net.bn1, name), value) for name, value in before.items())


def test_evaluation_mode_stops_statistics_until_training_mode_comes_back():
    """``train()`` on the parent wakes a batch norm that was put to rest; nothing is remembered or lost."""
    net = st.adapt_(build(), st.Learn(fraction=0.5, norm=False)).train()
    net.bn1.eval()
    before = statistics(net)
    train(net)
    assert torch.equal(net.bn1.running_mean, before["bn1.running_mean"])
    assert not torch.equal(net.bn2.running_mean, before["bn2.running_mean"])
    before = statistics(net)
    net.eval().train()
    assert equal(statistics(net), before)
    assert net.bn1.training
    train(net, BATCHES[:1])
    assert net.bn1.num_batches_tracked == before["bn1.num_batches_tracked"] + 1


def test_statistics_that_are_no_longer_tracked_stay_and_travel(tmp_path):
    """Callbacks freeze statistics by a flag of the module, which no file holds (lightning#15063)."""
    net = train(st.adapt_(build(), st.Learn(fraction=0.5)))
    before = statistics(net)
    net.bn1.track_running_stats = net.bn2.track_running_stats = False
    train(net)
    assert equal(statistics(net), before)
    loaded = back(net, tmp_path)
    assert equal(statistics(loaded), before)
    assert torch.equal(outputs(loaded), outputs(net))


def test_evaluation_changes_no_statistics():
    """Evaluation between epochs must leave the training as it was."""
    net, undisturbed = (st.adapt_(build(), st.Learn(fraction=0.5)) for _ in range(2))
    optimizer, other = optimizer_of(net), optimizer_of(undisturbed)
    for x in BATCHES:
        train(net.train(), [x], optimizer)
        train(undisturbed, [x], other)
        outputs(net)
    assert same(net, undisturbed)


# Stopping and going on


def test_an_own_loop_goes_on_from_its_checkpoint_bit_for_bit(tmp_path):
    """A checkpoint without buffers resumes with fresh statistics and a counter at zero."""
    net = st.adapt_(build(momentum=None), st.Learn(fraction=0.5))
    optimizer = optimizer_of(net)
    train(net, BATCHES[:2], optimizer)
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint")
    train(net, BATCHES[2:], optimizer)

    again = st.adapt_(build(momentum=None), st.Learn(fraction=0.5))
    optimizer = optimizer_of(again)
    found = torch.load(tmp_path / "checkpoint", weights_only=True)
    again.load_state_dict(found["net"])
    optimizer.load_state_dict(found["optimizer"])
    train(again, BATCHES[2:], optimizer)
    assert same(net, again)


def test_training_from_a_file_goes_on_from_its_statistics(tmp_path):
    """A loaded adapter that is trained on must not mix the backbone's statistics in."""
    net = train(st.adapt_(build(), st.Learn(fraction=0.5)), BATCHES[:2])
    loaded = back(net, tmp_path).train()
    assert same(train(net), train(loaded))


def test_fit_leaves_the_statistics_that_the_file_predicts_with(tmp_path, tiny, digits):
    """What was measured after the last epoch is what anyone measures from the file."""
    net = tiny()
    record = st.fit(net, digits, st.FitConfig(epochs=1, lr=0.05))[-1]
    assert not any(module.training for module in net.modules())
    st.save(net, tmp_path / "delta")
    batches = [(x, y) for x, y in st.data.loader(digits.test, digits.preprocessing, batch_size=64)]
    logits, labels = predict_logits(st.load(tmp_path / "delta"), batches)
    assert torch.equal(logits, predict_logits(net, batches)[0])
    assert record.test_top1 == (logits.argmax(1) == labels).double().mean().item()


def test_accumulated_gradients_see_the_statistics_of_a_plain_net():
    """Statistics follow each small batch, not each step; here as in plain PyTorch."""
    net, plain = st.adapt_(build(), st.Learn(fraction=0.5)), build()
    for _ in range(2):
        for x in BATCHES:
            (net(x).square().mean() / len(BATCHES)).backward()
            (plain(x).square().mean() / len(BATCHES)).backward()
    found, expected = statistics(net), statistics(plain)
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)
    assert torch.allclose(net.conv1._parameters["weight"].grad, plain.conv1.weight.grad[:4], atol=1e-5)
    assert net.bn1.num_batches_tracked == 2 * len(BATCHES)


# Averages and conversions


def test_an_average_has_statistics_that_travel(tmp_path):
    """An average of weights with the statistics of no average, or of the start, predicts at random."""
    net = st.adapt_(build(), st.Learn(fraction=0.5))
    ema = ModelEmaV3(net, decay=0.5)
    expected = {name: value.double() for name, value in statistics(net).items()}
    optimizer = optimizer_of(net)
    for x in BATCHES:
        train(net, [x], optimizer)
        ema.update(net)
        for name, value in statistics(net).items():
            counted = name.endswith("num_batches_tracked")
            expected[name] = value.double() if counted else (expected[name] + value.double()) / 2
    found = statistics(ema.module)
    assert all(torch.allclose(found[name].double(), value, atol=1e-6) for name, value in expected.items())
    assert same(back(ema.module, tmp_path), ema.module)


def test_an_average_of_buffers_leaves_frozen_values_alone(tmp_path):
    """Averages with ``use_buffers`` run over frozen values too, and must give them back to the bit."""
    net = st.adapt_(build(), st.Learn(fraction=0.3))
    average = AveragedModel(net, use_buffers=True)
    optimizer = optimizer_of(net)
    for x in BATCHES:
        train(net, [x], optimizer)
        average.update_parameters(net)
    assert torch.equal(average.module.conv1.weight[2:], build().conv1.weight[2:])
    assert same(back(average.module, tmp_path), average.module)


def test_convolution_and_batch_norm_are_fused_after_merging():
    """Fusing writes a whole weight into the convolution, which then is plain again only after ``merge_``."""
    net = train(st.adapt_(build(), st.Learn(fraction=0.5)))
    expected = outputs(net)
    st.merge_(net)
    net.conv1, net.bn1 = fuse_conv_bn_eval(net.conv1, net.bn1), nn.Identity()
    assert torch.allclose(outputs(net), expected, atol=1e-5)


@pytest.mark.parametrize("when", ["before", "after"])
def test_synchronised_batch_norm_keeps_statistics_and_learned_values(when, tmp_path):
    """Conversion makes new modules; what was learned, counted or optimised before must stay theirs."""
    net = build()
    if when == "before":
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    st.adapt_(net, st.Learn(fraction=0.5))
    optimizer = optimizer_of(net)
    train(net, BATCHES[:2], optimizer)
    if when == "after":
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert isinstance(net.bn1, nn.SyncBatchNorm)
    train(net, BATCHES[2:], optimizer)
    assert same(net, train(st.adapt_(build(), st.Learn(fraction=0.5))))
    assert same(net, back(net, tmp_path))
    assert list(st.merge_(net).state_dict()) == list(build().state_dict())


def test_frozen_scale_and_shift_are_synchronised_before_adapting(tmp_path):
    """torch converts no batch norm whose scale and shift are frozen; it says so, and the order helps."""
    with pytest.raises(TypeError, match="cannot assign"):
        nn.SyncBatchNorm.convert_sync_batchnorm(st.adapt_(build(), st.Learn(fraction=0.5, norm=False)))
    net = nn.SyncBatchNorm.convert_sync_batchnorm(build())
    train(st.adapt_(net, st.Learn(fraction=0.5, norm=False)))
    assert same(net, back(net, tmp_path))
