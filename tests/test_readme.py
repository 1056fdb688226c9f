"""What the README shows is what was measured."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from statistics import fmean

ROOT = Path(__file__).parent.parent


def test_the_picture_has_the_accuracies_of_the_rows():
    """The mean of every task and method stands in it, so no rows are newer."""
    drawn = (ROOT / "docs" / "transfer.svg").read_text()
    rows = [json.loads(line) for line in (ROOT / "docs/results/transfer.jsonl").read_text().splitlines()]
    for method in ("logistic regression", "60 KB", "no flag"):
        for task in {row["task"] for row in rows}:
            found = [row["top1"] for row in rows if (row["task"], row["method"]) == (task, method)]
            assert f">{100 * fmean(found):.1f}<" in drawn


def test_the_picture_draws_everything_learned_at_the_rate_that_validation_prefers():
    rows = [
        {"task": "photos", "method": "full", "seed": seed, "lr": lr, "top1": top1, "validation_loss": loss}
        for seed, lr, top1, loss in ((0, 0.1, 0.5, 0.3), (0, 0.2, 0.9, 0.4), (1, 0.1, 0.7, 0.9))
    ]
    ((task, method, _, top1, seeds),) = runpy.run_path(str(ROOT / "docs" / "picture.py"))["points"](rows)
    assert (task, method, round(top1, 6), seeds) == ("photos", "full", 60, 2)
