from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

import sparsetune
from sparsetune.host.machine import describe_machine, keep_freed_memory

GLIBC = platform.libc_ver()[0] == "glibc"
FAULTS = """
import resource
import sparsetune as st
from sparsetune.host.machine import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        bytearray(64 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

imported = faults()
keep_freed_memory()
faults()
print(imported, faults())
"""


def test_is_taken_by_glibc_and_by_no_other():
    assert keep_freed_memory() == (sys.platform == "linux" and GLIBC)


@pytest.mark.skipif(not GLIBC, reason="needs glibc")
def test_pages_that_were_freed_are_used_again_but_not_by_the_import_alone():
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    imported, kept = map(int, run.stdout.split())
    assert kept < imported / 10


def test_a_measurement_is_of_the_last_commit_of_any_file_of_the_package():
    package = Path(sparsetune.__file__).parent
    command = ["git", "-C", str(package), "rev-list", "-1", "--abbrev-commit", "HEAD", "--", "."]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert describe_machine()["commit"] == (found.stdout.strip() if found.returncode == 0 else None)
