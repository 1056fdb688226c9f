import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_own_loop_learns():
    main = runpy.run_path(str(EXAMPLES / "own_loop.py"))["main"]
    assert main(2) > 0.5
