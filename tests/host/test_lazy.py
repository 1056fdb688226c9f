"""Doors that import what they hand on when it is used."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import sparsetune as st

LAZY = ["sparsetune", "sparsetune.host", "sparsetune.data", "sparsetune.backbone", "sparsetune.delta"]


@pytest.mark.parametrize("door", LAZY)
def test_all_that_is_told_is_handed_on_and_no_file_stands_in_its_place(door):
    package = import_module(door)
    files = {path.stem for path in Path(package.__file__).parent.iterdir()}
    assert not files & {*package.__all__}
    for name in package.__all__:
        assert getattr(package, name) is getattr(package, name)
    with pytest.raises(AttributeError, match=f"module '{door}' has no attribute 'nosuch'"):
        _ = package.nosuch


def test_the_package_shows_its_api_and_nothing_else():
    assert dir(st) == sorted([*st.__all__, "__version__"])
    for function in (st.plan, st.slim, st.slimming, st.fit, st.choose):
        assert type(function).__name__ == "function"


def test_importing_it_imports_no_library():
    script = (
        "import sys, sparsetune; sparsetune.Learn, sparsetune.FitConfig; print({*sys.modules} & {*sys.argv})"
    )
    command = [sys.executable, "-c", script, "torch", "timm", "numpy", "PIL", "huggingface_hub"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "set()\n"
