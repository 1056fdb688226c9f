"""The tutorial does what it says, block by block, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TEXT = (Path(__file__).parent.parent / "docs" / "tutorial.md").read_text()
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
HOMES = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))


@pytest.mark.slow
def test_every_block_runs_as_printed(tmp_path: Path) -> None:
    assert len(BLOCKS) > 10
    for kind, block in BLOCKS:
        command = ["bash", "-euo", "pipefail", "-c"] if kind == "sh" else [sys.executable, "-c"]
        environment = {**os.environ, "PATH": HOMES}
        done = subprocess.run(
            [*command, block], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        print(block, done.stdout, done.stderr, sep="\n")
        assert done.returncode == 0
