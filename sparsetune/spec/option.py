"""``Option``: the one description of a setting, from which options, checks and commands are made.

A field of a settings' class carries it as metadata. From there command lines make an option of it
(``cli.options``), the class checks its values, and model cards write the command that gives them again.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, fields
from math import inf
from typing import Any


def option(sentence: str | None = None, **others: Any) -> dict[str, Any]:
    """Return a field's metadata: the help text, and what is unusual among :class:`Option`'s attributes."""
    return {"help": sentence, **others}


@dataclass(frozen=True, kw_only=True)
class Option:
    """What is said of a setting, once.

    Attributes:
        name: Of the field; with dashes, of the option.
        default: The field's.
        kind: Type of a value as it is written in a command; by default that of ``default``.
        help: One line for ``--help``; ``None`` where no command has an option for it.
        short: The option's short name, such as ``-b``.
        panel: Of the help; empty, the one of the class' other options.
        follows: Whether the recipe of a training decides where it is left out.
        late: Whether records of trainings hold it only where it is not the default, as those of before it do.
        least: The lowest number; ``None`` where it is not a number in a range.
        most: The highest.
        remedy: Said behind what is wrong with a number.
        choices: The texts that it may be; beside numbers, where there is a lowest one.
        names: Gives them where they are many.
    """

    name: str
    default: Any
    kind: Any
    help: str | None = None
    short: str | None = None
    panel: str | None = ""
    follows: bool = False
    late: bool = False
    least: float | None = None
    most: float = inf
    remedy: str = ""
    choices: tuple[str, ...] = ()
    names: Callable[[], Iterable[str]] | None = None

    @property
    def spelling(self) -> str:
        """Its long name in a command; of a flag, the one that is not the default."""
        return f"--{'no-' if self.default is True else ''}{self.name.replace('_', '-')}"

    def wrong(self, value: Any) -> str | None:
        """Return what is wrong with a value, to stand behind it in a sentence; ``None`` if it may be."""
        if value is None and self.default is None:
            return None
        if isinstance(value, str) and value in self.choices:
            return None
        if self.choices and isinstance(value, tuple):
            return next(filter(None, map(self.wrong, value)), None)
        if self.least is None:
            return f"is not one of {', '.join(self.choices)}." if self.choices else None
        whole = self.kind is int
        if _is_number(value, whole) and self.least <= value <= self.most:
            return None
        number = "a whole number" if whole else "a number"
        span = (
            f"{number} of {self.least} or more"
            if self.most == inf
            else f"between {self.least} and {self.most}"
        )
        other = f", or {' or '.join(self.choices)}" if self.choices else ""
        return f"is not {span}{other}{'; ' if self.remedy else ''}{self.remedy}."

    def read(self, text: str) -> Any:
        """Return the value that a text stands for, where that is one of ``choices`` or a number."""
        return text if text in self.choices else float(text)

    def words(self, value: Any, spelled: bool = False) -> Iterator[str]:
        """Yield the words of a command that give it a value: none for the default, for a list all items.

        Args:
            value: The value.
            spelled: Whether to spell out the default too.
        """
        if value is None or (value == self.default and not (spelled and self.follows)):
            return
        if isinstance(value, bool):
            yield self.spelling if value != self.default else f"--{self.name.replace('_', '-')}"
        else:
            for item in value if isinstance(value, (list, tuple)) else [value]:
                yield from (self.spelling, str(item))


def options_of(settings: type) -> dict[str, Option]:
    """Return what a settings' class says of its fields, by name, in their order."""
    return {
        field.name: Option(
            **{"name": field.name, "default": field.default, "kind": type(field.default), **field.metadata}
        )
        for field in fields(settings)
    }


def out_of_range(settings: Any) -> Iterator[str]:
    """Say of each field that its description refuses what is wrong, in a sentence."""
    for name, each in options_of(type(settings)).items():
        value = getattr(settings, name)
        if reason := each.wrong(value):
            if isinstance(value, tuple):
                value = ", ".join(map(str, value))
            word = isinstance(value, str) or each.least is None
            said = f"'{shown(value)}'" if each.choices and word else repr(value)
            yield f"{name} {said} {reason}"


def words(settings: Any, without: Collection[str] = (), spelled: bool = False) -> list[str]:
    """Return the words of a command that makes these settings.

    Args:
        settings: A value whose fields are described.
        without: Fields that are to be left out.
        spelled: Whether to spell out what a recipe would decide.
    """
    each = [o for o in options_of(type(settings)).values() if o.help and o.name not in without]
    return [word for o in each for word in o.words(getattr(settings, o.name), spelled)]


def _is_number(value: Any, whole: bool) -> bool:
    kinds = int if whole else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and -inf < value < inf


def shown(value: object) -> str:
    """Return a value for a sentence: in one printable piece, whatever a stranger wrote."""
    text = str(value)
    return text if text.isprintable() and len(text) <= 60 else reprlib.repr(value)
