"""A loop of one's own over two processes sends what is learned; frozen values never travel."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from test_adapt import wrn
from torch import Tensor, multiprocessing, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from sparsetune.sliced.adapt import UNSENT, adapt_, adapted, frozen_values, merge_
from sparsetune.spec.learn import Learn

PROCESSES, STEPS = 2, 3
LEARNS = {
    "filters": Learn(fraction=0.25),
    "inputs": Learn(fraction=0.25, dim="in"),
    "norm frozen": Learn(filters=1, norm=False),
}
X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def without_statistics() -> nn.Module:
    """A net whose every picture is computed alone, so that a batch may be shared out."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2),
        nn.Flatten(), nn.Linear(72, 4),
    )  # fmt: skip
    return net.double()


def train(net: nn.Module, model: nn.Module, x: Tensor) -> list[Tensor]:
    """Take some steps; return the gradients of the last."""
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return [parameter.grad for parameter in net.parameters()]


def part_in_training(rank: int, folder: Path) -> None:
    """One of two processes; each leaves what it saw in a file."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
    seen = {}
    for name, learn in LEARNS.items():
        seen[name] = {"shared": share_a_batch(learn, rank), "sent": tell_what_is_sent(learn, rank)}
    torch.save(seen, folder / str(rank))
    dist.destroy_process_group()


def share_a_batch(learn: Learn, rank: int) -> dict:
    net = adapt_(without_statistics(), learn)
    parallel = DistributedDataParallel(net)
    reduced: list[int] = []

    def count(_, bucket):
        reduced.append(bucket.buffer().nbytes)
        return allreduce_hook(None, bucket)

    parallel.register_comm_hook(None, count)
    gradients = train(net, parallel, X.double().chunk(PROCESSES)[rank])
    return {"gradients": gradients, "state": net.state_dict(), "reduced": sum(reduced)}


def tell_what_is_sent(learn: Learn, rank: int) -> dict:
    """Give each process values of its own, then see whose are there after construction and a pass."""
    net = adapt_(wrn(), learn)
    with torch.no_grad():
        for value in [*net.parameters(), *net.buffers()]:
            value.fill_(rank + 1)
    parallel = DistributedDataParallel(net)
    constructed = {name: value.double().mean().item() for name, value in net.state_dict().items()}
    with torch.no_grad():
        for value in net.buffers():
            value.fill_(rank + 1)
    parallel.eval()(X)  # sends buffers first
    frozen = {name: value.unique() for name, value in frozen_values(net, adapted(net).plan)}
    return {"constructed": constructed, "frozen": frozen, "statistics": net.bn1.running_var.unique()}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(part_in_training, (folder,), PROCESSES)
    return [torch.load(folder / str(rank)) for rank in range(PROCESSES)]


@pytest.mark.parametrize("learn", LEARNS)
def test_gradients_and_values_are_those_of_one_process(seen, learn):
    net = adapt_(without_statistics(), LEARNS[learn])
    gradients = train(net, net, X.double())
    for process in seen:
        found = process[learn]["shared"]
        torch.testing.assert_close(found["gradients"], gradients, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found["state"], dict(net.state_dict()), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("learn", LEARNS)
def test_bytes_reduced_are_those_of_the_learned_gradients(seen, learn):
    made = adapted(adapt_(without_statistics(), LEARNS[learn])).plan
    assert 0 < made.learned_parameters < made.total_parameters
    for process in seen:
        assert process[learn]["shared"]["reduced"] == STEPS * 8 * made.learned_parameters


@pytest.mark.parametrize("learn", LEARNS)
def test_frozen_values_never_travel(seen, learn):
    for rank, process in enumerate(seen):
        sent = process[learn]["sent"]
        assert len(sent["frozen"]) > 5
        assert all(value.tolist() == [rank + 1] for value in sent["frozen"].values())  # its own
        assert set(sent["constructed"].values()) == {1.0}  # the first process': slices and statistics
        assert sent["statistics"].tolist() == [1.0]


@pytest.mark.parametrize("learn", LEARNS.values(), ids=LEARNS)
def test_names_that_others_left_out_stay_left_out(learn):
    net = wrn()
    before = set(net.__dict__)
    frozen = {name for name, _ in adapt_(net, learn).named_buffers()} - set(net.state_dict())
    assert set(getattr(net, UNSENT)) == frozen
    assert set(getattr(copy.deepcopy(net), UNSENT)) == frozen
    assert set(merge_(net).__dict__) == before
    setattr(net, UNSENT, ["fc.bias"])
    assert set(getattr(adapt_(net, learn), UNSENT)) == {"fc.bias", *frozen}
    assert getattr(merge_(net), UNSENT) == ["fc.bias"]
