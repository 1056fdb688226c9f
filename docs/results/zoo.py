"""Takes every model of the zoo through sparsetune; one row each in zoo.jsonl. It goes on where it stopped.

Each model is created, planned, adapted, trained a step and saved in one new process, and loaded from its file
alone in another. Processes are forked from one that has imported sparsetune and built nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

import zoo_row

import sparsetune as st
from sparsetune.backbone import Backbone, Origin, skeleton
from sparsetune.host import describe_machine

Row = dict[str, Any]
GIB = 1 << 30
LIBRARIES = ("sparsetune", "timm", "torch", "torchvision")
TOLERANCE = {"float64": 1e-8, "float32": 1e-3}
"""Largest relative difference of gradients."""


@dataclass
class Child:
    """A process at work on one model."""

    name: str
    pid: int
    pipe: int
    path: Path
    need: int
    row: Row | None = None


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pattern", nargs="*", help="names or patterns; all models if left out")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".jsonl"))
    parser.add_argument("--again", choices=["failed"], help="do again what failed")
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side")
    parser.add_argument("--together", type=float, default=10, help="GiB that they may need together")
    parser.add_argument(
        "--alone", type=float, default=20, help="GiB that one may need alone; more is too big"
    )
    parser.add_argument("--seconds", type=int, default=400, help="longest time of one process")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    rows = read_rows(options.out, again=options.again is not None)
    known = st.names()
    names = [[word] if word in known else st.names(word) for word in options.pattern] or [known]
    todo = [name for name in dict.fromkeys(chain(*names)) if name not in rows]
    needs = all_needed(todo, options.jobs)
    run(sorted(todo, key=needs.__getitem__), needs, rows, options)


def run(todo: list[str], needs: dict[str, int], rows: dict[str, Row], options: argparse.Namespace) -> None:
    """Work through ``todo``, smallest first, appending each finished row to the file."""
    covered = {kind for row in rows.values() for kind in checked_kinds(row)}
    running: list[Child] = []
    with tempfile.TemporaryDirectory() as folder:
        while todo or running:
            while todo and has_room(needs[todo[0]], running, options):
                name = todo.pop(0)
                if needs[name] > options.alone * GIB:
                    append(options.out, {"name": name, "too_big": f"needs about {needs[name] / GIB:.0f} GiB"})
                    continue
                path = Path(folder) / f"{name.replace('/', '-')}.safetensors"
                save = partial(zoo_row.save_row, name, path, frozenset(covered))
                running.append(Child(name, *fork(save, options.seconds, options.alone), path, needs[name]))
            for child in finished(running):
                row = collect(child.pid, child.pipe)
                if child.row is None and "failed" not in row:
                    child.row = row
                    load = partial(zoo_row.load_row, child.name, child.path)
                    child.pid, child.pipe = fork(load, options.seconds, options.alone)
                    continue
                running.remove(child)
                child.path.unlink(missing_ok=True)
                done = judged(child.name, child.row, row)
                append(options.out, done)
                covered |= checked_kinds(done)
                print(f"{len(todo):5} left  {child.name}  {done.get('failed', 'ok')}", file=sys.stderr)


def has_room(need: int, running: list[Child], options: argparse.Namespace) -> bool:
    """Whether one more process may start beside those that run."""
    together = need + sum(child.need for child in running)
    return not running or (len(running) < options.jobs and together <= options.together * GIB)


def checked_kinds(row: Row) -> set[str]:
    """Kinds of layer whose gradients a row has found right."""
    return set(row["kinds"]) if "gradient" in row and "failed" not in row else set()


def judged(name: str, saved: Row | None, loaded: Row) -> Row:
    """The row of a model from what its two processes found."""
    if saved is None or "failed" in loaded:
        stage = "save" if saved is None else "load"
        return {"name": name, **(saved or {}), "failed": f"{stage}: {loaded['failed']}"}
    row = {"name": name, **saved, **loaded}
    problems = [f"{key} differ after loading" for key in ("values", "logits") if saved[key] != loaded[key]]
    problems += [] if saved["merged"] else ["merge_ does not give the plain model's state_dict"]
    if "gradient" in row and not row["gradient"] <= TOLERANCE[row["gradient_dtype"]]:
        problems.append(f"gradients differ by {row['gradient']:.1e}")
    row["ran"] = not row["logits"].startswith("none")
    if not row["ran"]:
        row["why"] = row["logits"]
    for key in ("values", "logits"):
        del row[key]
    return row | ({"failed": "; ".join(problems)} if problems else {"round_trip": True})


def all_needed(names: list[str], jobs: int) -> dict[str, int]:
    """What :func:`needed` says of each name, worked out once a machine and set of versions."""
    versions = "-".join(version(library) for library in LIBRARIES)
    cache = Path(tempfile.gettempdir()) / f"sparsetune-zoo-{versions}.json"
    found: dict[str, int] = json.loads(cache.read_text()) if cache.exists() else {}
    new = [name for name in names if name not in found]
    workers = [
        fork(lambda part=new[i::jobs]: {name: needed(name) for name in part}, 3600) for i in range(jobs)
    ]
    for worker in workers:
        found |= collect(*worker)
    cache.write_text(json.dumps(found))
    return found


def needed(name: str) -> int:
    """Bytes that the run of a model needs at its peak: its values twice, and something for activations."""
    library, _, plain = name.rpartition("/")
    origin = Origin(
        library=library or "timm",
        name=plain if library else name,
        kwargs={},
        num_classes=None,  # type: ignore[arg-type]
        backbone=Backbone(kind="seed"),
    )
    values = sum(value.numel() * value.element_size() for value in skeleton(origin).state_dict().values())
    return int(2.6 * values + 1.5 * GIB)


def fork(task: Callable[[], Row], seconds: int, gib: float = 20) -> tuple[int, int]:
    """Run ``task`` in a new process; return its id and a pipe that gives its result as JSON."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid:
        os.close(theirs)
        return pid, ours
    os.close(ours)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    limit = int((gib + 4) * GIB)  # of addresses, of which some 4 GiB are never touched
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    try:
        row = task()
    except BaseException as error:
        row = {"failed": zoo_row.one_line(error)}
    with os.fdopen(theirs, "w") as pipe:
        pipe.write(json.dumps(row))
    os._exit(0)


def finished(running: list[Child]) -> list[Child]:
    """Wait until some have ended."""
    look = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while not (ended := [child for child in running if os.waitid(os.P_PID, child.pid, look)]):
        time.sleep(0.02)
    return ended


def collect(pid: int, ours: int) -> Row:
    """The result of a process, once it has ended."""
    with os.fdopen(ours) as pipe:
        text = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if text:
        found: Row = json.loads(text)
        return found
    return {"failed": f"killed by signal {-status}: out of time or memory"}


def read_rows(path: Path, again: bool) -> dict[str, Row]:
    """Rows that stand, by name; starts the file if there is none, and drops failed ones to do again."""
    versions = {library: version(library) for library in LIBRARIES}
    if not path.exists():
        path.write_text(json.dumps({"run": {**describe_machine(), "versions": versions}}) + "\n")
    head, *rows = map(json.loads, path.read_text().splitlines())
    if head["run"]["versions"] != versions:
        sys.exit(f"{path} is of {head['run']['versions']}, here is {versions}; move it away to start anew.")
    if again:
        rows = [row for row in rows if "failed" not in row]
        path.write_text("".join(json.dumps(row) + "\n" for row in [head, *rows]))
    return {row["name"]: row for row in rows}


def append(path: Path, row: Row) -> None:
    """Add a row to the file."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
