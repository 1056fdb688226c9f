"""Measures what ``fit --budget`` comes to in files of next to nothing; it can be stopped and goes on.

WRN-28-4 over random weights, scikit-learn's digits, 12 epochs, all else as ``fit`` has it; backbone and order
of pictures by the seed. A row holds one training: its accuracy on the 359 test pictures, judged with the
values that the file gives back, and the file's bytes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from sparsetune.host import describe_machine

BUDGETS = ("8KB", "12KB", "16KB", "24KB", "60KB")
SEEDS = (0, 1, 2)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    lines = given.out.read_text().splitlines() if given.out.is_file() else []
    done = {(row["budget"], row["seed"]) for row in map(json.loads, lines)}
    for seed in SEEDS:
        for budget in BUDGETS:
            if (budget, seed) in done:
                continue
            with tempfile.TemporaryDirectory() as folder:
                words = ["fit", "--model", "wrn28_4", "--data", "digits", "--epochs", "12", "--json"]
                words += ["--seed", str(seed), "--backbone-seed", str(seed), "--budget", budget]
                words += ["--out", f"{folder}/run"]
                ran = subprocess.run(
                    [sys.executable, "-m", "sparsetune", *words], capture_output=True, check=True
                )
                size = (Path(folder) / "run" / "delta.safetensors").stat().st_size
            said = json.loads(ran.stdout)
            row = {
                "budget": budget,
                "seed": seed,
                "top1": said["result"]["test_top1"],
                "file_bytes": size,
                "learned_parameters": said["learned_parameters"],
                "chosen": said["choice"]["name"],
                "run": describe_machine(),
            }
            with given.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(budget, seed, row["top1"], size, flush=True)


if __name__ == "__main__":
    main()
