"""The house: rooms in one order, imports downward, each outside library in its place."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import sparsetune

PACKAGE = Path(sparsetune.__file__).parent

ROOMS = [
    "errors",
    "host",
    "spec",
    "parts",
    "data",
    "backbone",
    "sliced",
    "delta",
    "narrow",
    "serve",
    "train",
    "runs",
    "publish",
    "bench",
    "studies",
    "cli",
    "__init__",
    "__main__",
]
"""A room imports only rooms that stand before it here."""

ONLY = {
    "typer": {"cli"},
    "rich": {"cli"},
    "accelerate": {"train.processes"},
    "matplotlib": {
        "runs.run",
        "runs.report",
        "bench.bench",
        "studies.paper.figures",
        "studies.compare.shown",
    },
    "jinja2": {"studies.paper.report"},
    "peft": {"bench.peft"},
    "ray": {"studies.runner"},
    "tqdm": {"train.history"},
    "sqlite3": {"studies.store"},
    "sklearn": {"data.named", "runs.report", "train.metrics"},
    "pyarrow": {"data.parquet"},
    "onnxruntime": {"publish.export"},
    "onnxscript": {"publish.export"},
    "torchvision": {"backbone", "data.named", "data.preprocessing"},
    "huggingface_hub": {"host.files", "data.named", "backbone.pretrained", "publish", "cli.deltas"},
}
"""Library -> the rooms or files that may import it."""

FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def room(name: str) -> str:
    return name.split(".")[0]


def imported(path: Path) -> set[str]:
    """Every module that a file imports, and every name from one, with dots."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def inside(name: str) -> set[str]:
    """The files of the package that a file imports; a name from another room is from that room's door."""
    found = set()
    for target in imported(FILES[name]):
        if target.startswith("sparsetune."):
            whole, within = target.removeprefix("sparsetune."), target.split(".")[1]
            is_file = whole in FILES and (within == room(name) or whole == within)
            found.add(whole if is_file else whole.rpartition(".")[0])
    return found - {""}


def levels(edges: dict[str, set[str]]) -> dict[str, int]:
    """How many floors lie below each; fails where imports run in a circle."""
    found: dict[str, int] = {}
    while len(found) < len(edges):
        free = {name for name, below in edges.items() if name not in found and below <= {*found}}
        assert free, f"a circle among {sorted({*edges} - {*found})}"
        found |= {name: 1 + max((found[each] for each in edges[name]), default=0) for name in free}
    return found


@pytest.mark.parametrize("name", FILES)
def test_imports_run_downward_and_through_the_door(name):
    for target in inside(name):
        assert ROOMS.index(room(target)) <= ROOMS.index(room(name)), f"{name} imports {target}"
        if room(target) != room(name):
            doors = {room(target), "studies.compare", "studies.paper", "backbone.models"}
            assert target in doors, f"{name} imports {target}, a file of another room"


@pytest.mark.parametrize("name", FILES)
def test_outside_libraries_have_their_places(name):
    for target in imported(FILES[name]):
        places = ONLY.get(target.split(".")[0], {name})
        assert any(name == place or name.startswith(f"{place}.") for place in places), f"{name}: {target}"


def test_no_file_has_the_name_of_what_users_import():
    public = set(sparsetune.__all__)
    assert not [name for name in FILES if name.rpartition(".")[2] in public and room(name) != "cli"]


def test_files_do_not_import_in_a_circle():
    doors = {name for name, path in FILES.items() if path.name == "__init__.py"}
    levels({name: inside(name) - doors - {name} for name in FILES if name not in doors})


def test_rooms_stand_on_few_floors():
    floors = {each: set[str]() for each in ROOMS}
    for name in FILES:
        floors[room(name)] |= {room(each) for each in inside(name)} - {room(name)}
    del floors["__init__"], floors["__main__"]
    assert max(levels(floors).values()) <= 13


def test_every_file_stands_in_a_room_that_tells_what_it_is_for():
    assert {room(name) for name in FILES} == set(ROOMS)
    assert len([name for name, path in FILES.items() if path.parent == PACKAGE]) <= 6
    assert len(FILES) <= 120


def test_files_stay_short():
    long = {
        name: count for name, path in FILES.items() if (count := len(path.read_text().splitlines())) > 500
    }
    assert not long
