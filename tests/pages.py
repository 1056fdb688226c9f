"""Runs every block of a page in its order, as its reader would: ``pages.py PAGE``, in his folder.

Python blocks share their names, and each shell block is run by bash. Comments of Sybil's in the page
(``skip: next "why"``) say what is not run here, and why.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from unittest import SkipTest

from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser


def in_bash(example: Example) -> None:
    """Run a shell block; the first command that fails ends it."""
    subprocess.run(["bash", "-euo", "pipefail", "-c", example.parsed], check=True)


def main(page: str) -> None:
    """Run a page."""
    parsers = [PythonCodeBlockParser(), CodeBlockParser("sh", in_bash), SkipParser()]
    for example in Sybil(parsers=parsers).parse(Path(page)).examples():
        print(f"--- line {example.line}\n{example.parsed}", flush=True)
        began = time.monotonic()
        try:
            example.evaluate()
        except SkipTest as skipped:
            print(f"--- not run: {skipped}", flush=True)
        print(f"--- {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
