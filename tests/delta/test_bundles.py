from __future__ import annotations

import json

import pytest
import torch
from forge import X, stirred
from safetensors.torch import load_file, save_file

import sparsetune as st
from sparsetune.delta.bundles import bundle, is_bundle, unpacked
from sparsetune.errors import ConfigError, DeltaError


@pytest.fixture
def files(tmp_path, tiny) -> dict:
    for seed in range(3):
        st.save(stirred(tiny(), seed), tmp_path / f"{seed}")
    return {f"task {seed}": tmp_path / f"{seed}" for seed in range(3)}


def test_a_bundle_holds_its_files_byte_for_byte(tmp_path, files):
    bundle(files, tmp_path / "all")
    assert is_bundle(tmp_path / "all")
    assert not is_bundle(tmp_path / "0")
    with unpacked(tmp_path / "all") as held:
        assert list(held.deltas) == list(files)
        assert held.backbone is None
        for name, path in held.deltas.items():
            assert path.read_bytes() == files[name].read_bytes()
        folder = path.parent
    assert not folder.exists()


def test_tasks_and_ensembles_take_a_bundle(tmp_path, files):
    bundle(files, tmp_path / "all")
    tasks, ensemble = st.Tasks.load(tmp_path / "all"), st.Ensemble.load(str(tmp_path / "all"))
    assert tasks.names == tuple(files)
    expected = [st.load(path)(X) for path in files.values()]
    for name, logits in zip(files, expected, strict=True):
        assert torch.equal(tasks(name, X), logits)
    assert torch.equal(ensemble(X), torch.cat(expected))


def test_a_bundle_brings_the_trained_backbone_once(tmp_path, tiny):
    whole = st.merge_(stirred(tiny(), 9)).state_dict()
    save_file({name: value.contiguous() for name, value in whole.items()}, tmp_path / "trained.safetensors")
    files = {}
    for seed in (1, 2):
        plain = st.create(
            "wrn28_4", depth=10, width=1, num_classes=10, checkpoint=tmp_path / "trained.safetensors"
        )
        files[str(seed)] = tmp_path / f"{seed}"
        st.save(stirred(st.adapt_(plain, st.Learn(fraction=0.25)), seed), files[str(seed)])
    bundle(files, tmp_path / "all", tmp_path / "trained.safetensors")
    parts = sum(path.stat().st_size for path in [*files.values(), tmp_path / "trained.safetensors"])
    assert parts < (tmp_path / "all").stat().st_size < parts + 1000
    flipped_bits_are_told(tmp_path / "all")
    expected = torch.cat([st.load(path)(X) for path in files.values()])
    (tmp_path / "trained.safetensors").unlink()
    assert torch.equal(st.Ensemble.load(tmp_path / "all")(X), expected)
    (tmp_path / "0").write_bytes(b"x")
    with pytest.raises(ConfigError, match="0 is not what the deltas stand on"):
        bundle(files, tmp_path / "again", tmp_path / "0")


def test_five_densenets_at_share_nine_tenths(tmp_path):
    """The paper's Table 4: 450,980 learned parameters, in a bundle of at most 1.03 times its values."""
    files, learned, values = {}, 0, 0
    for seed in range(5):
        net = st.adapt_(st.create("densenet100_12", num_classes=10), st.Learn(fraction=0.1))
        st.save(stirred(net, seed), tmp_path / f"{seed}")
        files[str(seed)] = tmp_path / f"{seed}"
        learned += sum(parameter.numel() for parameter in net.parameters())
        values += sum(value.nbytes for value in net.state_dict().values())
    bundle(files, tmp_path / "all")
    assert learned == 450_980
    assert (tmp_path / "all").stat().st_size <= 1.03 * values


def test_refuses_what_does_not_belong_together(tmp_path, files, tiny):
    st.save(tiny(seed=7), tmp_path / "foreign")
    with pytest.raises(DeltaError, match="foreign stands on another backbone than the first"):
        bundle({**files, "foreign": tmp_path / "foreign"}, tmp_path / "all")
    with pytest.raises(ConfigError, match="no deltas were given"):
        bundle({}, tmp_path / "all")
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"names": ["a", "b", "b"]}, "a name twice"),
        ({"names": ["a", "b"]}, "its files are not those that it names"),
        ({"names": ["a", "b", 3]}, "its description is not one of format 1"),
        ({"format": 2}, "its description is not one of format 1"),
        ({"names": []}, "it has 0 names"),
    ],
)
def test_a_forged_bundle_is_one_sentence(tmp_path, files, change, words):
    bundle(files, tmp_path / "all")
    about = {"format": 1, "names": list(files), **change}
    save_file(load_file(tmp_path / "all"), tmp_path / "forged", {"sparsetune.bundle": json.dumps(about)})
    with pytest.raises(DeltaError, match=f"forged is not an intact bundle .*{words}"):
        st.Tasks.load(tmp_path / "forged")


def test_a_cut_or_changed_bundle_is_told(tmp_path, files):
    bundle(files, tmp_path / "all")
    whole = (tmp_path / "all").read_bytes()
    for stop in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut").write_bytes(whole[:stop])
        with pytest.raises(DeltaError):
            st.Tasks.load(tmp_path / "cut")
    flipped_bits_are_told(tmp_path / "all")


def flipped_bits_are_told(path):
    """In names, deltas and the backbone, also in values of that which no delta takes."""
    whole = path.read_bytes()
    for place in range(8, len(whole), len(whole) // 60):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DeltaError):
            st.Tasks.load(path)
    path.write_bytes(whole)
