"""Learning curves as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparsetune.files import replacing
from sparsetune.training import Epoch

BLUE = "#0067a5"


def draw_curves(history: Sequence[Epoch], title: str, path: str | Path) -> None:
    """Draw loss and accuracy over epochs, for training pictures and those watched, and write a PNG.

    Args:
        history: A record for each finished epoch; at least one.
        title: Stands above the picture.
        path: The file; it appears whole or not at all.

    Raises:
        StorageError: When the file cannot be written.
    """
    from matplotlib.figure import Figure  # takes half a second, and most commands draw nothing
    from matplotlib.ticker import MaxNLocator

    epochs = [record.epoch for record in history]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, 2)
    marker = "o" if len(epochs) < 30 else None
    watched = history[-1].watched
    for panel, label, what, scale in (
        (panels[0], "cross-entropy (nats)", "loss", 1),
        (panels[1], "top-1 accuracy (%)", "top1", 100),
    ):
        for name, split, colour in (("training", "train", "#8a8a8a"), (watched, watched, BLUE)):
            values = [scale * getattr(record, f"{split}_{what}") for record in history]
            panel.plot(epochs, values, color=colour, marker=marker, markersize=3, label=name, clip_on=False)
        panel.set_xlabel("epoch")
        panel.set_ylabel(label)
        panel.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        panel.set_ylim(0, 1.1 * panel.dataLim.ymax or 1)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    last = 100 * getattr(history[-1], f"{watched}_top1")
    panels[1].set_ylim(0, 100)
    panels[1].annotate(
        f"{last:.1f}",
        (epochs[-1], last),
        textcoords="offset points",
        xytext=(6, 0),
        va="center",
        color=BLUE,
    )
    panels[0].legend(frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
