"""The file of a finished run: its values, and what it says of itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import sparsetune as st
from sparsetune.data.loading import loader
from sparsetune.errors import DeltaError
from sparsetune.runs.run import write_finished
from sparsetune.runs.settings import Run

RUN = Run(
    model="wrn28_4",
    model_kwargs={"depth": 10, "width": 1},
    learn=st.Learn(rank=2),
    config=st.FitConfig(epochs=1, batch_size=16),
    train_limit=100,
    test_limit=50,
)


@pytest.fixture(scope="module")
def trained():
    data = st.open_data("digits", train_limit=100, test_limit=50)
    net = st.adapt_(st.create("wrn28_4", depth=10, width=1, num_classes=10), RUN.learn)
    return net, data, st.fit(net, data, RUN.config)[-1]


def right(path, data):
    """Share of test pictures that the file classifies rightly, by torch alone."""
    net = st.load(path)
    with torch.no_grad():
        return sum(
            int((net(x).argmax(1) == y).sum()) for x, y in loader(data.test, data.preprocessing, batch_size=7)
        ) / len(data.test)


@pytest.mark.parametrize("dtype", [None, "bf16", "int8"])
def test_the_file_says_what_it_scores(trained, tmp_path, dtype):
    net, data, last = trained
    before = {name: value.clone() for name, value in net.state_dict().items()}
    path = tmp_path / "a.safetensors"
    write_finished(net, path, replace(RUN, dtype=dtype), data, last)
    training = st.inspect(path).training
    assert training["result"]["test_top1"] == right(path, data)
    assert (training["result"]["test_loss"] == last.test_loss) == (dtype is None)
    assert training["options"].get("dtype") == dtype
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_where_fewer_bits_cannot_hold_a_value_the_file_has_all(trained, tmp_path):
    net, data, last = trained
    bias = net.get_parameter("fc.bias")
    kept = bias.detach().clone()
    path = tmp_path / "a.safetensors"
    with torch.no_grad():
        bias[3] = 1e6
    with pytest.raises(DeltaError, match=r"'fc.bias' holds values that fp16 cannot hold"):
        write_finished(net, path, replace(RUN, dtype="fp16"), data, last)
    assert torch.equal(st.load(path).get_parameter("fc.bias"), bias)
    with torch.no_grad():
        bias.copy_(kept)
