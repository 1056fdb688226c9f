from __future__ import annotations

import copy

import pytest
import timm.optim
import torch
from torch import nn

from sparsetune.errors import StorageError
from sparsetune.train.checkpoint import (
    Position,
    random_state,
    read_checkpoint,
    read_history,
    write_checkpoint,
)

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
    position = Position(3, 7, 1.25, 99, [{"epoch": 1, "lr": 0.1}])
    torch.manual_seed(5)
    write_checkpoint(path, CONFIG, position, {}, [random_state()])
    expected = torch.rand(4)
    torch.manual_seed(6)
    assert read_checkpoint(path, CONFIG, {}) == position
    assert torch.equal(torch.rand(4), expected)
    assert read_history(path) == position.history


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


@pytest.mark.parametrize("name", ["momentum", "nesterov", "adamw", "adan", "lamb", "lion", "madgrad"])
def test_an_optimiser_goes_on_as_if_never_stopped(tmp_path, name):
    # adan and lamb count their steps outside the state of their parameters
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
