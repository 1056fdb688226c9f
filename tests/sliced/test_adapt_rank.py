"""``Learn(rank=r)``: a low-rank sum over each layer's frozen weight, from plan to file and back."""

import copy
import math
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sparsetune as st
from sparsetune.backbone.seeding import Law, draw
from sparsetune.delta.container import write_delta
from sparsetune.delta.values import soup, stack
from sparsetune.errors import ConfigError, DeltaError
from sparsetune.sliced.adapt import UNSENT, adapt_, adapted, frozen_values, learned_values, merge_


@pytest.fixture
def net():
    return st.create("test_resnet", num_classes=3, seed=0)


def train(net, steps=3, seed=0):
    """A few steps; every factor leaves its start."""
    torch.manual_seed(seed)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    x, y = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net.train()(x), y).backward()
        optimizer.step()
    return net.eval()


def by_hand(net, plain):
    """The plain model with ``W + B A`` in place, from the factors in ``net``'s state."""
    state, whole = net.state_dict(), dict(plain.state_dict())
    for name, value in state.items():
        if name.endswith("_A"):
            base = name.removesuffix("_A")
            product = state[base + "_B"] @ value.flatten(1)
            whole[base] = plain.state_dict()[base] + product.view(plain.state_dict()[base].shape)
        elif not name.endswith("_B"):
            whole[name] = value
    plain.load_state_dict(whole)
    return plain.eval()


def test_a_fresh_adapted_model_has_the_plain_outputs(net):
    x = torch.randn(2, 3, 32, 32)
    plain = copy.deepcopy(net).eval()
    adapt_(net.eval(), st.Learn(rank=2))
    assert torch.equal(net(x), plain(x))
    with torch.no_grad():
        assert torch.equal(net(x), plain(x))


def test_the_start_comes_from_the_seeded_generator(net):
    adapt_(net, st.Learn(rank=2))
    a = net.conv1.weight_A if hasattr(net.conv1, "weight_A") else net.conv1[0].weight_A
    name = next(name for name, value in net.named_parameters() if value is a)
    bound = math.sqrt(27 / a[0].numel())
    assert torch.equal(a, draw(0, name, a.shape, Law("uniform", -bound, bound)))
    assert a.flatten(1).norm(dim=1).mean().item() == pytest.approx(3, rel=0.15)
    assert not any(value.any() for name, value in net.named_parameters() if name.endswith("_B"))


def test_the_plan_counts_what_is_learned(net):
    made = st.plan(net, st.Learn(rank=4))
    adapt_(net, st.Learn(rank=4))
    assert made.learned_parameters == sum(p.numel() for p in net.parameters())
    for part in made:
        if part.layer and len(part.shape) == 4:
            o, i, h, w = part.shape
            r = min(4, o, i * h * w)
            assert (part.rank, part.learned_numel) == (r, r * (o + i * h * w))
    values = {name: tuple(value.shape) for name, value in learned_values(net, made)}
    assert values == {name: shape for part in made for name, shape in part.learned.items()}
    assert set(values) <= set(net.state_dict())


def test_norm_head_and_layers_are_as_with_slices(net):
    parts = {
        part.name: part for part in st.plan(net, st.Learn(rank=1, layers=["layer2"], norm=False, head=False))
    }
    assert all(
        part.rank == 1 for name, part in parts.items() if name.startswith("layer2") and len(part.shape) == 4
    )
    assert not any(part.learned for name, part in parts.items() if not name.startswith("layer2"))


def test_the_rank_is_capped_at_what_is_useful():
    net = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(4, 2))
    parts = st.plan(net, st.Learn(rank=100, depthwise_sums=True)).parts
    assert [part.rank for part in parts if part.layer] == [8, 0, 4, 0]
    frozen = st.plan(net, st.Learn(rank=100))
    assert [part.rank for part in frozen if part.layer] == [0, 0, 4, 0]
    assert not [name for part in frozen.parts[:2] for name in part.learned]


KINDS = {
    "plain": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2, stride=2),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, groups=4, padding="same"),
    "circular": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
    "one dimension": lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 5, 3)),
    "linear": lambda: nn.Sequential(nn.Flatten(1), nn.Linear(4 * 64, 9)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [1, 3])
def test_gradients_are_those_of_autograd_through_the_sum(kind, rank):
    torch.manual_seed(0)
    net = nn.Sequential(KINDS[kind](), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2)).double()
    x = torch.randn(3, 4, 8, 8, dtype=torch.float64)
    net(x)
    plain = copy.deepcopy(net)
    adapt_(net, st.Learn(rank=rank, depthwise_sums=True))
    for name, value in net.named_parameters():
        if name.endswith("_B"):
            nn.init.normal_(value)
    net(x).square().sum().backward()
    factors = {name: value for name, value in net.named_parameters() if name[-2:] in ("_A", "_B")}
    held = {name: value.detach().clone().requires_grad_() for name, value in factors.items()}
    values = dict(plain.named_parameters())
    for name in [name for name in held if name.endswith("_A")]:
        base = name.removesuffix("_A")
        values[base] = values[base] + torch.einsum("or,r...->o...", held[base + "_B"], held[name])
    torch.func.functional_call(plain, values, (x,)).square().sum().backward()
    assert held
    for name, value in held.items():
        assert (factors[name].grad - value.grad).abs().max() <= 1e-10 * value.grad.abs().max(), name


def test_attention_learns_sums_of_its_projections():
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    wanted = net(x).detach()
    adapt_(net, st.Learn(rank=2, head=False))
    assert torch.allclose(net(x), wanted, atol=1e-6)
    net(x).square().sum().backward()
    assert net.self_attn.in_proj_weight_B.grad.any()
    assert net.linear1.weight_B.grad.any()


def test_frozen_weights_never_move(net):
    adapt_(net, st.Learn(rank=2))
    before = {name: value.clone() for name, value in frozen_values(net, adapted(net).plan)}
    train(net)
    assert all(torch.equal(before[name], value) for name, value in frozen_values(net, adapted(net).plan))
    assert all(value.any() for name, value in net.named_parameters() if name.endswith("_B"))


def test_outputs_follow_the_factors(net):
    """Kept sums never outlive a change, in training, by hand, or by a state that is loaded."""
    plain, x = copy.deepcopy(net), torch.randn(2, 3, 32, 32)
    adapt_(net, st.Learn(rank=2))
    start = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        first = net.eval()(x)
    for seed in range(2):
        train(net, seed=seed)
        with torch.no_grad():
            assert torch.allclose(net(x), by_hand(net, copy.deepcopy(plain))(x), atol=1e-5)
            for _, value in net.named_parameters():
                value.data.mul_(1.1)
            found = net(x)
        assert torch.equal(found, net(x).detach())
        assert torch.allclose(found, by_hand(net, copy.deepcopy(plain))(x), atol=1e-5)
    net.load_state_dict(start)
    with torch.no_grad():
        assert torch.equal(net(x), first)


def test_merging_gives_the_plain_model_with_the_same_outputs(net):
    plain, x = copy.deepcopy(net), torch.randn(2, 3, 32, 32)
    train(adapt_(net, st.Learn(rank=2)))
    wanted, expected = net(x).detach(), by_hand(net, copy.deepcopy(plain)).state_dict()
    merge_(net)
    assert type(net) is type(plain)
    assert not hasattr(net, UNSENT)
    assert torch.equal(net(x), wanted)
    assert list(net.state_dict()) == list(plain.state_dict())
    for name, value in net.state_dict().items():
        assert value.dtype == plain.state_dict()[name].dtype
        assert torch.allclose(value, expected[name], atol=1e-6)
    assert all(p.requires_grad for p in net.parameters())


SCRIPT = """
import sys, torch, sparsetune as st
x = torch.load(sys.argv[2])
torch.save(st.load(sys.argv[1])(x), sys.argv[3])
"""


def test_a_file_gives_the_very_logits_in_a_new_process(net, tmp_path):
    train(adapt_(net, st.Learn(rank=2)))
    x = torch.randn(2, 3, 32, 32)
    path = tmp_path / "a.safetensors"
    st.save(net, path)
    torch.save(x, tmp_path / "x")
    subprocess.run([sys.executable, "-c", SCRIPT, path, tmp_path / "x", tmp_path / "y"], check=True)
    assert torch.equal(torch.load(tmp_path / "y"), net(x))
    again = st.load(path)
    for name, value in net.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    header = st.verify(path)
    assert (header.format, header.learn) == (3, st.Learn(rank=2))
    assert path.stat().st_size <= 1.2 * adapted(net).plan.delta_bytes + 4096


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_factors_are_written_in_fewer_bits(net, tmp_path, dtype):
    train(adapt_(net, st.Learn(rank=2)))
    x = torch.randn(8, 3, 32, 32)
    st.save(net, tmp_path / "a.safetensors", dtype=dtype)
    again = st.load(tmp_path / "a.safetensors")
    assert torch.allclose(again(x), net(x), atol=0.05)


def test_specs_without_a_rank_are_written_as_before(net, tmp_path):
    adapt_(net, st.Learn(filters=1))
    st.save(net, tmp_path / "a.safetensors")
    assert st.inspect(tmp_path / "a.safetensors").format == 1
    assert "rank" not in st.Learn(filters=1).to_json()


def test_a_delta_with_a_factor_of_another_shape_is_refused(net, tmp_path):
    adapt_(net, st.Learn(rank=2))
    path = tmp_path / "a.safetensors"
    st.save(net, path)
    values = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    tensors = {e.name: values[e.name].detach() for e in st.inspect(path).entries}
    name = next(name for name in tensors if name.endswith("_B"))
    write_delta(path, st.inspect(path), {**tensors, name: tensors[name][:, :1]})
    with pytest.raises(DeltaError, match=f"it holds '{name}' with shape"):
        st.load(path)


def test_tasks_and_ensembles_hold_sums(net, tmp_path):
    base, x = net, torch.randn(4, 3, 32, 32)
    logits = {}
    for seed in (0, 1):
        made = train(adapt_(copy.deepcopy(base), st.Learn(rank=2)), seed=seed)
        st.save(made, tmp_path / f"{seed}.safetensors")
        logits[seed] = made(x).detach()
    paths = {str(seed): tmp_path / f"{seed}.safetensors" for seed in (0, 1)}
    tasks = st.Tasks.load(paths)
    with torch.no_grad():
        for name in ("0", "1", "0"):
            assert torch.equal(tasks(name, x), logits[int(name)])
    ensemble = st.Ensemble.load(list(paths.values()))
    assert torch.allclose(ensemble(x).view(2, 4, 3), torch.stack([logits[0], logits[1]]), atol=1e-6)
    with pytest.raises(DeltaError, match="low-rank sums"):
        soup(list(paths.values()), tmp_path / "soup.safetensors")
    with pytest.raises(DeltaError, match="low-rank sums"):
        stack(list(paths.values()), tmp_path / "stack.safetensors")


def test_copies_and_pickles_are_adapted_alike(net):
    x = torch.randn(2, 3, 32, 32)
    train(adapt_(net, st.Learn(rank=2)))
    with torch.no_grad():
        wanted = net(x)
        for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert torch.equal(again(x), wanted)
            for _, value in again.named_parameters():
                value.mul_(2)
            assert not torch.equal(again(x), wanted)
            assert torch.equal(net(x), wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_sums_move_to_another_dtype(net, dtype):
    x = torch.randn(2, 3, 32, 32)
    train(adapt_(net, st.Learn(rank=2)))
    with torch.no_grad():
        wanted = net(x)
        found = net.to(dtype)(x.to(dtype))
    assert found.dtype == dtype
    assert torch.allclose(found.float(), wanted, atol=1e-4 if dtype == torch.float64 else 0.1)
    assert all(value.dtype == dtype for value in net.parameters())


def test_autocast_gives_gradients_in_the_factors_dtype(net):
    adapt_(net, st.Learn(rank=2))
    with torch.autocast("cpu", torch.bfloat16):
        net(torch.randn(2, 3, 32, 32)).float().square().sum().backward()
    assert all(value.grad.dtype == torch.float32 for value in net.parameters())


def test_frozen_weights_are_not_sent_between_processes(net):
    adapt_(net, st.Learn(rank=2))
    buffers = {name for name, _ in net.named_buffers()} - set(net.state_dict())
    assert buffers
    assert set(getattr(net, UNSENT)) == buffers


def test_shared_weights_share_their_factors():
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 2))
    net[2].weight = net[0].weight
    adapt_(net, st.Learn(rank=1))
    assert net[2].weight_A is net[0].weight_A
    merge_(net)
    assert net[2].weight is net[0].weight


def test_a_compiled_model_trains_and_follows(net):
    torch._dynamo.reset()
    adapt_(net, st.Learn(rank=2))
    x = torch.randn(2, 3, 32, 32)
    compiled = torch.compile(net.eval(), backend="aot_eager", fullgraph=True)
    for _ in range(2):
        wanted = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
        found = torch.autograd.grad(compiled(x).square().sum(), list(net.parameters()))
        for one, other in zip(found, wanted, strict=True):
            assert torch.allclose(one, other, rtol=1e-3, atol=1e-3 * other.abs().max().item())
        with torch.no_grad():
            assert torch.allclose(compiled(x), net(x), atol=1e-5)
            for value in net.parameters():
                value.add_(0.01)


def test_a_factor_that_is_gone_is_named(net):
    adapt_(net, st.Learn(rank=2))
    module = next(module for module in net.modules() if "weight_A" in module._parameters)
    del module._parameters["weight_A"]
    with pytest.raises(ConfigError, match="'weight_A' of this Conv2d was taken away since adapt_"):
        net(torch.randn(1, 3, 32, 32))


def test_gradients_a_picture_are_those_of_single_pictures():
    net = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Flatten(), nn.Linear(8 * 9, 3), nn.Linear(3, 2))
    adapt_(net.double(), st.Learn(rank=1))
    with torch.no_grad():
        for value in net.parameters():
            value.add_(0.1)
    values = {name: value.detach() for name, value in net.named_parameters()}
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)

    def loss(values, picture):
        return torch.func.functional_call(net, values, (picture[None],)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(values, x)
    for row, picture in enumerate(x):
        net.zero_grad()
        net(picture[None]).square().sum().backward()
        for name, value in net.named_parameters():
            torch.testing.assert_close(found[name][row], value.grad, rtol=1e-9, atol=1e-9)


def test_a_checkpointed_model_has_the_same_gradients(net):
    adapt_(net, st.Learn(rank=2))
    twin = copy.deepcopy(net)
    twin.set_grad_checkpointing()
    x = torch.randn(2, 3, 32, 32)
    for model in (net, twin):
        model(x).square().sum().backward()
    for one, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_a_kept_sum_can_be_part_of_a_graph(net):
    """Where nothing is learned any more, the gradient of the pictures may still be wanted."""
    train(adapt_(net, st.Learn(rank=2))).requires_grad_(False)
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    with torch.inference_mode():
        wanted = net(x)
    found = net(x)
    assert torch.equal(found, wanted)
    saliency = torch.autograd.grad(found.square().sum(), x)[0]
    merge_(net)
    assert torch.equal(saliency, torch.autograd.grad(net(x).square().sum(), x)[0])


def test_exported_and_traced_models_compute_the_same(net):
    train(adapt_(net, st.Learn(rank=2)))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = net(x)
        exported = torch.export.export(net, (x,)).module()
        assert torch.allclose(exported(x), wanted, atol=1e-5)
        assert torch.allclose(torch.jit.trace(net, x)(x), wanted, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sums_are_formed_in_their_own_dtype_whatever_the_callers_autocast(net, dtype):
    plain, x = copy.deepcopy(net), torch.randn(2, 3, 32, 32)
    train(adapt_(net, st.Learn(rank=2)))
    factors = {name: value.clone() for name, value in net.named_parameters()}
    with torch.autocast("cpu", dtype), torch.no_grad():
        rounded = net(x)
    with torch.no_grad():
        exact = net(x)  # raised where the kept sums had the caller's dtype
    with torch.autocast("cpu", dtype):
        merge_(net)
    for name, value in net.state_dict().items():
        if f"{name}_A" in factors:
            a, b, frozen = factors[f"{name}_A"], factors[f"{name}_B"], plain.get_parameter(name)
            wanted = torch.addmm(frozen.flatten(1), b, a.flatten(1)).view(frozen.shape)
            assert torch.equal(value, wanted)
            assert value.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(net(x), exact)
        with torch.autocast("cpu", dtype):
            assert torch.equal(net(x), rounded)


def test_sums_kept_in_inference_or_autocast_can_be_trained_on(net):
    adapt_(net, st.Learn(rank=2))
    twin, x = copy.deepcopy(net), torch.randn(2, 3, 32, 32)
    for mode in (torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with mode, torch.no_grad():
            net.eval()(x)
    assert all(
        torch.equal(a, b) for a, b in zip(train(net).parameters(), train(twin).parameters(), strict=True)
    )


def test_a_kept_sum_follows_a_frozen_weight_that_is_put_elsewhere(net):
    adapt_(net, st.Learn(rank=2))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = net.eval()(x)
        rest = net.get_buffer("conv1.0.weight_frozen")
        rest.data = 2 * rest
        assert not torch.equal(net(x), before)
