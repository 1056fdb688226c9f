"""Measures whether slices and a low-rank sum on one layer win over either alone, at equal bytes, as JSON.

By plain autograd: of each convolution's weight the first rows are learned, and the others take the sum. Where
and how it is trained is what ``sparsetune compare --preset small`` does on the benchmark of that name.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import sparsetune as st
from sparsetune.data import open_data, split_in_two
from sparsetune.host import describe_machine
from sparsetune.sliced import ROW
from sparsetune.studies import DEFAULTS, TRAINING
from sparsetune.studies.compare import HELD_OUT, PRESETS
from sparsetune.train import train

CHOICES = {"rank 4": (0, 4), "2 filters and rank 2": (2, 2), "4 filters": (4, 0)}
"""Filters and rank of each layer: nearly the same number of learned values."""
SEEDS = (0, 1, 2)


class Mixed(nn.Module):
    """A weight whose first rows are learned and whose others take a low-rank sum.

    Args:
        weight: Of shape (O, ...), frozen.
        filters: How many rows are learned.
        rank: Of the sum.
    """

    def __init__(self, weight: Tensor, filters: int, rank: int) -> None:
        super().__init__()
        inputs = weight[0].numel()
        bound = ROW * (3 / inputs) ** 0.5
        self.rows = nn.Parameter(weight[:filters].detach().clone())
        self.down = nn.Parameter(torch.empty(rank, inputs).uniform_(-bound, bound))
        self.up = nn.Parameter(torch.zeros(len(weight) - filters, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the whole weight."""
        rest = weight[len(self.rows) :]
        return torch.cat([self.rows, rest + (self.up @ self.down).view_as(rest)])


def model(filters: int, rank: int, classes: int, kwargs: dict[str, int], seed: int) -> nn.Module:
    """Return a seeded network that learns so much of each convolution, its normalisation and its head."""
    net = st.create("wrn28_4", num_classes=classes, seed=seed, **kwargs)
    torch.manual_seed(seed)
    for module in [module for module in net.modules() if isinstance(module, nn.Conv2d)]:
        module.weight.requires_grad_(False)
        parametrize.register_parametrization(module, "weight", Mixed(module.weight, filters, rank))
    return net


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmark", choices=["digits", "cifar10"])
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    benchmark = PRESETS["small"][options.benchmark]
    settings = {**DEFAULTS, **benchmark.settings}
    limits = {name: settings[name] for name in ("size", "train_limit", "test_limit")}
    data = open_data(options.data, **limits)
    rest, held_out = split_in_two(data.train, HELD_OUT, seed=0)
    tuning = replace(data, train=rest, test=held_out)

    def score(filters: int, rank: int, rate: float, seed: int, pictures: st.Data) -> tuple[float, int]:
        net = model(filters, rank, len(data.classes), settings["model_kwargs"], seed)
        learned = sum(value.numel() for value in net.parameters() if value.requires_grad)
        config = st.FitConfig(**{**{name: settings[name] for name in TRAINING}, "lr": rate, "seed": seed})
        return train(net, pictures, config, {})[-1].test_top1, learned

    rows = []
    for name, (filters, rank) in CHOICES.items():
        found = {rate: score(filters, rank, rate, 0, tuning)[0] for rate in benchmark.rates}
        rate = max(found, key=lambda each: found[each])
        scores = [score(filters, rank, rate, seed, data) for seed in SEEDS]
        top1 = [top1 for top1, _ in scores]
        rows.append({"choice": name, "learned": scores[0][1], "lr": rate, "held_out": found, "top1": top1})
        print(f"{name}: {100 * fmean(top1):.2f} ± {100 * stdev(top1):.2f} % at lr {rate}", flush=True)
    value = {"benchmark": benchmark.title, "seeds": SEEDS, "rows": rows, **describe_machine()}
    options.out.write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    main()
