"""``sparsetune bench``."""

from __future__ import annotations

from typing import Annotated

import torch
import typer

from sparsetune.bench import Timing
from sparsetune.bench import bench as measure
from sparsetune.cli import console, options
from sparsetune.machine import describe_machine, pick_device
from sparsetune.zoo import create


def bench(
    model: options.Model = "wrn28_4",
    fraction: options.Fraction = None,
    filters: options.Filters = None,
    dim: options.Dim = "out",
    layers: options.Layers = None,
    norm: options.Norm = True,
    head: options.Head = True,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Pictures a step.")] = 32,
    size: Annotated[int, typer.Option("--size", min=1, help="Picture side.")] = 32,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Counted rounds.")] = 10,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads; all if left out.")
    ] = None,
    amp: Annotated[bool, typer.Option("--amp", help="Use bf16 autocast.")] = False,
    device: options.Device = None,
    as_json: options.Json = False,
) -> None:
    """Measure time and memory of training steps here: full training, ours, and masked gradients, as ratios.

    Example: sparsetune bench --model wrn28_4 --fraction 0.1
    """
    if threads:
        torch.set_num_threads(threads)
    learn = options.learn_from(fraction, filters, dim, layers, norm, head, None)
    place = str(pick_device(device))
    with console.progress() as bars:
        task = bars.add_task(f"{model}", total=None)
        rows = measure(
            create(model, num_classes=10),
            learn,
            batch_size=batch_size,
            size=(3, size, size),
            device=place,
            rounds=rounds,
            amp=torch.bfloat16 if amp else None,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    settings = {
        "model": model,
        "learn": learn.to_json(),
        "batch_size": batch_size,
        "size": size,
        "rounds": rounds,
    }
    settings |= {"device": place, "amp": amp}
    if as_json:
        console.print_json({**settings, **describe_machine(), "rows": [row.to_json() for row in rows]})
        return
    where = f"{place}, threads {torch.get_num_threads()}" if place == "cpu" else place
    console.out.print(
        f"{model}, batches of {batch_size}x3x{size}x{size}, {where}; medians of {rounds} rounds"
    )
    console.print_table(
        ["", "learned", "step", "of full", "inference", "of full", "memory", "of full"],
        [_row(timing) for timing in rows],
    )


def _row(timing: Timing) -> list[str]:
    step, infer = f"{timing.step_ms:.1f} ms", f"{timing.infer_ms:.1f} ms"
    shares = f"{timing.step_ratio:.2f}", f"{timing.infer_ratio:.2f}"
    memory = [console.size(timing.peak_bytes), f"{timing.peak_ratio:.2f}"]
    return [timing.name, f"{timing.learned_parameters:,}", step, shares[0], infer, shares[1], *memory]
