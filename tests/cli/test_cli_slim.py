import pytest
import torch
from safetensors.torch import load_file

import sparsetune as st


@pytest.fixture(scope="module")
def delta(tmp_path_factory, sparsetune):
    folder = tmp_path_factory.mktemp("zero") / "run"
    words = (
        "fit --model test_resnet --fraction 0.4 --frozen zero --train-limit 200 --test-limit 50 --epochs 2"
    )
    sparsetune(words, "--out", folder)
    return folder / "delta.safetensors"


def test_writes_a_smaller_network(delta, sparsetune, tmp_path):
    out = tmp_path / "slim.safetensors"
    told = sparsetune("slim", delta, "-o", out, "--json").json
    tensors = load_file(out)
    net, small = st.load(delta), st.load_slim(out)
    assert told == {
        "slim": str(out),
        "bytes": out.stat().st_size,
        "parameters": sum(parameter.numel() for parameter in small.parameters()),
        "learned_parameters": st.adapted(net).plan.learned_parameters,
        "total_parameters": st.adapted(net).plan.total_parameters,
    }
    assert told["parameters"] < told["learned_parameters"] < told["total_parameters"]
    assert sum(value.nbytes for value in tensors.values()) < told["bytes"] < delta.stat().st_size
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        assert (small(x) - net(x)).abs().max() <= 1e-5 * net(x).abs().max()


def test_says_what_it_wrote(delta, sparsetune, tmp_path):
    text = sparsetune("slim", delta, "--out", tmp_path / "slim.safetensors").out
    assert text.startswith(str(tmp_path / "slim.safetensors"))
    assert "values of the network's" in text


def test_refuses(delta, deltas, refused, tmp_path):
    assert "does not end in .safetensors" in refused("slim", delta, "-o", tmp_path / "slim.pt")
    assert "is the delta itself" in refused("slim", delta, "-o", delta)
    assert "no filters of it are zero" in refused("slim", deltas[0], "-o", tmp_path / "slim.safetensors")
    assert not list(tmp_path.glob("*.safetensors"))
