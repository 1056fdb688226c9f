import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def main_of(name):
    return runpy.run_path(str(EXAMPLES / name))["main"]


def test_own_loop_learns():
    assert main_of("own_loop.py")(2) > 0.5


def test_transformers_vit_learns():
    assert main_of("transformers_vit.py")(4) > 0.4


def test_text_learns_more_than_how_common_each_package_is():
    accuracy, chance = main_of("text.py")(2)
    assert accuracy > chance + 0.1
