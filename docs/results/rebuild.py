"""Adds to rebuild.json what seed 0 gives here: a digest for each of many models.

Run it under several versions of torch, threads, and values of ATEN_CPU_CAPABILITY. The models are the two
smallest of each of timm's and torchvision's modules, by zoo.jsonl. Ends with 1 if any digest is not the first
run's.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections import defaultdict
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import timm
import torch
import torchvision

import sparsetune as st
from sparsetune.backbone import TORCHVISION
from sparsetune.host import describe_machine
from sparsetune.parts import STORED

FOLDER = Path(__file__).parent
OUT = FOLDER / "rebuild.json"


def main() -> int:
    """Add a run; return how the process shall end."""
    warnings.filterwarnings("ignore")
    found = json.loads(OUT.read_text()) if OUT.exists() else {"runs": [], "models": {}}
    names = list(found["models"]) or sample()
    versions = {name: version(name) for name in ("torch", "timm", "torchvision", "numpy")}
    capability = os.environ.get("ATEN_CPU_CAPABILITY")
    found["runs"].append({**describe_machine(), "versions": versions, "ATEN_CPU_CAPABILITY": capability})
    for name in names:
        found["models"].setdefault(name, []).append(digest(name))
    OUT.write_text(json.dumps(found, indent=0))
    differing = [name for name, digests in found["models"].items() if len(set(digests)) > 1]
    print(f"{len(names)} models, {len(differing)} differ: {differing}")
    return int(bool(differing))


def sample() -> list[str]:
    """The two smallest models of each module that have a row in zoo.jsonl and are not large."""
    rows = map(json.loads, (FOLDER / "zoo.jsonl").read_text().splitlines()[1:])
    sizes = {row["name"]: row["parameters"] for row in rows if row.get("parameters", 1e9) < 6e7}
    modules = defaultdict(list)
    for name in sorted(sizes, key=lambda name: (sizes[name], name)):
        plain = name.removeprefix(TORCHVISION)
        build = timm.model_entrypoint(name) if plain == name else torchvision.models.get_model_builder(plain)
        modules[build.__module__].append(name)
    return [name for names in modules.values() for name in names[:2]]


def digest(name: str) -> str:
    """SHA-256 over what a seed gives: every parameter and buffer but those that a delta stores."""
    net = st.create(name, seed=0)
    stored = getattr(net, STORED)
    found = sha256()
    for key, value in net.state_dict().items():
        if key not in stored:
            found.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
            found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:32]


if __name__ == "__main__":
    sys.exit(main())
