"""Data on stdout, progress and messages on stderr."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

from sparsetune.errors import Notice
from sparsetune.host import is_main
from sparsetune.host import share as share
from sparsetune.host import size as size

if TYPE_CHECKING:
    from sparsetune.data import Data

silent = not is_main()
"""Of several processes that train together only the main one speaks."""
out = Console(highlight=False, markup=False, emoji=False, soft_wrap=True, quiet=silent)
err = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True, quiet=silent)


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    if not silent:
        print(json.dumps(value, indent=2))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows on stdout in columns, figures to the right; no cell is ever wrapped."""
    widths = [max(map(cell_len, column)) for column in zip(header, *rows, strict=True)]
    for number, row in enumerate([header, *rows]):
        cells = []
        for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
            space = " " * (width - cell_len(cell))
            cells.append(space + cell if index else cell + space)
        out.print("  ".join(cells).rstrip(), style="bold" if number == 0 else None)


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Print names and what they stand for on stdout, one a line."""
    width = max(len(name) for name, _ in fields)
    for name, text in fields:
        out.print(f"{name:<{width}}  {text}")


@contextmanager
def own_warnings() -> Iterator[None]:
    """Print what sparsetune warns of, each once, and leave out what libraries do: nobody here can act on it.

    With Python's ``-W`` or ``PYTHONWARNINGS`` all is as these say.
    """
    said: set[str] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not issubclass(category, Notice):
            plain(message, category, filename, lineno, file, line)
        elif str(message) not in said:
            said.add(str(message))
            err.print(str(message))

    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        warnings.simplefilter("always", Notice)
        plain, warnings.showwarning = warnings.showwarning, show
        yield


def complain(error: Exception) -> None:
    """Print what went wrong on stderr; of several problems each on its own line."""
    typer.echo("error: " + str(error).replace("\n", "\n       "), err=True)


def tell_data(data: Data) -> None:
    """Print on stderr what was found in a folder, and whether it, or a built-in, was meant."""
    tell_namesake(data)
    if data.found:
        err.print(data.found)


def tell_namesake(data: Data) -> None:
    """Print on stderr whether a folder or the built-in data of its name was meant, where there are both."""
    from sparsetune.data import namesake

    if line := namesake(data.source):
        err.print(line)


class _Bar(Progress):
    def stop(self) -> None:
        """Say nothing where nothing was shown; rich before 14.3 ends with an empty line."""
        if not self.disable:
            super().stop()


def progress() -> Progress:
    """Make a progress bar on stderr; it is silent where stderr is no terminal."""
    return _Bar(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        disable=silent or not err.is_terminal,
        transient=True,
    )
