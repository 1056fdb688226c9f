from __future__ import annotations

import copy
import os
import pickle
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from forge import X, in_threads, moved, stirred
from torch import nn

import sparsetune as st
from sparsetune.errors import ConfigError, DataError, DeltaError, UnknownNameError
from sparsetune.sliced.adapt import adapted, frozen_values


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


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_tasks_that_learned_the_classifier_alone(name, tmp_path):
    """Nothing but the classifier is in these files, running statistics included."""
    x = torch.randn(3, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    learn = st.Learn(filters=0, norm=False, norm_stats="frozen")
    files = {}
    for classes in (10, 4):
        net = moved(st.adapt_(st.create(name, num_classes=classes), learn), classes)
        st.save(net, tmp_path / str(classes))
        files[str(classes)] = tmp_path / str(classes)
    tasks = st.Tasks.load(files)
    for task, path in files.items():
        assert torch.equal(tasks(task, x), st.load(path)(x))
    assert torch.equal(st.Ensemble.load([files["10"]] * 2)(x)[:3], tasks("10", x))


def test_a_task_that_is_used_knows_its_own_classes(tiny, tmp_path):
    """``evaluate`` refuses data of other classes than the model was trained on."""
    data = st.open_data("digits", test_limit=20)
    names = {"digits": data.classes, "letters": tuple("abcdefghij")}
    for seed, (name, classes) in enumerate(names.items()):
        st.save(stirred(tiny(), seed), tmp_path / name, classes=classes, preprocessing=data.preprocessing)
    for order in ("digits", "letters"), ("letters", "digits"):
        tasks = st.Tasks.load({name: tmp_path / name for name in order})
        with tasks.use("letters") as net, pytest.raises(DataError, match="trained on the classes a, b, c"):
            st.evaluate(net, data)
        with tasks.use("digits") as net:
            found = st.evaluate(net, data).scores
        assert found == st.evaluate(st.load(tmp_path / "digits"), data).scores


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
    assert torch.equal(tasks(X, task=np.array(names)), logits)
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


def damage_head(net):
    net.fc.weight.data.zero_()


def damage_statistics(net):
    for module in net.modules():
        module.training = True
    net(X + 3)


def damage_by_init(net):
    for value in net.parameters():
        nn.init.normal_(value)


def damage_by_state(net):
    net.load_state_dict({name: value + 1 for name, value in net.state_dict().items()})


def damage_by_training(net):
    optimizer = torch.optim.SGD(net.requires_grad_().parameters(), 0.1)
    net(X).square().sum().backward()
    optimizer.step()


def damage_by_swapping(net):
    for module in net.modules():
        for value in module._parameters.values():
            if value is not None:
                value.data = value.data + 1
    net.bn1.weight = nn.Parameter(net.bn1.weight * 2)


def damage_by_moving(net):
    net.double()


@pytest.mark.parametrize(
    "damage",
    [
        damage_head,
        damage_statistics,
        damage_by_init,
        damage_by_state,
        damage_by_training,
        damage_by_swapping,
        damage_by_moving,
    ],
    ids=lambda each: each.__name__,
)
def test_whatever_is_done_to_a_lent_model_reaches_no_task(tasks, folder, damage):
    expected = {name: st.load(folder / name)(X) for name in ("cars", "maps")}
    for then in (["cars", "maps"], ["maps", "cars"]):
        with tasks.use("cars") as net:
            damage(net)
        for name in then:
            logits = tasks(name, X)
            assert torch.equal(logits, expected[name])
            assert not logits.requires_grad


def test_a_lent_model_refuses_training_mode_and_its_copy_does_not(tasks, folder):
    with tasks.use("cars") as net:
        with pytest.raises(
            ConfigError, match="shared by several deltas, for evaluation; train a delta by itself"
        ):
            net.train()
        assert not net.eval().training
        mine = copy.deepcopy(net)
    assert mine.train() is mine
    assert mine.training
    assert not any(module.training for module in tasks.net.modules())
    mine(X)
    assert torch.equal(tasks("cars", X), st.load(folder / "cars")(X))


def test_written_frozen_values_are_told(tasks):
    with tasks.use("cars") as net, torch.no_grad():
        dict(frozen_values(net, adapted(net).plan))["conv1.weight"].add_(1)
    for name in ("cars", "cats"):
        with pytest.raises(
            ConfigError, match=r"frozen values of the model .* were written; load the deltas anew"
        ):
            tasks(name, X)


def test_one_task_inside_another(tasks, folder):
    expected = {name: st.load(folder / name)(X) for name in tasks.names}
    with tasks.use("cats") as net:
        assert torch.equal(tasks("cars", X), expected["cars"])
        assert torch.equal(net(X), expected["cats"])
        with tasks.use("cats") as again:
            assert torch.equal(again(X), expected["cats"])
        with pytest.raises(ConfigError, match="in use with another one"), tasks.use("maps"):
            pass
        assert torch.equal(net(X), expected["cats"])
    with tasks.use("maps") as net:
        assert torch.equal(net(X), expected["maps"])


@pytest.mark.parametrize(
    "learn",
    [st.Learn(fraction=0.25), st.Learn(fraction=1.0), st.Learn(rank=2)],
    ids=repr,
)
def test_channels_last_changes_no_task(tmp_path, tiny, learn):
    for seed in (1, 2):
        st.save(stirred(tiny(learn), seed), tmp_path / str(seed))
    tasks = st.Tasks.load({"a": tmp_path / "1", "b": tmp_path / "2"}).to(memory_format=torch.channels_last)
    assert tasks.net.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    x = X.to(memory_format=torch.channels_last)
    for name, file in (("b", "2"), ("a", "1"), ("b", "2")):
        with tasks.use(name) as net:
            state = st.load(tmp_path / file).state_dict()
            assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
        torch.testing.assert_close(tasks(name, x), st.load(tmp_path / file)(X))
    tasks.to(torch.float64).to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(tasks("a", X.double()), st.load(tmp_path / "1").double()(X.double()))


def test_no_rows_give_no_logits(tasks):
    none = X[:0]
    assert [tasks(name, none).shape for name in tasks.names] == [(0, 10), (0, 4), (0, 7)]
    assert tasks(none, task=[]).shape == (0, 10)
    tasks.remove("cats")
    assert tasks(none, task=()).shape == (0, 7)
    assert tasks.double()("cars", none.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("words", "rows", "said"),
    [
        (("cats",), {}, r"1 arguments were given without task; call tasks\('cats', x\)"),
        ((X,), {}, "1 arguments were given without task"),
        (("cats", X), {"task": ["cats"] * 12}, "2 arguments were given beside task"),
        ((), {"task": ["cats"]}, "0 arguments were given beside task"),
        ((X, "cats"), {}, "the pictures are a str, not a tensor"),
        (("cats", X.tolist()), {}, "the pictures are a list, not a tensor"),
        (("cats", torch.tensor(1.0)), {}, r"pictures of shape \(\) are no batch"),
        ((3, X), {}, "task 3 is no name; give one of cats, cars, maps"),
        ((X,), {"task": "cats"}, "task 'cats' is no list of names"),
        ((X,), {"task": 3}, "task 3 is no list of names"),
        ((X,), {"task": [3] * 12}, "task 3 is no name"),
    ],
)
def test_wrong_arguments_are_one_sentence(tasks, words, rows, said):
    with pytest.raises(ConfigError, match=said):
        tasks(*words, **rows)


def test_what_is_no_mapping_of_names_is_refused(tasks, folder):
    with pytest.raises(ConfigError, match="list is no mapping; pass one such as"):
        st.Tasks.load([folder / "cats"])
    with pytest.raises(ConfigError, match="the name 3 of a delta is not a text"):
        tasks.add(3, folder / "cats")
    for name in tasks.names:
        tasks.remove(name)
    with pytest.raises(DeltaError, match="foreign stands on seed 1"):
        tasks.add("foreign", folder / "foreign")
    with pytest.raises(ConfigError, match="there is no task; add one"):
        tasks(X[:0], task=[])


def test_a_value_shared_by_two_layers_is_switched_in_both(tmp_path):
    def make() -> nn.Module:
        torch.manual_seed(3)
        net = nn.Sequential(
            nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 4)
        )
        net[3].weight = net[1].weight
        return net

    x = torch.randn(5, 6)
    for seed in (1, 2):
        st.save(stirred(st.adapt_(make(), st.Learn(filters=0)), seed), tmp_path / str(seed))
    tasks = st.Tasks.load({"a": tmp_path / "1", "b": tmp_path / "2"}, module=make())
    for name, file in (("b", "2"), ("a", "1"), ("b", "2")):
        assert torch.equal(tasks(name, x), st.load(tmp_path / file, module=make())(x))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda tasks: pickle.loads(pickle.dumps(tasks))])
def test_a_copy_answers_alike_and_is_its_own(tasks, folder, copied):
    again = copied(tasks)
    for name in tasks.names:
        assert torch.equal(again(name, X), tasks(name, X))
    again.remove("cats")
    again.add("dogs", folder / "cars")
    assert torch.equal(again("dogs", X), tasks("cars", X))
    assert tasks.names == ("cats", "cars", "maps")
    with again.use("maps") as net, tasks.use("cats") as other:
        assert torch.equal(net(X), tasks("maps", X))
        assert net is not other


@pytest.mark.parametrize("model", ["test_resnet", "torchvision/resnet18"])
def test_threads_load_at_once(tmp_path, model):
    path = tmp_path / "a.safetensors"
    st.save(st.adapt_(st.create(model, num_classes=3), st.Learn(fraction=0.1)), path)
    wanted, found = st.merge_(st.load(path)).state_dict(), []
    before = dict(os.environ)

    def load():
        found.append(st.merge_(st.load(path)).state_dict())

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(torch.equal(value, each[name]) for each in found for name, value in wanted.items())
    assert dict(os.environ) == before


@pytest.mark.slow
def test_threads_load_add_ask_and_remove_for_a_minute(tasks, folder):
    """Every answer is that of its task, whatever the other seven threads do meanwhile."""
    files = {"cats": "cats", "cars": "cars", "maps": "maps"}
    wanted = {name: tasks(name, X) for name in files}
    ends, wrong = time.monotonic() + 60, []

    def work(number):
        chance = np.random.default_rng(number)
        while time.monotonic() < ends and not wrong:
            try:
                name = str(chance.choice([*files]))
                what = chance.integers(4)
                if what == 0:
                    own = f"{name} of {number}"
                    tasks.add(own, folder / files[name])
                    same = torch.equal(tasks(own, X), wanted[name])
                    tasks.remove(own)
                elif what == 1:
                    with tasks.use(name) as net:
                        same = torch.equal(net(X), wanted[name])
                elif what == 2:
                    same = torch.equal(tasks(name, X), wanted[name])
                else:
                    same = torch.equal(st.load(folder / files[name])(X), wanted[name])
                if not same:
                    wrong.append(name)
            except Exception as error:
                wrong.append(error)

    in_threads(work, 8)
    assert wrong == []
