"""``sparsetune models``."""

from __future__ import annotations

from typing import Annotated

import typer

from sparsetune.cli import console
from sparsetune.cli.options import Json
from sparsetune.errors import UnknownNameError
from sparsetune.zoo import names


def models(
    pattern: Annotated[
        str | None, typer.Argument(help="Such as wrn* or resnet; all names if left out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the names of models that can be adapted.

    Example: sparsetune models wrn
    """
    found = names(pattern)
    if not found:
        raise UnknownNameError("model", str(pattern), names())
    if as_json:
        console.print_json(found)
        return
    for name in found:
        console.out.print(name)
