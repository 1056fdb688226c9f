"""Imports that wait: doors whose names are imported when they are used, and what follows another import."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def lazily(door: str) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a door whose imports stand under ``if TYPE_CHECKING``.

    They are the one list of what the door hands on: type checkers follow them, and so does this, one by one,
    as names are asked for (PEP 562). No file behind the door may have the name of what it hands on: once
    imported, the file would be found in its place.

    Args:
        door: ``__name__`` of the package.
    """
    package = sys.modules[door]
    tree = ast.walk(ast.parse(inspect.getsource(package)))
    homes = {
        name.name: node.module for node in tree if isinstance(node, ast.ImportFrom) for name in node.names
    }

    def hand_on(name: str) -> Any:
        if name not in package.__all__:
            raise AttributeError(f"module '{door}' has no attribute '{name}'")
        value = getattr(import_module(str(homes[name])), name)
        setattr(package, name, value)
        return value

    return hand_on


def after_import(library: str, module: str) -> None:
    """Import one of our modules as soon as somebody imports a library: now, if that was done before."""
    if library in sys.modules:
        import_module(module)
    else:
        sys.meta_path.insert(0, _After(library, module))


class _After(MetaPathFinder):
    """Finds a library where others find it, and has our module imported once it is imported."""

    def __init__(self, library: str, module: str) -> None:
        self.library, self.module, self.asking = library, module, False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.library or self.asking:
            return None
        self.asking = True
        try:
            found = find_spec(name)
        finally:
            self.asking = False
        if found and found.loader:
            run = found.loader.exec_module

            def run_both(module: ModuleType) -> None:
                run(module)
                if self in sys.meta_path:  # who asks whether a library is there finds it without importing it
                    sys.meta_path.remove(self)
                import_module(self.module)

            found.loader.exec_module = run_both  # type: ignore[method-assign]
        return found
