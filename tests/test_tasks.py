from __future__ import annotations

import copy
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import sparsetune as st
from sparsetune.adapt import adapted, frozen_values
from sparsetune.errors import ConfigError, DeltaError, UnknownNameError

X = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(7))


def stirred(net: nn.Module, seed: int) -> nn.Module:
    """Give an adapted model other learned values and statistics, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.rand(value.shape, generator=generator), alpha=0.1)
            else:
                value.fill_(seed)
    return net


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny) -> Path:
    """Three deltas over one backbone, with 10, 4 and 7 classes; one over another; one of another slice."""
    folder = tmp_path_factory.mktemp("deltas")
    for name, classes in (("cats", 10), ("cars", 4), ("maps", 7)):
        st.save(stirred(tiny(num_classes=classes), classes), folder / name)
    st.save(tiny(seed=1), folder / "foreign")
    st.save(tiny(st.Learn(fraction=0.5)), folder / "wider")
    return folder


@pytest.fixture
def tasks(folder) -> st.Tasks:
    return st.Tasks.load({name: folder / name for name in ("cats", "cars", "maps")})


def test_each_task_is_the_model_that_was_saved(tasks, folder):
    for name in ("maps", "cats", "cars", "cats"):
        alone = st.load(folder / name)
        assert torch.equal(tasks(name, X), alone(X))
        with tasks.use(name) as net:
            assert all(torch.equal(v, alone.state_dict()[k]) for k, v in net.state_dict().items())
            expected = dict(frozen_values(alone, adapted(alone).plan))
            for part, value in frozen_values(net, adapted(net).plan):
                assert torch.equal(value, expected[part])


def test_a_mixed_batch_equals_one_task_at_a_time_in_its_order(tasks, folder):
    names = ["cats", "cars", "maps", "cars", "cats", "maps", "maps", "cats", "cars", "cats", "cats", "cars"]
    logits = tasks(X, task=names)
    assert logits.shape == (12, 10)
    for name, classes in (("cats", 10), ("cars", 4), ("maps", 7)):
        rows = [row for row, own in enumerate(names) if own == name]
        assert torch.equal(logits[rows, :classes], st.load(folder / name)(X[rows]))
        assert (logits[rows, classes:] == float("-inf")).all()
    assert torch.allclose(logits.softmax(1).sum(1), torch.ones(12))


def test_a_task_takes_the_memory_of_its_delta(tasks):
    plan = adapted(tasks.net).plan
    head = sum(part.learned_numel for part in plan if part.name.startswith("fc."))
    for name, header in tasks.headers.items():
        with tasks.use(name):
            own = tasks.switch.current.nbytes
        assert own == plan.delta_bytes + 4 * (head // 10 * header.num_classes - head)


def test_what_files_say_of_their_tensors_is_held_once(tasks, folder):
    first = {id(entry) for entry in tasks.headers["cats"].entries}
    for name, header in tasks.headers.items():
        assert header == st.inspect(folder / name)
        assert {entry.name for entry in header.entries if id(entry) not in first} <= {"fc.weight", "fc.bias"}


def test_add_and_remove(tasks, folder):
    assert tasks.names == ("cats", "cars", "maps")
    tasks.remove("cars")
    assert tasks.names == ("cats", "maps")
    with pytest.raises(UnknownNameError, match=r"task 'cars' is unknown; did you mean cats or maps"):
        tasks("cars", X)
    tasks.add("cars.v2", folder / "cars")
    assert torch.equal(tasks("cars.v2", X), st.load(folder / "cars")(X))
    with pytest.raises(ConfigError, match="task 'maps' is there already; remove it first"):
        tasks.add("maps", folder / "maps")


def test_refusals_name_what_is_known(tasks, folder):
    with pytest.raises(UnknownNameError, match="known: cars, cats, maps"):
        tasks("xyzzy", X)
    with pytest.raises(UnknownNameError):
        tasks(X, task=["xyzzy"] * 12)
    with pytest.raises(ConfigError, match="there are 2 tasks for 12 rows; give one a row"):
        tasks(X, task=["cats", "cars"])
    with pytest.raises(DeltaError, match=r"foreign stands on seed 1 .*load those of one backbone together"):
        tasks.add("foreign", folder / "foreign")
    with pytest.raises(DeltaError, match=r"wider stands on .*fraction=0\.5"):
        tasks.add("wider", folder / "wider")
    with pytest.raises(ConfigError, match="Tasks is for evaluation"):
        tasks.train()
    with pytest.raises(ConfigError, match="no deltas were given"):
        st.Tasks.load({})
    assert tasks.names == ("cats", "cars", "maps")


def test_another_dtype_keeps_tasks_apart(tasks, folder):
    tasks.double()
    for name in ("cars", "cats"):
        assert torch.equal(tasks(name, X.double()), st.load(folder / name).double()(X.double()))


def test_threads_take_turns(tasks, folder):
    expected = {name: st.load(folder / name)(X) for name in tasks.names}
    wrong = []

    def ask(name: str) -> None:
        for _ in range(20):
            if not torch.equal(tasks(name, X), expected[name]):
                wrong.append(name)

    threads = [threading.Thread(target=ask, args=(name,)) for name in tasks.names * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_gradient_of_the_input_may_be_taken(tasks, folder):
    x, y = X.clone().requires_grad_(), X.clone().requires_grad_()
    tasks("maps", x).sum().backward()
    st.merge_(st.load(folder / "maps"))(y).sum().backward()
    assert (x.grad - y.grad).abs().max() <= 1e-5 * y.grad.abs().max()
    assert not any(parameter.requires_grad for parameter in tasks.parameters())


@pytest.mark.parametrize(
    "learn",
    [
        st.Learn(filters=0),
        st.Learn(fraction=1.0),
        st.Learn(fraction=0.5, dim="in"),
        st.Learn(fraction=0.25, norm=False, head=False),
        st.Learn(fraction=0.5, frozen="zero"),
    ],
    ids=repr,
)
def test_every_way_of_slicing(tmp_path, tiny, learn):
    for seed in (1, 2):
        st.save(stirred(tiny(learn), seed), tmp_path / str(seed))
    tasks = st.Tasks.load({"a": tmp_path / "1", "b": tmp_path / "2"})
    for name, file in (("b", "2"), ("a", "1"), ("b", "2")):
        assert torch.equal(tasks(name, X), st.load(tmp_path / file)(X))


def test_a_users_own_module(tmp_path):
    def make() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)
        )

    for seed in (1, 2):
        net = st.adapt_(make(), st.Learn(fraction=0.25), st.Backbone.from_module(make()))
        st.save(stirred(net, seed), tmp_path / str(seed))
    tasks = st.Tasks.load({"a": tmp_path / "1", "b": tmp_path / "2"}, module=make())
    for name, file in (("b", "2"), ("a", "1")):
        assert torch.equal(tasks(name, X), st.load(tmp_path / file, module=make())(X))


def test_the_callers_model_is_copied_whole(tasks):
    net = copy.deepcopy(tasks.net)
    before = net(X)
    with tasks.use("cars"):
        pass
    assert torch.equal(net(X), before)
