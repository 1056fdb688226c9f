"""The zoo run: a row for each model, what it says, and that it goes on where it stopped."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from forge import fresh

import sparsetune as st
from sparsetune.sliced import convolution as ops

SCRIPT = Path(__file__).parents[2] / "docs" / "results" / "zoo.py"
NAMES = ["test_vit", "test_nfnet", "torchvision/squeezenet1_1"]


RUNS = f"""
import json, sys
from pathlib import Path
sys.path.insert(0, {str(SCRIPT.parent)!r})
import zoo
out, *names = sys.argv[1:]
found = []
for some in (names[:2], names):
    sys.argv = ["zoo", "--out", out, *some]
    zoo.main()
    found.append(Path(out).read_text())
print(json.dumps(found))
"""


def test_small_models_pass_and_are_done_once(tmp_path):
    before, after = fresh(RUNS, tmp_path / "zoo.jsonl", *NAMES)
    head, *rows = map(json.loads, before.splitlines())
    assert head["run"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    for row in rows:
        assert row["round_trip"]
        assert row["merged"]
        assert row["ran"]
        assert row["moved"] == "by a step"
        assert row["gradient"] < 1e-8
        assert "failed" not in row
        made = st.plan(st.create(row["name"]), st.Learn(fraction=0.25))
        assert row["learned"] == made.learned_parameters
        assert row["file_bytes"] < 1.03 * made.delta_bytes
    assert after.startswith(before)
    assert [json.loads(line)["name"] for line in after.splitlines()[1:]] == NAMES


@pytest.fixture
def row_module():
    sys.path.insert(0, str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("zoo_run", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(SCRIPT.parent))
    del sys.modules[spec.name]


FINE = {"values": "a", "logits": "b", "merged": True, "gradient": 1e-12, "gradient_dtype": "float64"}


@pytest.mark.parametrize(
    ("saved", "loaded", "failed"),
    [
        (FINE, {"values": "a", "logits": "b"}, None),
        (FINE, {"values": "c", "logits": "b"}, "values differ after loading"),
        (FINE, {"values": "a", "logits": "c"}, "logits differ after loading"),
        ({**FINE, "merged": False}, {"values": "a", "logits": "b"}, "merge_ does not"),
        ({**FINE, "gradient": 1e-3}, {"values": "a", "logits": "b"}, "gradients differ by 1.0e-03"),
        ({**FINE, "gradient": float("nan")}, {"values": "a", "logits": "b"}, "gradients differ by nan"),
        (FINE, {"failed": "BackboneError: no"}, "load: BackboneError: no"),
        (None, {"failed": "MemoryError: no"}, "save: MemoryError: no"),
    ],
)
def test_a_row_fails_where_anything_differs(row_module, saved, loaded, failed):
    row = row_module.judged("x", saved, loaded)
    assert ("failed" in row) == (failed is not None) != ("round_trip" in row)
    assert failed is None or failed in row["failed"]


def test_a_wrong_gradient_is_seen(row_module, monkeypatch):
    row = row_module.zoo_row
    net = st.create("test_vit")
    assert row.gradient_error(net, "test_vit", torch.float64) < 1e-12
    right = ops.linear_weight_gradient
    monkeypatch.setattr(ops, "linear_weight_gradient", lambda *given: 1.01 * right(*given))
    assert row.gradient_error(net, "test_vit", torch.float64) > 1e-3
