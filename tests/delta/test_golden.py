"""Files that earlier versions wrote load for ever, and give what was written down when they were made."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree

import pytest
import torch
from forge import STOPPED, Parts, measured
from torch import nn

import sparsetune as st
from sparsetune.delta.bundles import unpacked
from sparsetune.delta.container import read_delta
from sparsetune.narrow.network import load_slim
from sparsetune.runs.run import run
from sparsetune.train.loop import Step

GOLDEN = Path(__file__).parents[1] / "golden"
RECORDED = {
    "format1-plain": (
        "003fd2ede3a410cf172466c5c46fab426333909732bf0cd9a6ef87f9b20feed3",
        "78874b97b70427c44adb129be27a0cfb41a9ce618dbd71261397aac3ff6f2040",
        [0.0668, 0.1353, -0.19788, 0.01414, 0.28497, -0.06717, 0.14291, 0.34316, 0.28538, 0.03744],
    ),
    "format1-zero": (
        "5c7ae6c1371c69a61fc4403e3c39bee0e5b08574fcb336c84e44972b905d866d",
        "b288660035fcabfc24bd166ef96d42bd5d12afbd40107fdf73f645e28d1afc74",
        [-0.19088, 0.23156, 0.00492, -0.0846, 0.12771, 0.35205, -0.2947, 0.20893, -0.04657, -0.0968],
    ),
    "format1-layers": (
        "ceac7adff32cf2bd8260789854e7352cc9098fd7a6a6bd505b5f22b59c665364",
        "82bc9b407b22a6be6aea9e0601be024744aa31c6d67b210306ad868051519bc9",
        [-0.23678, -0.10746, 0.41846, -0.03532],
    ),
    "format1-module": (
        "99f0318beb1ab3952e15cad5232a9c1c873ef18fd092da7451d78c377cdf5121",
        "5dc32ea57f34a266cb70ca866dfedb53bcfcc0375508c79e08c27749e7922788",
        [-0.26169, -0.25216, -0.06002],
    ),
    "format3-rank": (
        "d44466c5b92f5d581c686449f68d08a471a346f37358f640bbdb9b4784996c3e",
        "a3c6b26e2bcccd06c08707f1526a715fe9a243c675a12be9403592cd230b87f9",
        [0.10206, -0.15654, 0.02501, -0.08501, -0.20218, 0.14486, -0.11729, -0.06562, -0.29978, 0.24777],
    ),
    "format4-amounts": (
        "47ca0dd9395d388b436cc78dbe7b1da7d4c9465d51fb2e6eb57dc2823e022e48",
        "e39c5767697c4f3a2de9896377784d19d02390974a330b8f34c6e119d9b74822",
        [0.10429, 0.34096, -0.0916, -0.13774, 0.07279, -0.02894, -0.19028, -0.53317, 0.16223, 0.42467],
    ),
    "format2-bf16": (
        "f9a8072ba3aca3e7f785d4d080438483ada3c5896eb9122b4ca4525e124d5ed9",
        "81d7e260dea381078b43f8c674642f50ae8cf96acbdfd88565b2669d4eaa07f4",
        [-0.33624, -0.0192, -0.2728, 0.34742, -0.75521, -0.4735, -0.15481, -0.41394, -0.66191, -0.28182],
    ),
    "format2-fp16": (
        "887e549bc7cfbe7da3b6eda25efadfec8f1a56bc16821bb4296b1157f78b1fcb",
        "15d6d3a13939ee8903adbd7cc28e929253f25d4d0b9cdf522783ff27f062182d",
        [0.175, 0.45167, 0.45815, 0.17473, -0.19409, -0.17683, 0.20798, 0.13109, -0.36069, 0.00222],
    ),
    "format2-int8": (
        "26d0b2f4cd2fa24b4d578c733db4d2d1b8f709b4f1db3f8e8500d1460f66c9a1",
        "a206333544c3c1dd0176759f0654dcb82a00c33b9f5f066a23e6af5821d215c6",
        [-0.20287, 0.08771, 0.13368, 0.24611, 0.08162, -0.16177, -0.41899, -0.38976, -0.40224, 0.09095],
    ),
    "format3-rank8": (
        "0e0d3cce62d846704d33ff86c1d80a01301668e865369c407b8e5c7ff7d51e82",
        "a6389515dd48ce053a9b747e6c65f0b0faf0723b8274963ac90f4d19c2c53f9b",
        [0.6233, -0.19007, -0.0757, -0.16081, 0.74133, 0.22933, 0.96576, 0.4222, 0.28532, -0.16669],
    ),
    "format4-amounts8": (
        "9c58b53dcf049ab5f66e09477ca5ef9fe8a26771a954498eb016969a735fd860",
        "f508fabdc10fc9c410b7622dbcde5d0e72472b2ea6abd2dd6302a6cb2ab21521",
        [-0.37891, 0.38798, -0.37538, 0.21842, 0.14374, -0.43051, -0.11688, 0.34952, -0.06915, -0.04167],
    ),
    "format3-depthwise": (
        "eb54c00b35b11f5908f1acb458ebc0684f4cef0e947c65dbb83c7d6d9bd87b4b",
        "d01337731d41a8d1af341c06cfb5557ea4de5dd327a943ecb769883517ed85f4",
        [0.05035, -0.28672, -0.13758, -0.19667],
    ),
    "format5-depthwise": (
        "eb54c00b35b11f5908f1acb458ebc0684f4cef0e947c65dbb83c7d6d9bd87b4b",
        "fb10df4c7f34d9c8907646e47a140d5bb956e817e7092dfdd17c819efd0c0d57",
        [0.19595, 0.01691, -0.81304, -0.0022],
    ),
    "format5-statistics": (
        "b8275e42ac42da7cba382784e0bce8e81da336b2758f1a3a1c9ce015b28906f2",
        "c465ada5710ec8eae31e5e621323624657843573322f9f3d756510109e0132ed",
        [-8.40995, -6.87733, -0.25853, -0.06265, -2.82039, 0.59272, -0.65825, 8.08889, -0.27782, 7.50182],
    ),
    "format6-dimensions": (
        "13ed79fce0e7c31ef4d9b8cb0d2cd82685e7e23ed1c1880acaa636c0f80c9af9",
        "53074d5b25bc68dda4b65c9513a89119efbc3934ce10339dd5400a3b61aa2b3c",
        [0.0759, 0.149, -0.00291, 0.01985, -0.00752, 0.10684, -0.01036, -0.16503, 0.12387, 0.11473],
    ),
    "format7-dimensions": (
        "13ed79fce0e7c31ef4d9b8cb0d2cd82685e7e23ed1c1880acaa636c0f80c9af9",
        "53074d5b25bc68dda4b65c9513a89119efbc3934ce10339dd5400a3b61aa2b3c",
        [0.0759, 0.149, -0.00291, 0.01985, -0.00752, 0.10684, -0.01036, -0.16503, 0.12387, 0.11473],
    ),
    "format6-dimensions8": (
        "e58a909525835d09e59157afce078d9b8d4850c0a93fff0481fa1960840b2874",
        "1427161264ad23f4801c6ba9b046bed566153303a85b08633e3cbf323ae81f0d",
        [0.01769, 0.0563, -0.07724, -0.09778, 0.01562, 0.30199, 0.16017, -0.1484, 0.03468, -0.2285],
    ),
    "format7-dimensions8": (
        "e58a909525835d09e59157afce078d9b8d4850c0a93fff0481fa1960840b2874",
        "1427161264ad23f4801c6ba9b046bed566153303a85b08633e3cbf323ae81f0d",
        [0.01769, 0.0563, -0.07724, -0.09778, 0.01562, 0.30199, 0.16017, -0.1484, 0.03468, -0.2285],
    ),
    "format6-dimensions6": (
        "52b557209441f34295155dbc635fb64db7f9ee1e169e76489c07d5c30056b6d4",
        "eb7b85545e6b6a001c3bc84c2c2f32a8c5d63c7f8eb0e674f32624e2a0ef41a5",
        [-0.15083, 0.02959, 0.00753, -0.18767, 0.06104, 0.11076, 0.03849, 0.11032, -0.1736, -0.024],
    ),
    "format7-dimensions6": (
        "52b557209441f34295155dbc635fb64db7f9ee1e169e76489c07d5c30056b6d4",
        "eb7b85545e6b6a001c3bc84c2c2f32a8c5d63c7f8eb0e674f32624e2a0ef41a5",
        [-0.15083, 0.02959, 0.00753, -0.18767, 0.06104, 0.11076, 0.03849, 0.11032, -0.1736, -0.024],
    ),
}
"""Of each delta: fingerprint, digest of all values, logits."""
BUNDLED = {
    "bundle1-seed/first": (
        "41f447a644706431520827363f13e68c3edbf586136c55c83f0cadb306d479b7",
        [-0.25012, -0.15083, -0.00755, -0.30351, 0.20934, -0.10281, -0.35158, -0.65089, -0.20071, 0.25076],
    ),
    "bundle1-seed/second.too": (
        "16204e799f2dd98482af870e6be00ea87b93ac16a9e13f0a73bab44eb93ad0a2",
        [-0.73929, -0.0975, 0.13174, -0.19865, -0.02689, -0.26058, -0.61437, -0.80066, -0.31816, 0.32397],
    ),
    "bundle1-trained/first": (
        "eb0ea1d68c29962eebfa4eeb3037a1820b3a76691164e862b059826ca4c383a1",
        [0.01191, -0.00477, 0.40905, 0.27941, -0.05344, -0.14887, -0.03691, -0.55001, 0.11566, 0.24277],
    ),
    "bundle1-trained/second.too": (
        "2f5a0320d37e9113c8ed087678bba9ef5924c1e5aa517d840b96ddd917681297",
        [-0.05833, -0.09451, 0.5297, 0.34072, -0.09238, -0.31625, -0.19417, -0.41312, -0.16901, 0.16377],
    ),
}
SLIM = {
    "slim1-small": (
        "0a8a5d09f5991973943e1f344ee873983f64a10de9c499a059a4fde61473a783",
        [0.35174, -0.37907, -0.0571, 0.05895, 0.46703, 0.08023, -0.31753, 0.00939, -0.39505, 0.22612],
    ),
}


def same_as_recorded(found, values, logits):
    """Every value is the same; logits are but for the processor's rounding."""
    assert found[0] == values
    torch.testing.assert_close(torch.tensor(found[1]), torch.tensor(logits), atol=2e-4, rtol=0)


def own():
    """The user's own model of `format1-module`."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    with torch.no_grad():
        for value in net.parameters():
            value.copy_((torch.arange(value.numel()).reshape(value.shape) % 7 - 3) / 8)
    return net


@pytest.mark.parametrize("name", RECORDED)
def test_deltas_load_for_ever(name):
    path = GOLDEN / f"{name}.safetensors"
    fingerprint, values, logits = RECORDED[name]
    assert path.stat().st_size < 60_000
    assert st.inspect(path).format == int(name[len("format")])
    net = st.load(path, own() if name.endswith("module") else None)
    assert st.adapted(net).fingerprint == st.inspect(path).fingerprint == fingerprint
    same_as_recorded(measured(net), values, logits)


def test_golden_header():
    header = st.inspect(GOLDEN / "format1-plain.safetensors")
    assert (header.library, header.model, header.num_classes) == ("timm", "wrn28_4", 10)
    assert header.kwargs == {"depth": 10, "width": 1}
    assert header.backbone == st.Backbone(kind="seed", seed=0)
    assert header.learn == st.Learn(fraction=0.1)
    assert header.classes == tuple(f"digit {i}" for i in range(10))
    assert header.preprocessing == st.Preprocessing((3, 16, 16), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2), "bicubic")
    assert header.training["result"] == {"test_top1": 0.9375, "loss": 1e-05}


@pytest.mark.parametrize("name", RECORDED)
def test_a_reader_from_the_documentation_finds_the_same(name):
    path = GOLDEN / f"{name}.safetensors"
    ours, theirs = read_delta(path), Parts(path).tensors()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype for key in ours)


def test_every_code_has_a_file():
    found = {entry.dtype for path in GOLDEN.glob("format*") for entry in st.inspect(path).entries}
    assert found >= {"float32", "float16", "bfloat16", "int64", "bf16", "fp16", "int8", "root8"}
    assert found >= {"int6", "line4", "curve4"}


@pytest.mark.parametrize("kind", ["seed", "trained"])
def test_bundles_load_for_ever(kind):
    path = GOLDEN / f"bundle1-{kind}.safetensors"
    tasks = st.Tasks.load(path)
    assert tasks.names == ("first", "second.too")
    for name in tasks.names:
        with tasks.use(name) as net:
            same_as_recorded(measured(net, merge=False), *BUNDLED[f"bundle1-{kind}/{name}"])
    with unpacked(path) as held:
        assert (held.backbone is not None) == (kind == "trained")


def test_a_slim_network_loads_for_ever():
    net = load_slim(GOLDEN / "slim1-small.safetensors")
    assert sum(value.numel() for value in net.parameters()) < 3_000
    same_as_recorded(measured(net, merge=False), *SLIM["slim1-small"])


def test_a_stopped_run_goes_on_for_ever(tmp_path):
    copytree(GOLDEN / "run-stopped", tmp_path / "r")
    steps = []
    outcome = run(STOPPED, tmp_path / "r", resume=True, watch=steps.append)
    assert outcome.finished
    first = next(event for event in steps if isinstance(event, Step))
    assert (first.epoch, first.step, first.steps) == (1, 2, 4)
    straight = run(STOPPED, tmp_path / "s")
    deltas = [read_delta(tmp_path / folder / "delta.safetensors") for folder in "rs"]
    for name, value in deltas[0].items():
        torch.testing.assert_close(value, deltas[1][name], atol=1e-4, rtol=1e-4)
    for one, other in zip(outcome.history, straight.history, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
