"""A command that takes the fields of a settings' class."""

from __future__ import annotations

from inspect import signature
from typing import Annotated

import pytest

from sparsetune.cli.options import Fields, Given, expanded
from sparsetune.errors import ConfigError
from sparsetune.spec import Learn, options_of

Part = Annotated[Given[Learn], Fields(Learn, "Panel", without=("frozen",))]


def test_its_options_stand_in_the_place_of_the_one_parameter():
    seen = {}

    def command(*, first: int = 0, learned: Part, last: str = "x") -> None:
        """Tell."""
        seen.update(first=first, learned=learned, last=last)

    plain = expanded(command)
    assert plain.__doc__ == "Tell."
    fields = [name for name, o in options_of(Learn).items() if o.help and name != "frozen"]
    parameters = signature(plain).parameters
    assert [*parameters] == ["first", *fields, "last"]
    defaults = {name: parameters[name].default for name in fields}
    assert defaults == {"norm": True, "head": True, "dim": "out", "projection_seed": 0} | dict.fromkeys(
        ("fraction", "filters", "rank", "dimensions", "layers", "norm_stats")
    )
    plain(first=1, last="y", **{**defaults, "rank": 2, "layers": ["a"], "head": False})
    assert (seen["first"], seen["last"]) == (1, "y")
    assert seen["learned"].made() == Learn(rank=2, layers=["a"], head=False)
    assert seen["learned"].made(rank=3, layers=None) == Learn(rank=3, head=False)
    with pytest.raises(ConfigError, match="rank 0 is not"):
        seen["learned"].made(rank=0)
