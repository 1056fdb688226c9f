"""``Learn(dimensions=d)``: a vector spread over weights, against plain autograd through a dense matrix."""

from __future__ import annotations

import copy
import math
import pickle
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import nn
from torch.nn import functional as F

import sparsetune as st
from sparsetune.backbone import draw_below, draw_signs
from sparsetune.delta import read_header
from sparsetune.delta.values import soup, stack
from sparsetune.errors import ConfigError, DeltaError
from sparsetune.sliced.spread import moved, places


@pytest.fixture
def net():
    return st.create("wrn28_4", depth=10, width=1, num_classes=3, seed=0)


def matrix(name, seed, shape, dimensions):
    """The map from vector to weights, ``(n, d)``, entry by entry."""
    count, factor = math.prod(shape), 4 / math.sqrt(math.prod(shape[1:]))
    offsets = draw_below(seed, f"{name}\0offsets", -(-count // dimensions), dimensions).tolist()
    signs = draw_signs(seed, f"{name}\0signs", count).tolist()
    found = torch.zeros(count, dimensions, dtype=torch.float64)
    for weight in range(count):
        row, place = divmod(weight, dimensions)
        found[weight, (place + offsets[row]) % dimensions] = signs[weight] * factor
    return found


def by_hand(plain, net):
    """Each weight of a plain model as the dense matrix moves it; differentiable in the vectors given."""
    made = st.adapted(net).plan
    state = dict(plain.state_dict())
    vectors = {}
    for part in made:
        if part.dimensions:
            vector = dict(net.named_parameters())[f"{part.name}_theta"].detach().double().requires_grad_()
            dense = matrix(part.name, part.projection_seed, part.shape, part.dimensions)
            state[part.name] = state[part.name].double() + (dense @ vector).view(part.shape)
            vectors[f"{part.name}_theta"] = vector
        elif part.k:
            state[part.name] = dict(net.named_parameters())[part.name].detach().double()
    return {name: v.double() if v.is_floating_point() else v for name, v in state.items()}, vectors


def stirred(net, seed=0):
    """Give every vector other values than its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in net.named_parameters():
            if name.endswith("_theta"):
                value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    return net


def test_it_starts_as_the_plain_model_and_learns_so_many_values(net):
    plain, x = copy.deepcopy(net).eval(), torch.randn(2, 3, 32, 32)
    st.adapt_(net, st.Learn(dimensions=50, norm=False, head=False))
    assert torch.equal(net.eval()(x), plain(x))
    with torch.no_grad():
        assert torch.equal(net(x), plain(x))
    assert sum(value.numel() for value in net.parameters()) == 50
    assert st.adapted(net).plan.learned_parameters == 50


@pytest.mark.parametrize("learn", [{}, {"norm": False, "head": False}, {"projection_seed": 7}])
def test_outputs_and_gradients_are_those_of_plain_autograd(net, learn):
    plain = copy.deepcopy(net)
    st.adapt_(net, st.Learn(dimensions=300, **learn))
    stirred(net).eval()
    x, y = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    loss = F.cross_entropy(net(x), y)
    loss.backward()
    values, vectors = by_hand(plain, net)
    wanted = F.cross_entropy(torch.func.functional_call(plain.double().eval(), values, (x.double(),)), y)
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-5)
    grads = {name: p.grad for name, p in net.named_parameters()}
    for name, vector in vectors.items():
        assert torch.allclose(grads[name].double(), vector.grad, atol=1e-5, rtol=1e-4), name


@settings(max_examples=60, deadline=None)
@given(filters=some.integers(1, 20), inputs=some.integers(1, 12), data=some.data())
def test_the_map_keeps_proportions_and_its_gradient_is_its_transpose(filters, inputs, data):
    shape, count = (filters, inputs), filters * inputs
    dimensions = data.draw(some.integers(1, count))
    where = places("w", 3, count, dimensions, torch.device("cpu"))
    dense = matrix("w", 3, shape, dimensions)
    assert torch.allclose(dense.t() @ dense, torch.diag((dense != 0).sum(0) * 16 / inputs).double())
    sizes = Counter((dense != 0).sum(0).tolist())
    assert max(sizes) - min(sizes) <= 1
    vector = torch.randn(dimensions, dtype=torch.float64, requires_grad=True)
    frozen, grad = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    whole = moved(frozen, vector, where)
    assert torch.allclose(whole, frozen + (dense @ vector).view(shape))
    whole.backward(grad)
    assert torch.allclose(vector.grad, dense.t() @ grad.flatten())
    assert torch.autograd.gradcheck(lambda v: moved(frozen, v, where), vector)
    assert torch.autograd.gradgradcheck(lambda v: moved(frozen, v, where) ** 2, vector)


SIGNS = [1, 1, 1, -1, -1, -1, -1, 1, 1, -1, 1, 1]
OFFSETS = [706, 388, 925, 437]


def test_where_the_values_go_is_the_same_for_ever():
    """From the raw words of Philox: a bit a sign, lowest first; a word an offset."""
    assert draw_signs(0, "w\0signs", 12).tolist() == SIGNS
    assert draw_below(0, "w\0offsets", 4, 1000).tolist() == OFFSETS
    assert draw_signs(1, "w\0signs", 12).tolist() != SIGNS


def test_dimensions_are_shared_out_evenly_as_far_as_a_layer_has_weights(net):
    made = st.plan(net, st.Learn(dimensions=5000, norm=False, head=False))
    shares = {part.name: part.dimensions for part in made if part.dimensions}
    assert sum(shares.values()) == 5000
    sizes = {part.name: part.numel for part in made}
    full = {name for name, share in shares.items() if share == sizes[name]}
    assert full == {name for name in shares if sizes[name] <= min(shares[n] for n in shares.keys() - full)}
    open_ = {share for name, share in shares.items() if name not in full}
    assert max(open_) - min(open_) <= 1
    assert "fc.weight" in shares
    whole = st.plan(net, st.Learn(dimensions=5000))
    assert {part.name for part in whole if part.dimensions} == shares.keys() - {"fc.weight"}
    assert not any(part.dimensions for part in made if len(part.shape) == 1)


def test_amounts_by_layer_stand_beside_other_kinds(net):
    learn = st.Learn(dimensions={"block3": 40}, rank={"block2": 1}, fraction={"block1": 0.5}, norm=False)
    plain = copy.deepcopy(net).eval()
    st.adapt_(net, learn)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(net.eval()(x), plain(x))
    kinds = Counter(name.rpartition("_")[2] for name, _ in net.named_parameters())
    assert kinds["theta"] == sum(1 for name in dict(plain.named_parameters()) if is_weight(plain, name))
    assert st.adapted(net).plan.learn == learn


def is_weight(net, name):
    return name.startswith("block3") and isinstance(net.get_submodule(name.rpartition(".")[0]), nn.Conv2d)


def test_a_delta_gives_the_model_back_and_says_so(net, tmp_path):
    st.adapt_(net, st.Learn(dimensions=60, head=False, projection_seed=4))
    stirred(net)
    path = tmp_path / "delta.safetensors"
    st.save(net, path)
    header = read_header(path)
    assert header.learn == st.Learn(dimensions=60, head=False, projection_seed=4)
    again = st.load(path)
    for name, value in st.merge_(net).state_dict().items():
        assert torch.equal(value, st.merge_(copy.deepcopy(again)).state_dict()[name]), name


def test_merged_it_is_plain_and_has_the_same_outputs(net):
    st.adapt_(net, st.Learn(dimensions=60))
    stirred(net).eval()
    x = torch.randn(2, 3, 16, 16)
    before, keys = net(x), [*st.create("wrn28_4", depth=10, width=1, num_classes=3, seed=1).state_dict()]
    plain = st.merge_(net)
    assert torch.equal(plain(x), before)
    assert [*plain.state_dict()] == keys


def test_it_survives_copies_pickles_moves_and_casts(net):
    st.adapt_(net, st.Learn(dimensions=60))
    stirred(net).eval()
    x = torch.randn(2, 3, 16, 16)
    wanted = net(x)
    assert torch.equal(copy.deepcopy(net)(x), wanted)
    assert torch.equal(pickle.loads(pickle.dumps(net))(x), wanted)
    assert torch.equal(net.to(memory_format=torch.channels_last)(x).contiguous(), wanted) or torch.allclose(
        net(x), wanted, atol=1e-4
    )
    assert torch.allclose(copy.deepcopy(net).double()(x.double()).float(), wanted, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(net(x).float(), wanted, atol=0.2)
    compiled = torch.func.vmap(lambda one: net(one[None])[0])(x)
    assert torch.allclose(compiled, wanted, atol=1e-4)


def test_what_is_kept_without_gradients_follows_the_vector(net):
    st.adapt_(net, st.Learn(dimensions=60))
    net.eval()
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        first = net(x)
        assert torch.equal(net(x), first)
        stirred(net)
        second = net(x)
        assert not torch.equal(second, first)
    assert torch.equal(net(x), second)


def test_tasks_switch_between_vectors(net, tmp_path):
    x, wanted = torch.randn(2, 3, 16, 16), {}
    for task in ("one", "two"):
        own = st.adapt_(
            st.create("wrn28_4", depth=10, width=1, num_classes=3, seed=0), st.Learn(dimensions=60)
        )
        stirred(own, len(task) + (task == "two")).eval()
        wanted[task] = own(x)
        st.save(own, tmp_path / f"{task}.safetensors")
    tasks = st.Tasks.load({task: tmp_path / f"{task}.safetensors" for task in wanted})
    for task in ("one", "two", "one"):
        with tasks.using(task) as model, torch.no_grad():
            assert torch.equal(model(x), wanted[task])


def test_an_average_of_vectors_is_that_of_the_weights_and_none_stack(net, tmp_path):
    paths = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    merged = []
    for seed, path in enumerate(paths):
        own = st.adapt_(
            st.create("wrn28_4", depth=10, width=1, num_classes=3, seed=0), st.Learn(dimensions=60)
        )
        st.save(stirred(own, seed), path)
        merged.append(st.merge_(own).state_dict())
    soup(paths, tmp_path / "soup.safetensors")
    found = st.merge_(st.load(tmp_path / "soup.safetensors")).state_dict()
    for name, value in found.items():
        if value.is_floating_point():
            assert torch.allclose(value, (merged[0][name] + merged[1][name]) / 2, atol=1e-6)
    with pytest.raises(DeltaError, match="do not stack"):
        stack(paths, tmp_path / "stack.safetensors")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"dimensions": 0}, "dimensions 0"),
        ({"dimensions": 2.5}, "dimensions 2.5"),
        ({"dimensions": 9, "dim": "in"}, "dim 'in' is of slices, and a vector has none"),
        ({"dimensions": 9, "frozen": "zero"}, "leaves nothing that a vector could add to"),
        ({"dimensions": 9, "fraction": 0.1}, "each say how much to learn"),
        ({"dimensions": 9, "projection_seed": -1}, "projection_seed '-1'"),
    ],
)
def test_a_mistake_is_one_sentence(settings, told):
    with pytest.raises(ConfigError) as raised:
        st.Learn(**settings)
    assert told in str(raised.value)


@pytest.mark.parametrize("amount", [10**9, {"block1": 10**6}])
def test_more_dimensions_than_weights_are_refused(net, amount):
    with pytest.raises(ConfigError, match=r"is more than the .* weights of"):
        st.plan(net, st.Learn(dimensions=amount))
