"""What a release consists of tells one version."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import yaml

import sparsetune

ROOT = Path(__file__).parent.parent
MADE = {"results/bench.png", "commands.md", "changelog.md"}
"""What building the site makes."""


def test_every_file_has_the_same_version():
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version("sparsetune") == sparsetune.__version__ == told
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == told
    titles = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert titles[0] in ("Unreleased", told)


def test_links_between_pages_lead_somewhere():
    """mkdocs tells of those inside docs; these are also of README and what else stands at the top."""
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for target in {*re.findall(r"\]\((?!https?://|#)([^)#\s]+)", page.read_text())} - MADE:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
