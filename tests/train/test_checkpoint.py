from __future__ import annotations

import copy
import json
from dataclasses import replace
from itertools import pairwise

import pytest
import timm.optim
import torch
from forge import STOPPED
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from sparsetune.errors import SparsetuneError, StorageError
from sparsetune.host import digest_of
from sparsetune.runs.run import run
from sparsetune.train.checkpoint import (
    Position,
    random_state,
    read_checkpoint,
    read_history,
    write_checkpoint,
)
from sparsetune.train.history import Epoch

CONFIG = {"lr": 0.1, "data": "digits"}


class Held:
    """Anything with a state."""

    def __init__(self, state=None):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def learn(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()


def test_position_and_random_state_come_back(tmp_path):
    path = tmp_path / "c"
    history = [{"epoch": n, "lr": 0.1, "train_loss": 2.0, "train_top1": 0.5} for n in (1, 2, 3)]
    position = Position(3, 7, 1.25, 99, history)
    torch.manual_seed(5)
    write_checkpoint(path, CONFIG, position, {}, [random_state()])
    expected = torch.rand(4)
    torch.manual_seed(6)
    assert read_checkpoint(path, CONFIG, {}) == position
    assert torch.equal(torch.rand(4), expected)
    assert read_history(path) == [Epoch(**record) for record in history]


def test_nested_state_comes_back_bit_for_bit(tmp_path):
    shared = torch.randn(3, 4)
    state = {
        "tensor": shared,
        "view": shared[1:],
        "transposed": shared.t(),
        "half": shared.to(torch.bfloat16),
        "empty": torch.empty(0, 2),
        "scalar": torch.tensor(3),
        1: {"nested": [None, True, 2, 0.1, "text", [shared[0]]], "tensor": 1},
    }
    kept, back = copy.deepcopy(state), Held()
    write_checkpoint(tmp_path / "c", CONFIG, Position(), {"held": Held(state)}, [random_state()])
    read_checkpoint(tmp_path / "c", CONFIG, {"held": back})
    assert list(back.state) == list(kept)
    for name in ("tensor", "view", "transposed", "half", "empty", "scalar"):
        assert back.state[name].dtype == kept[name].dtype
        assert torch.equal(back.state[name], kept[name])
    assert back.state[1]["tensor"] == 1
    assert back.state[1]["nested"][:5] == [None, True, 2, 0.1, "text"]
    assert torch.equal(back.state[1]["nested"][5][0], shared[0])


@pytest.mark.parametrize(
    "name", ["momentum", "nesterov", "adamw", "adafactorbv", "adan", "kron", "lamb", "lion", "madgrad"]
)
def test_an_optimiser_goes_on_as_if_never_stopped(tmp_path, name):
    # adan and lamb count their steps outside the state of their parameters, kron has a generator of its own,
    # and adafactorbv a dtype among its settings
    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = nn.Linear(3, 2)
        return net, timm.optim.create_optimizer_v2(net, opt=name, lr=0.01, weight_decay=0.1)

    straight, optimizer = start()
    learn(straight, optimizer, 4)
    stopped, optimizer = start()
    learn(stopped, optimizer, 2)
    write_checkpoint(
        tmp_path / "c", CONFIG, Position(), {"net": stopped, "optimizer": optimizer}, [random_state()]
    )
    resumed, optimizer = start()
    read_checkpoint(tmp_path / "c", CONFIG, {"net": resumed, "optimizer": optimizer})
    for step in (2, 3):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        resumed(x).square().sum().backward()
        optimizer.step()
    assert torch.equal(resumed.weight, straight.weight)
    assert torch.equal(resumed.bias, straight.bias)


def test_other_settings_are_refused_by_name(tmp_path):
    write_checkpoint(tmp_path / "c", CONFIG, Position(), {}, [random_state()])
    with pytest.raises(StorageError, match=r"lr = 0\.1, not 0\.2; resume with its settings"):
        read_checkpoint(tmp_path / "c", {**CONFIG, "lr": 0.2}, {})


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_cut_off_file_is_one_sentence(tmp_path, length):
    path = tmp_path / "c"
    write_checkpoint(path, CONFIG, Position(), {"net": nn.Linear(3, 2)}, [random_state()])
    path.write_bytes(path.read_bytes()[:length])
    for read in (lambda: read_checkpoint(path, CONFIG, {}), lambda: read_history(path)):
        with pytest.raises(StorageError, match="is not an intact checkpoint") as caught:
            read()
        assert len(str(caught.value).splitlines()) == 1


def test_nothing_is_left_beside_it(tmp_path):
    for _ in range(3):
        write_checkpoint(tmp_path / "c", CONFIG, Position(), {"net": nn.Linear(3, 2)}, [random_state()])
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.fixture
def stopped(tmp_path):
    """A run that has finished an epoch and stopped in the next one; and its settings."""
    folder = tmp_path / "run"
    settings = replace(STOPPED, config=STOPPED.config.but(epochs=3))
    for step in range(6):  # of four an epoch
        run(settings, folder, resume=step > 0, time_budget=0.0)
    return settings, folder


def test_a_flipped_bit_in_a_checkpoint_is_found(stopped):
    """In values, names or settings: the run is not gone on with, and says what to do."""
    settings, folder = stopped
    path = folder / "checkpoint.safetensors"
    good = path.read_bytes()
    for place in range(9, len(good), len(good) // 60):
        path.write_bytes(good[:place] + bytes([good[place] ^ 8]) + good[place + 1 :])
        with pytest.raises(SparsetuneError):
            run(settings, folder, resume=True)
    path.write_bytes(good)
    assert run(settings, folder, resume=True).finished


def forgeries(value):
    """Other texts in place of what a checkpoint says of itself."""
    position, state = value["position"], value["state"]
    yield from ("[]", "NaN", "{}", "[" * 100_000, "null", '"text"')
    for broken in (
        {**value, "config": []},
        {**value, "position": {**position, "epoch": -1}},
        {**value, "position": {**position, "epoch": "one"}},
        {**value, "position": {**position, "step": 2**70}},
        {**value, "position": {**position, "history": [{}] * position["epoch"]}},
        {**value, "position": {**position, "history": None}},
        {**value, "position": {**position, "other": 1}},
        {**value, "position": {"epoch": 1}},
        {**value, "state": None},
        {**value, "state": {"mapping": [["random", []]]}},
        {**value, "state": {"mapping": [1, 2]}},
        {**value, "state": {"tensor": "a thousand"}},
        {**value, "state": {"mapping": [[k, {"mapping": []}] for k, _ in state["mapping"]]}},
        {**value, "state": {"mapping": [[k, [[]]] for k, _ in state["mapping"]]}},
        {**value, "state": {"mapping": [[k, None] for k, _ in state["mapping"]]}},
        {
            **value,
            "state": {
                "mapping": [[k, v if k != "random" else [{"tensor": "1"}]] for k, v in state["mapping"]]
            },
        },
    ):
        yield json.dumps(broken)


def test_a_forged_checkpoint_is_one_sentence(stopped):
    settings, folder = stopped
    path = folder / "checkpoint.safetensors"
    with safe_open(path, framework="pt") as file:
        value = json.loads(file.metadata()["sparsetune.training"])
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}  # which may map the file
    for text in forgeries(value):
        save_file(tensors, path, {"sparsetune.training": text, "sparsetune.digest": digest_of(tensors, text)})
        with pytest.raises(SparsetuneError) as error:
            run(settings, folder, resume=True)
        assert str(error.value).isprintable(), text[:200]


def test_a_state_of_another_optimiser_is_refused(tmp_path):
    """``load_state_dict`` takes these, and the next step fails."""

    def made(*sizes: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        net = nn.Sequential(*(nn.Linear(each, out) for each, out in pairwise(sizes)))
        return net, torch.optim.AdamW(net.parameters(), lr=0.1)

    net, optimizer = made(3, 2)
    learn(net, optimizer, 2)

    good = optimizer.state_dict()
    groups, state = good["param_groups"], good["state"]
    bad = [
        {**good, "param_groups": []},
        {**good, "param_groups": [{**groups[0], "params": [0, 0]}]},
        {**good, "param_groups": [{**groups[0], "lr": "fast"}]},
        {**good, "param_groups": [{**groups[0], "betas": [0.9]}]},
        {**good, "state": {**state, 2: state[0]}},
        {**good, "state": {**state, 0: {**state[0], "exp_avg": torch.zeros(3, 7)}}},
        {**good, "state": {**state, 0: {**state[0], "exp_avg": torch.zeros(0)}}},
        {**good, "state": {0: 3}},
        {**good, "state": None},
    ]
    path = tmp_path / "c"
    for each in bad:
        write_checkpoint(path, CONFIG, Position(), {"optimizer": Held(each)}, [random_state()])
        with pytest.raises(StorageError, match="is not an intact checkpoint"):
            read_checkpoint(path, CONFIG, {"optimizer": made(3, 2)[1]})
    write_checkpoint(path, CONFIG, Position(), {"optimizer": optimizer}, [random_state()])
    read_checkpoint(path, CONFIG, {"optimizer": made(3, 2)[1]})
    with pytest.raises(StorageError, match="is not an intact checkpoint"):
        read_checkpoint(path, CONFIG, {"optimizer": made(3, 5, 2)[1]})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epoch": 9}, "stands at step 2 of 4 after 9 of 3 epochs"),
        ({"step": 5}, "stands at step 5 of 4 after 1 of 3 epochs"),
        ({"history": [{"epoch": 1, "lr": 0.1, "train_loss": 1.0, "train_top1": 0.5}]}, "has epochs without"),
    ],
)
def test_a_position_that_a_training_cannot_be_at_is_refused(stopped, change, said):
    settings, folder = stopped
    path = folder / "checkpoint.safetensors"
    with safe_open(path, framework="pt") as file:
        value = json.loads(file.metadata()["sparsetune.training"])
    tensors = load_file(path)
    value["position"] |= change
    if "epoch" in change:
        (record,) = value["position"]["history"]
        value["position"]["history"] = [{**record, "epoch": number} for number in range(1, 10)]
    text = json.dumps(value)
    save_file(tensors, path, {"sparsetune.training": text, "sparsetune.digest": digest_of(tensors, text)})
    with pytest.raises(StorageError, match=said):
        run(settings, folder, resume=True)
