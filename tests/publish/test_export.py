"""A net written as ONNX computes, in another runtime, what it computes in torch."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import nn

import sparsetune as st
from sparsetune.errors import ConfigError
from sparsetune.publish import export
from sparsetune.publish.export import export_onnx

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

NETS = {
    "wrn28_4": {"depth": 10, "width": 1},
    "densenet100_12": {"depth": 16},
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 2},
}


def net_of(name: str) -> nn.Module:
    """A merged net whose slices and statistics are not the backbone's."""
    net = st.adapt_(st.create(name, num_classes=5, **NETS[name]), st.Learn(fraction=0.25))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in net.parameters():
            value.add_(torch.randn(value.shape, generator=generator), alpha=0.1)
        for key, value in net.named_buffers():
            if key.endswith("running_var"):
                value.mul_(2)
    return st.merge_(net)


@pytest.mark.parametrize("name", NETS)
def test_another_runtime_computes_the_same(tmp_path, name):
    net = net_of(name).eval()
    pictures = torch.randn(7, 3, 32, 32)
    with torch.no_grad():
        wanted = net(pictures).numpy()
    path = tmp_path / "new" / "net.onnx"
    difference = export_onnx(net, path, (3, 32, 32), {"classes": '["a", "ö"]'})
    session = onnxruntime.InferenceSession(path)
    for count in (1, 2, 7):
        found = session.run(["logits"], {"image": pictures[:count].numpy()})[0]
        np.testing.assert_allclose(found, wanted[:count], rtol=1e-4, atol=1e-4)
    assert 0 <= difference < 1e-4
    assert session.get_modelmeta().custom_metadata_map == {"classes": '["a", "ö"]'}
    assert [file.name for file in path.parent.iterdir()] == ["net.onnx"]
    onnx.checker.check_model(onnx.load(path), full_check=True)
    whole = sum(value.nbytes for value in net.parameters())
    assert whole * 0.95 < path.stat().st_size < whole * 1.3 + 100_000


def test_the_file_holds_no_path_of_this_machine(tmp_path):
    export_onnx(net_of("wrn28_4"), tmp_path / "net.onnx", (3, 16, 16), {})
    content = (tmp_path / "net.onnx").read_bytes()
    assert b"site-packages" not in content
    assert b".py" not in content


def test_half_precision_becomes_single(tmp_path):
    export_onnx(net_of("wrn28_4").bfloat16(), tmp_path / "net.onnx", (3, 16, 16), {})
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    assert [value.type for value in (*session.get_inputs(), *session.get_outputs())] == ["tensor(float)"] * 2


class Unruly(nn.Module):
    def forward(self, x):
        return x.mean((1, 2, 3), keepdim=False)[:, None] * (1 if x.sum() > 0 else 2)


class TwoHeads(nn.Module):
    """Gives the logits of an auxiliary head beside its own."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.aux = nn.Conv2d(3, 5, 3), nn.Conv2d(3, 5, 3)

    def forward(self, x):
        return self.main(x).mean((2, 3)), self.aux(x).mean((2, 3))


def test_of_several_heads_the_main_one_is_written(tmp_path):
    net, x = TwoHeads(), torch.randn(3, 3, 8, 8)
    export_onnx(net, tmp_path / "net.onnx", (3, 8, 8), {})
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    (found,) = session.run(["logits"], {"image": x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, net(x)[0].numpy(), rtol=1e-5, atol=1e-6)


class Boxes(nn.Module):
    def forward(self, x):
        return {"boxes": x}


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (Unruly(), r"^torch cannot export this Unruly to ONNX \("),
        (Boxes(), r"^the model gives a dict; export writes classifiers alone\.$"),
        (
            timm.create_model("vit_tiny_patch16_224", depth=1),
            r"^the model cannot take pictures of 3x16x16 \(",
        ),
    ],
    ids=["unruly", "boxes", "size"],
)
def test_what_cannot_be_exported_is_told_in_one_sentence(tmp_path, net, says):
    with pytest.raises(ConfigError, match=says) as told:
        export_onnx(net, tmp_path / "net.onnx", (3, 16, 16), {})
    assert "\n" not in str(told.value)
    assert not list(tmp_path.iterdir())


def test_a_wrong_file_never_appears(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", -1.0)  # outputs that are equal are too different
    with pytest.raises(ConfigError, match=r"differ from torch's by .* so no file was written"):
        export_onnx(net_of("wrn28_4"), tmp_path / "net.onnx", (3, 16, 16), {})
    assert not list(tmp_path.iterdir())


def test_a_model_too_large_for_one_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "LIMIT", 100_000)
    with pytest.raises(ConfigError, match="one ONNX file at most"):
        export_onnx(net_of("wrn28_4"), tmp_path / "net.onnx", (3, 16, 16), {})


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    found = export.find_spec
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(ConfigError, match=r"needs onnxscript, .* pip install 'sparsetune\[onnx\]'"):
        export_onnx(net_of("wrn28_4"), tmp_path / "net.onnx", (3, 16, 16), {})


def test_without_another_runtime_the_file_is_written_unchecked(tmp_path, monkeypatch):
    found = export.find_spec
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    assert export_onnx(net_of("wrn28_4"), tmp_path / "net.onnx", (3, 16, 16), {}) is None
    assert (tmp_path / "net.onnx").is_file()
