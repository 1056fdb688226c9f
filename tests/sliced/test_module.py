"""A sliced module is the plain one, whatever is done to its slice."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Conv2dSame, StdConv2d
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from sparsetune.errors import ConfigError
from sparsetune.sliced.kind import KIND, frozen_rest
from sparsetune.sliced.module import partly_, unslice_
from sparsetune.sliced.slices import Slice

KINDS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def sliced(plain: nn.Module, dim: int = 0, k: int = 2, leaves: tuple[str, ...] | None = None) -> nn.Module:
    """A copy of ``plain`` of which the first ``k`` indices along ``dim`` are learned.

    Unless ``leaves`` says otherwise, a bias is sliced with its filters, and learned whole in other slices.
    """
    module = copy.deepcopy(plain)
    for leaf in leaves or (("weight", "bias") if dim == 0 else ("weight",)):
        whole, axis = module._parameters[leaf], dim if leaf == "weight" else 0
        if whole is not None and k < whole.shape[axis]:
            learned, rest = whole.detach().split([k, whole.shape[axis] - k], axis)
            partly_(module, leaf, Slice(axis), (nn.Parameter(learned.clone()),), rest.clone())
    return module


def merged(module: nn.Module) -> nn.Module:
    """A plain copy with a sliced module's values."""
    plain = copy.deepcopy(module)
    for part in plain.modules():
        for leaf in list(part.__dict__.get(KIND, {})):
            unslice_(part, leaf)
    return plain


@st.composite
def convolutions(draw):
    """A plain convolution of any kind, an input for it, a sliced dimension and ``k``."""
    rank = draw(st.sampled_from([1, 2, 2, 2, 3]))
    each = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(rank))  # noqa: E731
    kernel, dilation, groups = each(1, 4), each(1, 2), draw(st.integers(1, 3))
    padding = draw(st.sampled_from(["same", "valid", each(0, 3)]))
    stride = (1,) * rank if padding == "same" else each(1, 3)
    inputs, outputs = groups * draw(st.integers(1, 2)), groups * draw(st.integers(2, 4))
    plain = KINDS[rank](
        inputs, outputs, kernel, stride, padding, dilation, groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    ).double()  # fmt: skip
    reach = max(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    size = [max(4, reach) + draw(st.integers(0, 2)) for _ in range(rank)]
    x = torch.randn(draw(st.integers(1, 2)), inputs, *size, dtype=torch.float64)
    if draw(st.booleans()):
        x = x[0]
    elif rank == 2 and draw(st.booleans()):
        plain, x = plain.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    dim = draw(st.integers(0, rank + 1))
    return plain, x, dim, draw(st.integers(1, plain.weight.shape[dim]))


def check_gradients(plain: nn.Module, ours: nn.Module, x: torch.Tensor, dim: int) -> None:
    """Outputs and gradients of a sliced module are those of the plain one, where it learns."""
    x, x_ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, y_ours = plain(x), ours(x_ours)
    torch.testing.assert_close(y_ours, y, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(y)
    y.backward(upstream)
    y_ours.backward(upstream)
    torch.testing.assert_close(x_ours.grad, x.grad, rtol=1e-10, atol=1e-10)
    for name, parameter in ours.named_parameters():
        axis = dim if name == "weight" else 0
        wanted = plain.get_parameter(name).grad.narrow(axis, 0, parameter.shape[axis])
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@settings(max_examples=200, deadline=None)
@given(convolutions())
def test_any_convolution_has_the_plain_gradients(case):
    plain, x, dim, k = case
    check_gradients(plain, sliced(plain, dim, k), x, dim)


@pytest.mark.parametrize("leaves", [("weight",), ("bias",), ("weight", "bias")], ids="+".join)
@pytest.mark.parametrize(
    "plain",
    [nn.Linear(6, 5), nn.Conv2d(6, 5, 3), Conv2dSame(6, 5, 3, stride=2), StdConv2d(6, 5, 3)],
    ids=lambda m: type(m).__name__,
)
@pytest.mark.parametrize("dim", [0, 1])
def test_layers_with_a_forward_of_their_own_have_the_plain_gradients(plain, leaves, dim):
    plain = copy.deepcopy(plain).double()
    x = torch.randn(2, 3, 6) if isinstance(plain, nn.Linear) else torch.randn(2, 6, 8, 8)
    check_gradients(plain, sliced(plain, dim, 2, leaves), x.double(), dim)


def test_a_sliced_module_is_one_of_its_class():
    plain = nn.Conv2d(4, 8, 3)
    ours = sliced(plain, k=3)
    assert isinstance(ours, nn.Conv2d)
    assert type(ours).__name__ == "Conv2d"
    assert torch.equal(ours.weight, plain.weight)
    assert ours.weight.shape == (8, 4, 3, 3)
    assert repr(ours) == repr(plain)[:-1] + ", learned: weight (3, 4, 3, 3), bias (3,))"
    assert {name: value.shape for name, value in ours.state_dict().items()} == {
        "weight": (3, 4, 3, 3),
        "bias": (3,),
    }
    assert type(merged(ours)) is nn.Conv2d
    assert merged(ours).__dict__.keys() == plain.__dict__.keys()


# --- the slice and its rest stay one weight --------------------


def network(dim: int = 0) -> nn.Module:
    """Sliced convolutions of several kinds, batch norms, and a sliced linear map, in evaluation mode."""
    torch.manual_seed(0)
    net = nn.Sequential(
        sliced(nn.Conv2d(4, 8, 3, padding=1), dim), nn.BatchNorm2d(8), nn.ReLU(),
        sliced(nn.Conv2d(8, 6, 1, bias=False), dim), sliced(Conv2dSame(6, 6, 3, groups=2), dim), nn.Flatten(),
        sliced(nn.Linear(6 * 36, 5), dim),
    )  # fmt: skip
    return net.eval()


X = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(1))


def learned(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in net.named_parameters()}


def loss(net: nn.Module, values: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return functional_call(net, values, (x,)).square().mean()


def move_in_place(net):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(0.5)


def move_through_data(net):
    for parameter in net.parameters():
        parameter.data.add_(0.1)


def copy_into_data(net):
    for parameter in net.parameters():
        parameter.data.copy_(torch.rand_like(parameter))


def replace_data(net):
    for parameter in net.parameters():
        parameter.data = parameter.data + 0.1


def replace_then_move(net):
    replace_data(net)
    move_in_place(net)


def replace_by_another_view_of_the_same_memory(net):
    parameter = net[0]._parameters["weight"]
    parameter.data = parameter.data.transpose(2, 3)


def swap_and_swap_back(net):
    kept = [parameter.data for parameter in net.parameters()]
    replace_data(net)
    net(X)
    for parameter, value in zip(net.parameters(), kept, strict=True):
        parameter.data = value


def move_the_memory_of_all(net):
    for value in [*net.parameters(), *net.buffers()]:
        value.data = value.data.clone()
    move_in_place(net)


def vector_to_parameters(net):
    vector = nn.utils.parameters_to_vector(net.parameters())
    nn.utils.vector_to_parameters(vector * 0.5, net.parameters())


def load(net):
    net.load_state_dict({name: value + 0.1 for name, value in net.state_dict().items()})


def load_assigning(net):
    net.load_state_dict({name: value + 0.1 for name, value in net.state_dict().items()}, assign=True)


def load_assigning_then_move(net):
    load_assigning(net)
    move_in_place(net)


def to_half_and_back(net):
    net.half().float()
    move_in_place(net)


def to_meta_and_back(net):
    state = {name: value.clone() for name, value in net.state_dict().items()}
    rests = [value.clone() for value in net.buffers()]
    net.to("meta").to_empty(device="cpu")
    net.load_state_dict(state)
    for new, value in zip(net.buffers(), rests, strict=True):
        new.copy_(value)


def channels_last(net):
    net.to(memory_format=torch.channels_last)
    move_in_place(net)


def replace_then_to(net):
    replace_data(net)
    net.to(torch.float32)
    move_in_place(net)


def share_memory(net):
    net.share_memory()
    move_in_place(net)


CHANGES = [
    move_in_place, move_through_data, copy_into_data, replace_data, replace_then_move, swap_and_swap_back,
    replace_by_another_view_of_the_same_memory, move_the_memory_of_all, vector_to_parameters, load,
    load_assigning, load_assigning_then_move, to_half_and_back, to_meta_and_back, channels_last,
    replace_then_to, share_memory,
]  # fmt: skip


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_the_output_follows_the_slice(change, dim):
    net = network(dim)
    plain = merged(network(dim))
    change(net)
    # The plain net with slices put in by hand, not by the code under test.
    with torch.no_grad():
        for name, value in net.named_parameters():
            whole = plain.get_parameter(name)
            axis = dim if value.dim() > 1 and value.shape != whole.shape else 0
            whole.narrow(axis, 0, value.shape[axis]).copy_(value)
        for name, value in plain.named_buffers():
            value.copy_(net.get_buffer(name))
    close = (
        torch.equal
        if change not in (to_half_and_back, channels_last)
        else (lambda a, b: torch.allclose(a, b, atol=1e-3))
    )
    assert close(net(X), plain(X))
    with torch.no_grad():
        assert close(net(X), plain(X))


@pytest.mark.parametrize("change", [swap_and_swap_back, replace_then_to], ids=lambda f: f.__name__)
def test_values_set_aside_are_kept(change):
    net = network()
    before = learned(net)
    aside = {name: parameter.data for name, parameter in net.named_parameters()}
    change(net)
    assert all(torch.equal(aside[name], value) for name, value in before.items())


def test_no_buffer_holds_learned_values():
    """Averages of models copy buffers from one to the other; that must not touch what they have learned."""
    one, other = network(), network()
    move_in_place(one)
    before = learned(one)
    for mine, theirs in zip(one.buffers(), other.buffers(), strict=True):
        mine.copy_(theirs)
    assert all(torch.equal(value, before[name]) for name, value in one.named_parameters())


def test_a_slice_of_filters_is_never_copied():
    net = network()
    for _ in range(2):
        for module in (net[0], net[3]):
            with torch.no_grad():
                assert module.weight.data_ptr() == module._parameters["weight"].data_ptr()
        net.half().float()
    net = copy.deepcopy(net)
    with torch.no_grad():
        assert net[0].weight.data_ptr() == net[0]._parameters["weight"].data_ptr()


def test_a_step_between_forward_and_backward_is_refused_as_ever():
    net = sliced(nn.Conv2d(4, 8, 3))
    y = net(X.clone().requires_grad_()).sum()
    move_in_place(net)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_a_buffer_synchronised_between_two_forwards_is_no_change():
    """Distributed training broadcasts buffers on each forward, two of which may precede one backward."""
    net = sliced(nn.Conv2d(4, 8, 3))
    first = net(X)
    for value in net.buffers():
        value.copy_(value.clone())
    (first + net(X)).sum().backward()


@pytest.mark.parametrize("dim", [0, 1])
def test_a_frozen_slice_has_no_gradient(dim):
    net = network(dim).requires_grad_(False)
    assert not net(X).requires_grad


# --- copies --------------------


def through_pickle(net):
    return pickle.loads(pickle.dumps(net))


def through_torch(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, through_pickle, through_torch], ids=lambda f: f.__name__
)
def test_a_copy_is_equal_and_independent(duplicate, dim):
    net = network(dim)
    before = net(X).detach()
    twin = duplicate(net)
    assert torch.equal(twin(X), before)
    assert list(twin.state_dict()) == list(net.state_dict())
    move_in_place(twin)
    assert torch.equal(net(X), before)
    assert torch.equal(twin(X), merged(twin)(X))
    assert not torch.equal(twin(X), before)


def test_a_slice_shared_by_two_modules_stays_shared():
    one = sliced(nn.Linear(5, 5), k=2)
    two = nn.Linear(5, 5)
    for leaf in ("weight", "bias"):
        partly_(two, leaf, Slice(0), (one._parameters[leaf],), frozen_rest(one, leaf))
    net = nn.Sequential(one, two)
    for same in (net, copy.deepcopy(net), copy.deepcopy(net).double().float()):
        move_in_place(same)
        assert len(list(same.parameters())) == 2
        x = torch.randn(3, 5)
        assert torch.equal(same[0](x), same[1](x))


# --- torch.func, compilers, checkpointing --------------------


@pytest.mark.parametrize("dim", [0, 1])
def test_functional_call_computes_with_the_values_given(dim):
    net = network(dim)
    other = {name: value + 0.1 for name, value in learned(net).items()}
    twin = copy.deepcopy(net)
    twin.load_state_dict(other, strict=False)
    assert torch.equal(functional_call(net, other, (X,)), merged(twin)(X))
    assert torch.equal(net(X), merged(net)(X))


@pytest.mark.parametrize("dim", [0, 1])
def test_functional_gradients_are_those_of_backward(dim):
    net = network(dim)
    values = learned(net)
    found = grad(lambda v: loss(net, v, X))(values)
    net(X).square().mean().backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)
    each = vmap(grad(lambda v, x: loss(net, v, x[None])), (None, 0))(values, X)
    for name, value in found.items():
        torch.testing.assert_close(each[name].mean(0), value)


@pytest.mark.parametrize("dim", [0, 1])
def test_stacked_models_compute_side_by_side(dim):
    one, two = network(dim), network(dim)
    move_in_place(two)
    stacked = {name: torch.stack([value, learned(two)[name]]) for name, value in learned(one).items()}
    y = vmap(lambda v: functional_call(one, v, (X,)))(stacked)
    torch.testing.assert_close(y, torch.stack([one(X), two(X)]))
    y = vmap(lambda *state: functional_call(one, state, (X,)))(*stack_module_state([one, two]))
    torch.testing.assert_close(y, torch.stack([one(X), two(X)]))


@pytest.fixture
def one_process():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def train(net, forward=None):
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        (forward or net)(X).square().mean().backward()
        optimizer.step()
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


@pytest.mark.parametrize("dim", [0, 1])
def test_distributed_training_is_that_of_one_process(one_process, dim):
    net = network(dim)
    twin = copy.deepcopy(net)
    parallel = DistributedDataParallel(twin)

    def twice(x):
        with parallel.no_sync():  # or the second forward sends buffers, which torch 2.10 refuses
            first = parallel(x)
        return (first + parallel(x)) / 2

    train(net)
    train(twin, twice)
    for parameter, same in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter, same)
    assert torch.equal(merged(twin.eval())(X), twin(X))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_changes_nothing(reentrant):
    net = network()
    twin = copy.deepcopy(net)
    train(net)
    train(twin, lambda x: twin[6](checkpoint(twin[:6], x.clone().requires_grad_(), use_reentrant=reentrant)))
    for parameter, same in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(parameter, same)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dim", [0, 1])
def test_compiled_training_is_that_of_eager(backend, dim):
    torch._dynamo.reset()
    net = network(dim)
    compiled = copy.deepcopy(net)
    wanted = train(net)
    found = train(compiled, torch.compile(compiled, fullgraph=True, backend=backend))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)
    torch.testing.assert_close(merged(compiled.eval())(X), net.eval()(X))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("dim", [0, 1])
def test_export_gives_the_same_outputs(dim, strict):
    net = network(dim)
    program = torch.export.export(net, (X,), strict=strict)
    assert torch.equal(program.module()(X), net(X))


def test_a_whole_weight_cannot_take_the_place_of_a_slice():
    conv = nn.Conv2d(3, 8, 3)
    whole = conv.weight.detach()
    partly_(conv, "weight", Slice(0), (nn.Parameter(whole[:4].clone()),), whole[4:].clone())
    with pytest.raises(ConfigError, match="'weight' of this Conv2d is partly learned and cannot be set"):
        conv.weight = nn.Parameter(whole)
    conv.weight = nn.Parameter(torch.zeros(4, 3, 3, 3))
    assert torch.equal(conv.weight, torch.cat([torch.zeros(4, 3, 3, 3), whole[4:]]))
