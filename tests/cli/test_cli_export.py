from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import sparsetune as st

onnxruntime = pytest.importorskip("onnxruntime")


def test_a_delta_becomes_one_file_that_runs_without_torch(sparsetune, deltas):
    out = sparsetune("export", deltas[0], "-o", "new/digits.onnx").out
    assert re.fullmatch(
        r"new/digits\.onnx  \(1\.\d\d MiB, run with onnxruntime: outputs differ from torch's by at most "
        r"\d\.\de-\d\d\)\n",
        out,
    )
    session = onnxruntime.InferenceSession("new/digits.onnx")
    header, told = st.inspect(deltas[0]), session.get_modelmeta().custom_metadata_map
    assert json.loads(told["classes"]) == list(header.classes)
    assert st.Preprocessing.from_json(json.loads(told["preprocessing"])) == header.preprocessing
    assert told["model"] == "timm test_resnet"
    data = st.open_data("digits", test_limit=20)
    x = torch.stack([header.preprocessing.apply(data.test[i][0]) for i in range(20)])
    with torch.no_grad():
        wanted = st.load(deltas[0])(x)
    found = session.run(["logits"], {"image": x.numpy()})[0]
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-4)


def test_export_for_machines(sparsetune, deltas):
    value = sparsetune("export", deltas[0], "-o", "a.onnx", "--json").json
    assert value["bytes"] == Path("a.onnx").stat().st_size
    assert 0 <= value["largest_difference"] < 1e-4
    assert list(Path().iterdir()) == [Path("a.onnx")]


def test_export_refuses_in_one_sentence(refused, deltas):
    assert "does not end in .onnx" in refused("export", deltas[0], "-o", "a.safetensors")
    assert "nowhere" in refused("export", "nowhere.safetensors", "-o", "a.onnx")
    st.save(
        st.adapt_(st.create("test_resnet", num_classes=4), st.Learn(fraction=0.1)), "nameless.safetensors"
    )
    assert "does not say how pictures are prepared" in refused(
        "export", "nameless.safetensors", "-o", "a.onnx"
    )
    Path("folder.onnx").mkdir()
    assert "cannot write folder.onnx" in refused("export", deltas[0], "-o", "folder.onnx")
    assert not Path("a.onnx").exists()
