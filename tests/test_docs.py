"""What README and documents show does what they say: every Python and shell block, in its order."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import loopback
import pytest
from PIL import Image
from safetensors.torch import save

import sparsetune as st

ROOT = Path(__file__).parent.parent
PAGES = [
    path.relative_to(ROOT)
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if re.search(r"^```(python|sh)$", path.read_text(), re.MULTILINE)
]
PUBLISHED = "resnet18"
"""What a reader with a network fetches; here a Hub on loopback has it, with values from a seed."""


@pytest.fixture
def home(tmp_path) -> Path:
    """A reader's folder, with some pictures of his own in it."""
    data = st.open_data("digits")
    for name, number in (("cats", 3), ("dogs", 8), ("cars", 1), ("planes", 7)):
        indices = [i for i, label in enumerate(data.train.labels.tolist()) if label == number][:16]
        for index in indices:
            path = tmp_path / "photos" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            data.train[index][0].resize((96, 80), Image.Resampling.BICUBIC).convert("RGB").save(path)
    return tmp_path


def run(page: Path, home: Path) -> str:
    with loopback.running() as hub:
        repo = hub.repos.setdefault("timm/resnet18.a1_in1k", loopback.Repo(private=False))
        values = {name: value.contiguous() for name, value in st.create(PUBLISHED).state_dict().items()}
        repo.commit("main", {"model.safetensors": save(values, {"format": "pt"})}, "weights")
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home / ".hub"),
            "HF_TOKEN": loopback.TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            "PYTHONPATH": os.pathsep.join((str(ROOT / "examples"), os.environ.get("PYTHONPATH", ""))),
        }
        command = [sys.executable, str(ROOT / "tests" / "pages.py"), str(ROOT / page)]
        done = subprocess.run(
            command,
            cwd=home,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    print(done.stdout[-20_000:])
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_block_runs_as_printed(page, home):
    told = run(page, home)
    text = (ROOT / page).read_text()
    blocks = len(re.findall(r"^```(python|sh)$", text, re.MULTILINE))
    assert told.count("--- line") >= blocks - len(re.findall("skip: next", text))


def test_a_block_that_fails_fails_the_page(tmp_path):
    for block in ("```python\nst = 1\n```\n\n```python\nassert st == 2\n```", "```sh\nfalse\necho on\n```"):
        page = tmp_path / "page.md"
        page.write_text(block + "\n")
        with pytest.raises(AssertionError):
            run(page, tmp_path)


def test_blocks_that_are_not_run_say_why():
    for page in PAGES:
        for line in (ROOT / page).read_text().splitlines():
            if "skip:" in line:
                assert re.fullmatch(r'<!--- skip: next "[^"]{10,}" -->', line), line


def test_there_are_no_other_languages_of_code_to_forget():
    """Fences without a language, or of ``bash``, would not be run."""
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        fences = re.findall(r"^```(\w*)$", page.read_text(), re.MULTILINE)
        assert {*fences[::2]} <= {"python", "sh", "text", "diff", "json", "bibtex"}, page


def sentences() -> list[str]:
    """What the code says, with a mark in the place of each value."""
    found = []
    for path in Path(st.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(p.value if isinstance(p, ast.Constant) else "…" for p in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_refusals_that_are_explained_are_those_of_the_code():
    told = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "faq.md").read_text(), re.MULTILINE)
    assert len(told) > 10
    known = sentences()
    for refusal in told:
        pieces = [piece.strip(" .;'") for piece in refusal.split("…") if len(piece.strip(" .;'")) > 3]
        pieces = [re.sub(r"\b\d+\b", "…", piece) for piece in pieces]
        pieces = [part.strip() for piece in pieces for part in piece.split("…") if len(part.strip()) > 3]
        assert any(all(piece in each for piece in pieces) for each in known), refusal
