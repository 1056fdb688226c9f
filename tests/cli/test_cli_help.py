from __future__ import annotations

import pytest

from sparsetune.cli import app

COMMANDS = [command.name for command in app.registered_commands]


def test_there_are_the_commands_of_the_contract():
    told = {"fit", "plan", "eval", "predict", "info", "verify", "merge", "export", "push", "pull"}
    assert told | {"bench", "models"} <= set(COMMANDS)


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_help_lists_every_command(sparsetune, words):
    result = sparsetune(*words, code=0 if words else 2)
    told = result.out + result.err
    assert "sparsetune fit --model wrn28_4 --fraction 0.1" in told
    assert all(f" {name} " in told for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_an_example(sparsetune, name):
    told = sparsetune(name, "--help").out
    assert f"Example: sparsetune {name} " in told
    assert "--json" in told
    assert told == sparsetune(name, "-h").out
    assert max(map(len, told.splitlines())) <= 80
