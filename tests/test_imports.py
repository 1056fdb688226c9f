"""Imports run one way, downward, and each outside library has its place."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sparsetune"

COLUMN = [
    "errors",
    "durations",
    "sizes",
    "words",
    "seen",
    "files",
    "fetch",
    "machine",
    "malloc",
    "timing",
    "amounts",
    "learn",
    "layers",
    "outputs",
    "part",
    "empty",
    "precision",
    "choice",
    "plan",
    "allocation",
    "cost",
    "shifts",
    "weight_gradient",
    "ops",
    "factored",
    "joined",
    "wholes",
    "guarded",
    "sliced",
    "structure",
    "seeding",
    "backbone",
    "ways",
    "retired",
    "adapt",
    "channels",
    "following",
    "narrow",
    "slim",
    "slimming",
    "laws",
    "observe",
    "initial",
    "meta",
    "models",
    "arguments",
    "published",
    "weights",
    "zoo",
    "pictures",
    "preprocessing",
    "taught",
    "classes",
    "header",
    "delta",
    "arithmetic",
    "rebuild",
    "saving",
    "filesize",
    "stacking",
    "slimfile",
    "bundle",
    "switching",
    "shared",
    "tasks",
    "ensemble",
    "data",
    "inputs",
    "metrics",
    "uncertainty",
    "inference",
    "export",
    "config",
    "optim",
    "processes",
    "checkpoint",
    "recomputing",
    "gradients",
    "stepping",
    "training",
    "trials",
    "budget",
    "curves",
    "folders",
    "settings",
    "finished",
    "runs",
    "members",
    "lowrank",
    "reproduce",
    "comparison",
    "command",
    "card",
    "hub",
    "memory",
    "contestants",
    "keeping",
    "bench",
    "chart",
    "cli",
    "__init__",
    "__main__",
]
"""A module imports only what stands before it here."""

ONLY = {
    "typer": {"cli"},
    "rich": {"cli"},
    "accelerate": {"processes"},
    "matplotlib": {"curves", "chart", "reproduce", "comparison"},
    "peft": {"lowrank"},
    "ray": {"reproduce"},
    "sqlite3": {"reproduce"},
    "sklearn": {"data", "uncertainty"},
    "onnxruntime": {"export"},
    "onnxscript": {"export"},
    "huggingface_hub": {"published", "weights", "data", "fetch", "card", "hub", "cli"},
}


def top(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_what_stands_above(path):
    own = top(path)
    for name in imported(path):
        pieces = name.split(".")
        if pieces[0] == "sparsetune" and len(pieces) > 1 and pieces[1] in COLUMN and pieces[1] != own:
            assert COLUMN.index(pieces[1]) < COLUMN.index(own), f"{own} imports {name}"
        assert own in ONLY.get(pieces[0], {own}), f"{own} imports {name}"


def test_every_module_has_its_place():
    assert {top(path) for path in FILES} == set(COLUMN)


@pytest.mark.parametrize("folder", ["models", "data", "reproduce", "comparison", "cli"])
def test_no_cycle_inside_a_subpackage(folder):
    edges = {
        f"sparsetune.{folder}.{path.stem}".removesuffix(".__init__"): imported(path)
        | {name.rpartition(".")[0] for name in imported(path)}
        for path in (PACKAGE / folder).glob("*.py")
    }
    edges.pop(f"sparsetune.{folder}", None)
    left = {name: targets & set(edges) - {name} for name, targets in edges.items()}
    while left:
        free = [name for name, targets in left.items() if not targets & set(left)]
        assert free, f"cycle among {sorted(left)}"
        for name in free:
            del left[name]


def test_files_stay_short():
    long = {str(p): n for p in FILES if (n := len(p.read_text().splitlines())) > 500}
    assert not long
