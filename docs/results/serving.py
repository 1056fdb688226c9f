"""Loads ``examples/serve.py`` on loopback: throughput of one task and of many, memory, a task's first answer.

Run on a quiet machine: python docs/results/serving.py; it writes serving-cpu.json beside itself. The client
runs beside the server on the same machine, and takes a part of its time.

Deltas are of EfficientNet-Lite0 at 96 x 96 over a backbone from a seed, a tenth of each layer (``tenth``), or
a vector of 2,000 values with the classifier in int6 (``vector``). Those of different tasks are copies of ten,
since a server cannot know.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx2 as httpx
import numpy as np
import torch
from PIL import Image

import sparsetune as st
from sparsetune.data import Preprocessing
from sparsetune.host import describe_machine

ROOT = Path(__file__).parent.parent.parent
MODEL, SIDE, CLASSES = "tf_efficientnet_lite0", 96, 10
LEARNS = {
    "tenth": (st.Learn(fraction=0.1, norm_stats="frozen"), None),
    "vector": (st.Learn(dimensions=2000, norm=False, norm_stats="frozen"), "int6"),
}
COUNTS = {"tenth": 1000, "vector": 10_000}
KINDS = 10
CLIENTS, REQUESTS = 32, 640
COLD = 200


def deltas(folder: Path, what: str, count: int) -> int:
    """Write so many deltas; return the bytes of one."""
    folder.mkdir(parents=True)
    learn, dtype = LEARNS[what]
    net = st.adapt_(st.create(MODEL, num_classes=CLASSES), learn)
    form = Preprocessing(size=(3, SIDE, SIDE), mean=(0.5,) * 3, std=(0.5,) * 3)
    torch.manual_seed(0)
    for number in range(KINDS):
        with torch.no_grad():
            for value in net.parameters():
                value.add_(0.01 * torch.randn_like(value))
        names = [f"class {i}" for i in range(CLASSES)]
        st.save(net, folder / f"t{number}.safetensors", classes=names, preprocessing=form, dtype=dtype)
    for number in range(KINDS, count):
        shutil.copy(folder / f"t{number % KINDS}.safetensors", folder / f"t{number}.safetensors")
    return (folder / "t0.safetensors").stat().st_size


@contextmanager
def serving(folder: Path, cache: str) -> Any:
    """Serve a folder; give the address and the process."""
    command = [
        sys.executable,
        str(ROOT / "examples" / "serve.py"),
        str(folder),
        "--cache",
        cache,
        "--port",
        "8123",
    ]
    with (folder.parent / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        address = "http://127.0.0.1:8123"
        try:
            for _ in range(1200):
                try:
                    httpx.get(f"{address}/health", timeout=5).raise_for_status()
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            yield address, process.pid
        finally:
            process.terminate()
            process.wait()


def resident(pid: int) -> int:
    """Return a process' resident memory in bytes."""
    line = next(each for each in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmRSS" in each)
    return int(line.split()[1]) * 1024


def held(folder: Path, count: int) -> tuple[int, int]:
    """Return this process' memory with one of so many tasks read, and with all."""
    files = {f"t{i}": folder / f"t{i}.safetensors" for i in range(count)}
    tasks = st.Tasks.load(files, cache_bytes=1 << 40)
    before = resident(os.getpid())
    for name in files:
        tasks.header(name)
    return before, resident(os.getpid())


def picture() -> bytes:
    """Return a JPEG of noise, of twice the network's side."""
    pixels = np.random.default_rng(0).integers(0, 255, (2 * SIDE, 2 * SIDE, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


async def ask(address: str, tasks: list[str], clients: int) -> tuple[float, list[float]]:
    """Ask about a picture of each task, so many at a time; return requests a second, and milliseconds."""
    content, waiting, taken = picture(), list(reversed(tasks)), []

    async def client(http: httpx.AsyncClient) -> None:
        while waiting:
            task = waiting.pop()
            start = time.perf_counter()
            answer = await http.post(f"{address}/predict/{task}", content=content)
            answer.raise_for_status()
            taken.append(1e3 * (time.perf_counter() - start))

    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(timeout=60, limits=limits) as http:
        began = time.perf_counter()
        await asyncio.gather(*(client(http) for _ in range(clients)))
        return len(tasks) / (time.perf_counter() - began), taken


def told(taken: list[float]) -> dict[str, float]:
    """Return median and 99th percentile."""
    return {"median": median(taken), "p99": quantiles(taken, n=100)[-1]}


def measure(work: Path) -> dict[str, Any]:
    """Measure everything."""
    found: dict[str, Any] = {"model": MODEL, "side": SIDE, "clients": CLIENTS, "requests": REQUESTS}
    found["file_bytes"] = {
        what: deltas(work / what, what, count) for what, count in (("tenth", 1000), ("vector", 10_000))
    }
    chance = np.random.default_rng(0)
    with serving(work / "tenth", "4GB") as (address, pid):
        few, many = ["t0"], [f"t{i}" for i in range(100)]
        for names in (few, many):
            asyncio.run(ask(address, names, 4))
        rounds: dict[str, list[float]] = {"one": [], "hundred": []}
        times: dict[str, list[float]] = {"one": [], "hundred": []}
        for _ in range(3):
            for key, names in (("one", few), ("hundred", many)):
                rate, taken = asyncio.run(
                    ask(address, [str(chance.choice(names)) for _ in range(REQUESTS)], CLIENTS)
                )
                rounds[key].append(rate)
                times[key] += taken
        found["pictures_per_second"] = {key: median(rates) for key, rates in rounds.items()}
        found["mixed_ratio"] = median(b / a for a, b in zip(rounds["one"], rounds["hundred"], strict=True))
        found["milliseconds"] = {key: told(taken) for key, taken in times.items()}
    for what, count in COUNTS.items():
        with serving(work / what, "4GB") as (address, _):
            names = [f"t{i}" for i in range(KINDS, KINDS + COLD)]
            asyncio.run(ask(address, ["t0"] * 20, 1))
            cold, warm = (told(asyncio.run(ask(address, names, 1))[1]) for _ in range(2))
        with get_context("spawn").Pool(1) as pool:
            before, after = pool.apply(held, (work / what, count))
        found[what] = {
            "tasks": count,
            "resident_before": before,
            "resident_after": after,
            "bytes_per_task": (after - before) / (count - 1),
            "cold_milliseconds": cold,
            "warm_milliseconds": warm,
        }
    with serving(work / "tenth", "50MB") as (address, pid):
        names = [f"t{i}" for i in chance.integers(0, 1000, REQUESTS)]
        rate, _ = asyncio.run(ask(address, names, CLIENTS))
        found["bounded"] = {
            "cache": "50MB",
            "tasks": 1000,
            "pictures_per_second": rate,
            "resident": resident(pid),
        }
    return found


def main() -> None:
    """Run the command line."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    found |= {"workers": os.cpu_count(), **describe_machine()}
    (Path(__file__).parent / "serving-cpu.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
