from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from sparsetune.host.machine import keep_freed_memory

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
