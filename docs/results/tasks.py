"""Measures a hundred tasks on one backbone: memory of each, time of a switch, and a mixed batch.

Run on a quiet machine: python docs/results/tasks.py; it writes tasks-cpu.json beside itself.
"""

from __future__ import annotations

import ctypes
import json
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from statistics import median, quantiles

import torch

import sparsetune as st
from sparsetune.host import describe_machine

MODEL, FRACTION, TASKS = "densenet100_12", 0.1, 100
WARM = 10
"""Tasks added before memory is first read."""
SWITCHES, ROWS, MIXED = 1000, 64, 8


def make(folder: Path) -> None:
    """Save deltas that differ in every value, with batch-norm statistics as pictures give them."""
    torch.manual_seed(0)
    net = st.adapt_(st.create(MODEL, num_classes=10), st.Learn(fraction=FRACTION))
    with torch.no_grad():
        for _ in range(30):
            net(torch.randn(32, 3, 32, 32))
    values = [value for value in net.state_dict().values() if value.is_floating_point()]
    start = [value.clone() for value in values]
    for number in range(TASKS):
        for value, first in zip(values, start, strict=True):
            value.copy_(first + 0.01 * torch.randn_like(first))
        st.save(net, folder / f"task{number}")


def resident() -> int:
    """Return this process' resident memory in bytes, after the allocator gave back what it keeps unused."""
    ctypes.CDLL(None).malloc_trim(0)
    line = next(each for each in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in each)
    return int(line.split()[1]) * 1024


def switch_ms(tasks: st.Tasks, threads: int) -> dict[str, float]:
    """Time switches from each task to the next, in milliseconds."""
    torch.set_num_threads(threads)
    taken = []
    for number in range(SWITCHES + TASKS):
        name = tasks.names[number % TASKS]
        start = time.perf_counter()
        with tasks.use(name):
            taken.append(1e3 * (time.perf_counter() - start))
    taken = taken[TASKS:]
    low, *_, high = quantiles(taken, n=20)
    return {"threads": threads, "median": median(taken), "fifth_percent": low, "ninety_fifth_percent": high}


def mixed(tasks: st.Tasks, folder: Path) -> dict[str, object]:
    """Compare a mixed batch with each task's own model, and with one row at a time."""
    x = torch.randn(ROWS, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    names = [f"task{row * 3 % MIXED}" for row in range(ROWS)]
    with torch.inference_mode():
        logits = tasks(x, task=names)
        alone = torch.empty_like(logits)
        for name in set(names):
            rows = [row for row, own in enumerate(names) if own == name]
            alone[rows] = st.load(folder / name)(x[rows])
        single = torch.cat([tasks(name, x[row : row + 1]) for row, name in enumerate(names)])
    return {
        "rows": ROWS,
        "tasks": MIXED,
        "equals_each_model_alone": torch.equal(logits, alone),
        "equals_one_row_at_a_time": torch.equal(logits, single),
        "largest_difference_to_one_row_at_a_time": (logits - single).abs().max().item(),
        "largest_logit": logits.abs().max().item(),
    }


def main() -> None:
    """Measure, print and write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        maker = get_context("spawn").Process(target=make, args=(folder,))  # its memory is not to be seen here
        maker.start()
        maker.join()
        paths = {f"task{number}": folder / f"task{number}" for number in range(TASKS)}
        tasks = st.Tasks.load(dict(list(paths.items())[:WARM]))
        tasks("task0", torch.zeros(ROWS, 3, 32, 32))
        before = resident()
        for task in list(paths)[WARM:]:
            tasks.add(task, paths[task])
        growth = (resident() - before) / (TASKS - WARM)
        size = paths["task0"].stat().st_size
        found = {
            **{"model": MODEL, "fraction": FRACTION, "tasks": TASKS, **describe_machine()},
            "delta_bytes": size,
            "resident_bytes_a_task": growth,
            "resident_over_delta": growth / size,
            "switch_ms": [switch_ms(tasks, threads) for threads in (1, 2)],
            "mixed": mixed(tasks, folder),
        }
    text = json.dumps(found, indent=2)
    print(text)
    Path(__file__).with_name("tasks-cpu.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
