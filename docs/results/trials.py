"""Measures what trials of some lengths tell of the candidates of --budget, as JSON.

On the benchmarks of ``sparsetune compare --preset small``, after it, for three seeds.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from sparsetune.host import describe_machine
from sparsetune.runs import kept_in, spend, try_out, ways
from sparsetune.studies import Place, sources_from
from sparsetune.studies.compare import Comparison, config_of, data_of, plain_of
from sparsetune.train import processes, set_aside

STEPS = (50, 100, 200)
SEEDS = (0, 1, 2)
RATE = 0.03
"""The learning rate that was the best for low rank everywhere."""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compared", type=Path, required=True, help="Folder of the comparison.")
    parser.add_argument("--data", action="append", default=[], help="NAME=FOLDER, as for the comparison.")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    place = Place(options.compared.absolute(), sources_from(options.data))
    rows = []
    for entry in Comparison(preset="small", only=("budget",), seeds=SEEDS).entries:
        for job in entry.jobs:
            settings = job.settings
            data, config = data_of(settings, place), config_of(settings, RATE)
            part, held = set_aside(data.train, settings["seed"])
            data, net = replace(data, train=part), plain_of(settings, place)
            nbytes, kept = settings["budget"], kept_in(settings["budget"])
            learns = {
                way: spend(way, net, nbytes, classes=data.classes, dtype=kept)
                for way in ways(net, nbytes, dtype=kept)
            }
            for steps in STEPS:
                losses = {}
                for way, learn in learns.items():
                    with processes(config.device, config.amp):
                        found = learn and try_out(net, learn, data, held, config, steps)
                    losses[way] = None if found is None else round(found[0].mean().item(), 3)
                rows.append(
                    {"benchmark": entry.benchmark, "seed": settings["seed"], "steps": steps, "losses": losses}
                )
            print(f"{entry.benchmark}, seed {settings['seed']}: done", flush=True)
    options.out.write_text(json.dumps({**describe_machine(), "rate": RATE, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
