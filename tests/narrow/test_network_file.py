"""A slim file gives its network back alone, in another process; a forged or damaged one is refused."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from zeroed import batch, zeroed

import sparsetune as st
from sparsetune.errors import BackboneError, DeltaError, Notice
from sparsetune.host import digest_of
from sparsetune.narrow.network import KEY, load_slim, write_slim


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A zeroed network, its slim one and the latter's file."""
    folder = tmp_path_factory.mktemp("slim")
    net = zeroed("wrn28_4", depth=10).float()
    st.save(net, folder / "delta.safetensors", classes=[f"class {i}" for i in range(10)])
    write_slim(folder / "slim.safetensors", small := st.slim(net), st.inspect(folder / "delta.safetensors"))
    return net, small, folder / "slim.safetensors"


def forge(path, out, change):
    """Write the file again with its tensors and metadata changed by ``change``."""
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    change(tensors, metadata)
    metadata["sparsetune.digest"] = digest_of(tensors)
    save_file(tensors, out, metadata)
    return out


def test_same_values_and_outputs(made):
    net, small, path = made
    loaded, x = load_slim(path), batch().float()
    assert type(loaded) is type(small)
    assert not loaded.training
    assert loaded.state_dict().keys() == small.state_dict().keys()
    assert all(torch.equal(value, small.state_dict()[name]) for name, value in loaded.state_dict().items())
    with torch.no_grad():
        assert torch.equal(loaded(x), small(x))
        assert (loaded(x) - net(x)).abs().max() <= 1e-5 * net(x).abs().max()


def test_in_a_new_process(made, tmp_path):
    _, small, path = made
    script = (
        "import sys, torch, sparsetune as st\n"
        "x = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)\n"
        "torch.set_num_threads(1)\n"
        "with torch.no_grad(): torch.save(st.load_slim(sys.argv[1])(x), sys.argv[2])\n"
    )
    subprocess.run([sys.executable, "-c", script, path, tmp_path / "out.pt"], check=True)
    with torch.no_grad():
        wanted = small(torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32))
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), wanted)  # kernels may follow alignment


def test_it_is_a_plain_checkpoint(made):
    """Any reader of safetensors finds the tensors under their plain names."""
    _, small, path = made
    assert load_file(path).keys() == small.state_dict().keys()


def test_trains_on(made):
    """What is loaded is an ordinary network that learns."""
    loaded = load_slim(made[2]).train()
    loaded(batch().float()).sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())


def test_own_module(tmp_path):
    def build():
        torch.manual_seed(0)
        layers = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU()
        return torch.nn.Sequential(
            *layers, torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(128, 2)
        )

    net = st.adapt_(build(), st.Learn(fraction=0.25, frozen="zero")).eval()
    torch.nn.init.uniform_(net[1].bias)
    st.save(net, tmp_path / "delta.safetensors")
    x = batch(4).float()
    write_slim(tmp_path / "s.safetensors", st.slim(net, x), st.inspect(tmp_path / "delta.safetensors"))
    with pytest.raises(DeltaError, match=r"of the user's own; build a plain one and pass it as load_slim"):
        load_slim(tmp_path / "s.safetensors")
    with torch.no_grad():
        found, wanted = load_slim(tmp_path / "s.safetensors", build())(x), net(x)
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-6)


def larger(tensors, metadata):
    tensors["fc.weight"] = torch.zeros(10, 257)


def another_rank(tensors, metadata):
    tensors["fc.weight"] = torch.zeros(10)


def another_kind(tensors, metadata):
    tensors["fc.bias"] = torch.zeros(10, dtype=torch.int64)


def too_few(tensors, metadata):
    del tensors["fc.bias"]


def too_many(tensors, metadata):
    tensors["fc.other"] = torch.zeros(1)


def unfitting(tensors, metadata):
    tensors["bn1.weight"] = tensors["bn1.weight"][1:].clone()


def other_words(tensors, metadata):
    metadata[KEY] = metadata[KEY].replace('"depth":10', '"depth":16')


def no_words(tensors, metadata):
    del metadata[KEY]


def no_json(tensors, metadata):
    metadata[KEY] = "{"


def no_object(tensors, metadata):
    metadata[KEY] = "[1]"


def nested(tensors, metadata):
    metadata[KEY] = "[" * 100_000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            larger,
            r"holds 'fc.weight' as .* of shape \(10, 257\), no part of wrn28_4's \(10, 256\)",
        ),
        (another_rank, r"holds 'fc.weight' as torch.float32 of shape \(10,\)"),
        (another_kind, "holds 'fc.bias' as torch.int64"),
        (too_few, "lacks 'fc.bias', unlike wrn28_4"),
        (too_many, "holds 'fc.other', unlike wrn28_4"),
        (unfitting, "holds layers that do not fit each other"),
        (other_words, "does not match its checksum"),
        (no_words, "is no slim network; write one with: sparsetune slim"),
        (no_json, "not an intact slim network"),
        (no_object, "not an intact slim network"),
        (nested, "not an intact slim network"),
    ],
)
def test_refuses_a_forged_file(made, tmp_path, change, words):
    with pytest.raises(DeltaError, match=words) as caught:
        load_slim(forge(made[2], tmp_path / "f.safetensors", change))
    assert "\n" not in str(caught.value)


def test_refuses_other_files(made, tmp_path):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(made[2].read_bytes()[:-100])
    for file in (path, tmp_path / "missing.safetensors"):
        with pytest.raises(DeltaError, match="not an intact slim network"):
            load_slim(file)
    with pytest.raises(DeltaError, match="is no slim network"):
        load_slim(made[2].parent / "delta.safetensors")
    with pytest.raises(DeltaError, match="is a slim network, no delta; load it with"):
        st.load(made[2])


def test_fetches_no_architecture(made, tmp_path):
    def hubbed(tensors, metadata):
        from sparsetune.delta.header import text_digest

        value = json.loads(metadata[KEY])
        value["model"]["name"] = "hf-hub:someone/theirs"
        text = json.dumps({**value, "digest": ""}, sort_keys=True, separators=(",", ":"))
        metadata[KEY] = text.replace('"digest":""', f'"digest":"{text_digest(text)}"')

    with pytest.raises(BackboneError, match="pass allow_network=True"):
        load_slim(forge(made[2], tmp_path / "f.safetensors", hubbed))


def test_damaged_values_are_found(made, tmp_path):
    """A flipped bit anywhere in the values is found; older files, without a checksum, load with a word."""
    data, path = bytearray(made[2].read_bytes()), tmp_path / "d.safetensors"
    first = 8 + int.from_bytes(data[:8], "little")
    for place in range(first, len(data), len(data) // 60):
        data[place] ^= 1
        path.write_bytes(data)
        with pytest.raises(DeltaError, match="its values do not match their checksum"):
            load_slim(path)
        data[place] ^= 1
    with safe_open(made[2], framework="pt") as file:
        old = {KEY: file.metadata()[KEY]}
    save_file(load_file(made[2]), path, old)
    with pytest.warns(Notice, match="has no checksum of its values"):
        load_slim(path)
