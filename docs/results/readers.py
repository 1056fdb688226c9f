"""Counts which lines of the modules that read strangers' files are run by the tests and the fuzzing.

    python -m coverage run --parallel-mode --source sparsetune -m pytest
    python -m coverage run --parallel-mode --source sparsetune tests/fuzz/fuzz.py
    python -m coverage combine && python -m coverage json
    python docs/results/readers.py coverage.json

``coverage`` also sees the processes that tests start where its settings say ``patch = subprocess``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from sparsetune.host import describe_machine

READERS = (
    *("backbone/origin", "data/folder", "data/images", "data/layout", "data/parquet"),
    *("delta/bundles", "delta/container", "delta/header", "delta/rebuild", "delta/saving", "delta/values"),
    *("host/files", "host/text", "narrow/network", "runs/folder", "studies/store", "train/checkpoint"),
)


def main() -> None:
    """Write ``readers.json``: lines and lines that were run, by module."""
    files = json.loads(Path(sys.argv[1]).read_text())["files"]
    found = {Path(name).with_suffix("").as_posix().split("sparsetune/")[-1]: of for name, of in files.items()}
    counts = {
        name: [found[name]["summary"][what] for what in ("num_statements", "covered_lines")]
        for name in READERS
    }
    value = {"lines": counts, "run": describe_machine()}
    Path(__file__).with_suffix(".json").write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    main()
