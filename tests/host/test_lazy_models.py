"""timm knows our models once both are imported, whichever is first."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import sparsetune as st

MODELS = "['wrn28_4', 'wrn28_10']\n"


@pytest.mark.parametrize(
    "script",
    [
        "import sparsetune, timm",
        "import timm, sparsetune",
        "import sparsetune, timm.optim; import timm",
        "import sparsetune; sparsetune.create",
        "import timm; timm.create_model; import sparsetune.spec",
        "import sparsetune; from importlib.util import find_spec; find_spec('timm'); find_spec('timm')",
        "import sparsetune, transformers, peft",
    ],
)
def test_timm_knows_them(script):
    command = [sys.executable, "-c", f"{script}; import timm; print(timm.list_models('wrn28*'))"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == MODELS


def test_a_pickled_model_is_read_in_a_new_process(tmp_path):
    net = st.create("wrn28_4", num_classes=3, depth=10, width=1)
    torch.save(net, tmp_path / "plain.pt")
    torch.save(st.adapt_(net, st.Learn(fraction=0.5)), tmp_path / "adapted.pt")
    script = (
        "import sys, torch\n"
        "for path in sys.argv[1:]:\n"
        "    net = torch.load(path, weights_only=False)\n"
        "    print(net(torch.zeros(1, 3, 8, 8)).shape)\n"
        "import sparsetune as st\n"
        "print(st.adapted(net).plan.learn)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "plain.pt"), str(tmp_path / "adapted.pt")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert told[:2] == ["torch.Size([1, 3])"] * 2
    assert told[2].startswith("Learn(fraction=0.5,")
