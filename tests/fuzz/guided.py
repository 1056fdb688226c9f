"""Look for inputs that reach new lines of the readers, with atheris; needs the extra ``fuzz``.

    python tests/fuzz/guided.py READER CORPUS SECONDS RESULTS

READER is one of ``fuzz.py``, CORPUS a folder where what reaches new lines is kept; it begins with the golden
files. RESULTS is a file to which a line with what was seen is added. Inputs are changed as ``fuzz.py``
changes them, with right checksums, so that they come past the first door. It stops at the first escape and
keeps the input.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent))
with atheris.instrument_imports(include=["sparsetune"]):
    from fuzz import GOLDEN, MEMORY, READERS, bent, escaped, relined, rewritten, sources

from sparsetune.host import describe_machine, taken_bytes


def changed(data: bytes, most: int, seed: int) -> bytes:
    """Change an input: most often what it says, sometimes its bytes."""
    chance = random.Random(seed)
    try:
        way = rewritten if data[8:9] == b"{" else relined
        result = (way if chance.random() < 0.8 else bent)(data, chance)
    except Exception:  # it is too damaged to be changed so
        result = bent(data, chance)
    return result[:most]


def main() -> None:
    """Fuzz one reader."""
    name, corpus, seconds, results = sys.argv[1:]
    read, pattern = READERS[name]
    home = Path(tempfile.mkdtemp(prefix="guided", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    Path(corpus).mkdir(parents=True, exist_ok=True)
    made = sources(home)
    for source in made.get(name) or sorted(GOLDEN.glob(pattern)):
        shutil.copy(source, Path(corpus) / source.name)
        escaped(read, source)  # what is loaded late is loaded before memory is limited
    path = home / "input"
    warnings.simplefilter("ignore")
    about = describe_machine()
    seen, began = {"guided": name, "inputs": 0, "escapes": 0}, time.monotonic()

    def once(data: bytes) -> None:
        seen["inputs"] += 1
        path.write_bytes(data)
        if found := escaped(read, path):
            seen["escapes"] += 1
            tell()
            raise RuntimeError(found)
        if time.monotonic() - began > float(seconds):
            tell()
            os._exit(0)  # as libFuzzer ends, which runs nothing that is left to do

    def tell() -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        row = {**seen, "seconds": round(time.monotonic() - began), "peak_mib": peak, "run": about}
        with Path(results).open("a") as file:
            file.write(json.dumps(row) + "\n")
        shutil.rmtree(home)

    most = (taken_bytes("VmData") or 0) + MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    atheris.Setup([sys.argv[0], corpus, "-max_len=300000", "-rss_limit_mb=0"], once, custom_mutator=changed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
