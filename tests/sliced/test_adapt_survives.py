"""An adapted net bears whatever a plain net bears, which, holding the whole weights, says what is right."""

from __future__ import annotations

import copy
import io

import pytest
import timm
import torch
from test_adapt import named, pictures, train, wrn
from timm.models import FeatureListNet
from timm.utils import ModelEmaV3
from torch import multiprocessing, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.func import functional_call, jacrev
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import sparsetune as st
from sparsetune.backbone.origin import fingerprint
from sparsetune.errors import ConfigError
from sparsetune.sliced.adapt import adapt_, adapted, frozen_values, learned_values, merge_
from sparsetune.spec.learn import Learn

DIMS = ("out", "in", "height", "width")
QUARTER = {dim: Learn(fraction=0.25, dim=dim) for dim in DIMS}
X, Y = pictures()
CPU = torch.device("cpu")


def plain_twin(net: nn.Module) -> nn.Module:
    """A plain net, built anew, that holds an adapted net's whole weights."""
    twin = wrn(1)
    twin.load_state_dict(merge_(copy.deepcopy(net)).state_dict())
    return twin.train(net.training)


def check_gradients(net: nn.Module, plain: nn.Module, **close) -> None:
    """Gradients of an adapted net, after both went backward, are the slices of those of the plain one."""
    found = dict(learned_values(net, adapted(net).plan))
    for part in adapted(net).plan:
        if part.k:
            wanted = plain.get_parameter(part.name).grad.narrow(part.dim, 0, part.k)
            assert found[part.name].grad.dtype == found[part.name].dtype
            torch.testing.assert_close(found[part.name].grad, wanted, **close)


def backward(net: nn.Module, x: torch.Tensor = X) -> None:
    F.cross_entropy(net(x), Y).backward()


def check_intact(net: nn.Module) -> None:
    assert fingerprint(frozen_values(net, adapted(net).plan)) == adapted(net).fingerprint


# --- copies, processes and files --------------------


@pytest.mark.parametrize("dim", DIMS)
def test_a_deep_copy_trains_alone(dim):
    net = adapt_(wrn(), QUARTER[dim]).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    twin = copy.deepcopy(net)
    mine = {value.untyped_storage().data_ptr() for value in [*net.parameters(), *net.buffers()]}
    assert not any(v.untyped_storage().data_ptr() in mine for v in [*twin.parameters(), *twin.buffers()])
    train(twin, torch.optim.SGD(twin.parameters(), 0.1, momentum=0.9), 3)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not torch.equal(twin(X), net(X))
    assert torch.equal(twin(X), plain_twin(twin)(X))
    check_intact(twin)


def worker(nets: list[nn.Module], answers) -> None:
    with torch.no_grad():
        for net in nets:
            for value in net.parameters():
                value.add_(1)
            answers.put(net(X).numpy())


def test_a_spawned_process_gets_the_net_and_shares_its_memory_only_if_told():
    alone, shared = (adapt_(wrn(), QUARTER["out"]).eval() for _ in range(2))
    shared.share_memory()
    moved = copy.deepcopy(alone)
    with torch.no_grad():
        for value in moved.parameters():
            value.add_(1)
    before, after = alone(X), plain_twin(moved)(X)
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    process = context.Process(target=worker, args=([pickled(alone), shared], answers))
    process.start()
    for _ in range(2):
        assert torch.equal(torch.from_numpy(answers.get()), after)
    process.join()
    assert torch.equal(alone(X), before)
    assert torch.equal(shared(X), after)


def pickled(net: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "change",
    [
        copy.deepcopy,
        pickled,
        nn.Module.double,
        lambda n: n.to(memory_format=torch.channels_last),
        lambda n: n,
    ],
    ids=["deepcopy", "pickle", "double", "channels_last", "as it is"],
)
@pytest.mark.parametrize("dim", DIMS)
def test_a_saved_state_dict_holds_learned_bytes_alone(dim, change):
    net = change(adapt_(wrn(), QUARTER[dim]))
    state = net.state_dict()
    held = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in state.values()}
    assert sum(held.values()) == sum(value.numel() * value.element_size() for value in state.values())
    file = io.BytesIO()
    torch.save(state, file)
    assert file.tell() <= sum(held.values()) + 600 * len(state)


@pytest.mark.parametrize("dim", DIMS)
def test_a_state_dict_is_loaded_strictly_and_is_no_copy(dim):
    net, other = adapt_(wrn(), QUARTER[dim]).eval(), adapt_(wrn(), QUARTER[dim]).eval()
    train(net, torch.optim.SGD(net.parameters(), 0.1), 2)
    state = net.state_dict()
    assert list(state) == list(merge_(copy.deepcopy(net)).state_dict())
    other.load_state_dict(state, strict=True)
    assert torch.equal(other(X), plain_twin(net)(X))
    for value in other.state_dict().values():
        value.zero_()
    assert all(not value.any() for value in other.parameters())
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({name: value for name, value in state.items() if name != "fc.bias"})
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(wrn().state_dict())


# --- device, dtype, precision --------------------


def test_a_net_on_the_meta_device_tells_shapes_and_holds_no_memory():
    net = adapt_(wrn(), QUARTER["out"]).to("meta")
    assert net(X.to("meta")).shape == (8, 4)
    assert not any(value.untyped_storage().data_ptr() for value in [*net.parameters(), *net.buffers()])
    assert not any(module.__dict__.get("_sliced_kept") for module in net.modules())


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dim", DIMS)
def test_autocast_has_the_gradients_of_the_plain_net(dim, half):
    net = adapt_(wrn(), QUARTER[dim])
    plain = plain_twin(net)
    for model in (net, plain):
        with torch.autocast("cpu", half):
            y = model(X)
        F.cross_entropy(y.float(), Y).backward()
    check_gradients(net, plain, rtol=0.1, atol=0.02)
    assert {value.dtype for value in net.parameters()} == {torch.float32}


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize(
    "change",
    [nn.Module.double, lambda n: n.double().to(memory_format=torch.channels_last)],
    ids=["double", "channels_last"],
)
def test_a_moved_net_has_the_gradients_of_the_plain_net(change, dim):
    net = adapt_(wrn(), QUARTER[dim])
    plain = change(plain_twin(net))
    change(net)
    for model in (net, plain):
        backward(model, X.double())
    check_gradients(net, plain, rtol=1e-9, atol=1e-9)
    assert not any(buffer.requires_grad for buffer in net.buffers())


def test_a_frozen_net_learns_nothing_until_it_is_thawed():
    net = adapt_(wrn(), QUARTER["out"]).requires_grad_(False)
    assert not net(X).requires_grad
    net.requires_grad_(True)
    plain = plain_twin(net).train()
    for model in (net, plain):
        backward(model)
    check_gradients(net, plain, rtol=1e-4, atol=1e-5)


# --- compilers --------------------


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dim", DIMS)
def test_a_compiled_net_is_one_graph_and_learns_as_the_plain_one(dim, backend):
    torch._dynamo.reset()
    net = adapt_(wrn(), QUARTER[dim]).train()
    compiled = torch.compile(net, fullgraph=True, backend=backend)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(3):
        plain = plain_twin(net)
        optimizer.zero_grad()
        backward(compiled)
        backward(plain)
        check_gradients(net, plain, rtol=1e-3, atol=1e-5)
        optimizer.step()
    check_intact(net)
    net.eval()
    torch.testing.assert_close(compiled(X), plain_twin(net)(X), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dim", DIMS)
def test_an_exported_net_gives_the_same_outputs(dim):
    net = adapt_(wrn(), QUARTER[dim]).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(net, (X,), dynamic_shapes=({0: batch},))
    assert torch.equal(program.module()(X), plain_twin(net)(X))
    assert torch.equal(program.module()(X[:3]), plain_twin(net)(X[:3]))


def test_a_merged_net_is_traced_and_quantised_as_the_plain_one():
    net = adapt_(wrn(), QUARTER["out"]).eval()
    plain = plain_twin(net)
    merged = merge_(net)
    assert torch.equal(torch.jit.trace(merged, X)(X), plain(X))
    quantised = [torch.ao.quantization.quantize_dynamic(model, {nn.Linear})(X) for model in (merged, plain)]
    assert torch.equal(*quantised)
    assert not torch.equal(quantised[0], plain(X))


# --- derivatives --------------------


def test_activation_checkpointing_changes_no_gradient():
    net = adapt_(timm.create_model("resnet18", num_classes=4), QUARTER["out"])
    twin = copy.deepcopy(net)
    twin.set_grad_checkpointing()
    x = pictures(32)[0]
    for model in (net, twin):
        backward(model, x)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(net.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("dim", DIMS)
def test_a_jacobian_is_that_of_the_plain_net(dim):
    net = adapt_(wrn(), QUARTER[dim]).eval().double()
    plain = plain_twin(net).double()
    x = X[:2].double()
    values = {name: value.detach() for name, value in net.named_parameters()}
    found = jacrev(lambda v: functional_call(net, v, (x,)))(values)
    name = "block2.0.conv1.weight"
    part = next(part for part in adapted(net).plan if part.name == name)
    whole = plain.get_parameter(name).detach()
    wanted = jacrev(lambda w: functional_call(plain, {name: w}, (x,)))(whole).narrow(part.dim + 2, 0, part.k)
    torch.testing.assert_close(found[name], wanted, rtol=1e-9, atol=1e-9)


# --- averages --------------------


def test_an_average_is_saved_like_any_net(tmp_path):
    net = st.adapt_(st.create("wrn28_4", depth=10, width=1, num_classes=4), QUARTER["out"])
    average = ModelEmaV3(net, decay=0.5)
    for _ in range(2):
        train(net, torch.optim.SGD(net.parameters(), 0.1), 1)
        average.update(net)
    st.save(average.module, tmp_path / "average.safetensors")
    found = st.load(tmp_path / "average.safetensors")
    assert torch.equal(found(X), average.module.eval()(X))
    assert not torch.equal(found(X), net.eval()(X))


# --- timm's features --------------------


def test_timms_features_are_those_of_the_plain_net():
    plain = timm.create_model("resnet18", num_classes=4).eval()
    net = adapt_(copy.deepcopy(plain), QUARTER["out"])
    x = pictures(32)[0]
    assert torch.equal(net.forward_features(x), plain.forward_features(x))
    found, wanted = (model.forward_intermediates(x) for model in (net, plain))
    assert all(torch.equal(a, b) for a, b in zip([found[0], *found[1]], [wanted[0], *wanted[1]], strict=True))
    assert net.get_classifier() is net.fc
    found, wanted = (FeatureListNet(model, out_indices=(1, 3)).eval()(x) for model in (net, plain))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_a_net_of_features_is_adapted_saved_and_merged(tmp_path):
    make = lambda: timm.create_model("resnet18", features_only=True, out_indices=(1, 3))  # noqa: E731
    torch.manual_seed(0)
    plain = make().eval()
    net = adapt_(copy.deepcopy(plain), QUARTER["out"])
    x = pictures(32)[0]
    sum(y.square().mean() for y in net(x)).backward()
    sum(y.square().mean() for y in plain(x)).backward()
    check_gradients(net, plain, rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        for value in net.parameters():
            value.mul_(0.9)
    st.save(net, tmp_path / "features.safetensors")
    loaded = st.load(tmp_path / "features.safetensors", module=copy.deepcopy(plain))
    assert all(torch.equal(a, b) for a, b in zip(loaded(x), net(x), strict=True))
    again = make()
    again.load_state_dict(merge_(net).state_dict())
    assert all(torch.equal(a, b) for a, b in zip(loaded(x), again.eval()(x), strict=True))


def test_a_classifier_is_not_reset_behind_the_plans_back():
    net = adapt_(wrn(), QUARTER["out"])
    for model in (net, copy.deepcopy(net), pickled(net)):
        with pytest.raises(ConfigError, match=r"^reset_classifier would replace a head that the plan names"):
            model.reset_classifier(7)
    merge_(net).reset_classifier(7)
    assert net.fc.out_features == 7
    assert adapt_(net, QUARTER["out"])(X).shape == (8, 7)


@pytest.mark.parametrize("layer", [nn.Linear(64, 7), nn.Identity()], ids=lambda layer: type(layer).__name__)
def test_a_replaced_layer_is_told_before_a_file_is_written(layer, tmp_path):
    net = adapt_(st.create("wrn28_4", depth=10, width=1, num_classes=4), QUARTER["out"])
    net.fc = layer
    with pytest.raises(ConfigError, match=r"^'fc.weight' is .*, but adapt_ planned \(4, 64\)"):
        st.save(net, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


# --- computed weights --------------------

COMPUTED = [
    named(parametrizations.weight_norm), named(parametrizations.spectral_norm),
    named(parametrizations.orthogonal), named(weight_norm), named(spectral_norm),
    named(prune.l1_unstructured, amount=0.5),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("dim", ["out", "in"])
@pytest.mark.parametrize(("compute", "settings"), COMPUTED)
def test_layers_whose_weight_is_computed_have_the_plain_gradients(compute, settings, dim):
    def build() -> nn.Module:
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4)
        )
        for module in (net[0], net[2]):
            compute(module, name="weight", **settings)
        return net.double().eval()

    plain, net = build(), adapt_(build(), QUARTER[dim])
    x = X.double()
    assert torch.equal(net(x), plain(x))
    for model in (net, plain):
        backward(model, x)
    check_gradients(net, plain, rtol=1e-9, atol=1e-9)
    assert {part.name for part in adapted(net).plan if part.k} == {"4.weight", "4.bias"}
    merge_(net)
    assert torch.equal(net(x), plain(x))
    assert list(net.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize(("compute", "settings"), COMPUTED)
def test_a_learned_slice_is_not_taken_away_in_silence(compute, settings):
    net = adapt_(wrn(), QUARTER["out"])

    def take_away() -> None:
        compute(net.block1[0].conv1, name="weight", **settings)
        net(X)

    with pytest.raises((ConfigError, TypeError), match=r"partly learned|taken away|cannot assign"):
        take_away()


def test_weights_sharded_over_processes_are_refused():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        for shard, settings in ((fully_shard, {}), (FullyShardedDataParallel, {"device_id": CPU})):
            net = adapt_(wrn(), QUARTER["out"])
            with pytest.raises(ConfigError, match="use DistributedDataParallel"):
                shard(net, **settings)(X)
    finally:
        torch.distributed.destroy_process_group()
