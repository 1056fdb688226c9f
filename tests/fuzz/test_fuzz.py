"""What once went wrong is refused by every reader, within its memory, and a short run finds nothing new."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

FUZZ = Path(__file__).parent / "fuzz.py"


def seen(*words: str) -> dict[str, Any]:
    """Run the fuzzer, on a machine that may be busy with other tests."""
    line = [sys.executable, str(FUZZ), "--slow", "90", *words]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert (found["escapes"], found["inputs"]) == (0, sum(found["by"].values()))
    return found


def test_what_once_went_wrong_is_refused():
    assert {f"{name}, known" for name in ("delta", "bundle", "backbone", "resume", "rows")} <= seen(
        "--seconds", "0"
    )["by"].keys()


def test_a_short_run_finds_nothing():
    assert seen("--seconds", "5", "--seed", "7")["inputs"] > 40
