"""A bench as a picture: how ours and the alternatives compare with full training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsetune.bench.bench import CONTESTANTS, MEASURES
from sparsetune.host import replacing, size
from sparsetune.spec import KINDS

_COLUMNS = 4
_LINE = 0.21
"""Share of a measurement's height that one bar takes."""
_ROOM = 1.55
"""Width of a panel, whose bars have labels behind them, over that of its longest bar."""


def draw_bench(measurements: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw a panel of bars for each measure and write a PNG.

    Bars are ratios to full training, with the measured value beside each; the task switch, which full
    training does not have, is in milliseconds.

    Args:
        measurements: What ``sparsetune bench --json`` prints, of one model and learn spec each; at least one.
        path: The file; it appears whole or not at all.

    Raises:
        StorageError: When the file cannot be written.
    """
    from matplotlib.figure import Figure  # takes half a second, and most commands draw nothing
    from matplotlib.patches import Patch

    shown = [measure for measure in MEASURES if any(_values(found, measure) for found in measurements)]
    lines = -(-len(shown) // _COLUMNS)
    height = 0.8 + lines * (0.6 + (0.8 * len(measurements) if len(measurements) > 1 else 1.1))
    figure = Figure(figsize=(3.6 * _COLUMNS, height), layout="constrained")
    figure.suptitle(_title(measurements), fontsize=11)
    panels = list(figure.subplots(lines, _COLUMNS, sharey=True, squeeze=False).flat)
    for panel, measure in zip(panels, shown, strict=False):
        _draw_panel(panel, measure, measurements)
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    present = {row["name"] for found in measurements for row in found["rows"]}
    drawn = [each for name, each in CONTESTANTS.items() if name in present]
    patches = [Patch(color=each.colour, label=each.title) for each in drawn]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def amount(value: float, unit: str) -> str:
    """Return a measured value in words."""
    if unit == "bytes":
        return size(value)
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def describe(found: Mapping[str, Any]) -> str:
    """Return model and learn spec of a measurement in a few words."""
    learn = found["learn"]
    what = next(f"{name} {size:g}" for name in KINDS if (size := learn.get(name)) is not None)
    return f"{found['model']}, {what}" + ("" if learn["head"] else ", no head")


def _title(measurements: Sequence[Mapping[str, Any]]) -> str:
    machines = "; ".join(dict.fromkeys(map(_machine, measurements)))
    first = measurements[0]
    shape = f"{first['batch_size']}x3x{first['size']}x{first['size']}"
    return f"{describe(first)}; batches of {shape}; {machines}" if len(measurements) == 1 else machines


def _machine(found: Mapping[str, Any]) -> str:
    processor = f"{found['processor']}, {found['threads']} threads"
    return processor if found["device"] == "cpu" else str(found["accelerator"])


def _draw_panel(panel: Any, measure: str, measurements: Sequence[Mapping[str, Any]]) -> None:
    words, unit = MEASURES[measure]
    relative = any(ratio is not None for found in measurements for _, _, ratio in _values(found, measure))
    longest = 0.0
    for group, found in enumerate(measurements):
        values = _values(found, measure)
        for index, (name, value, ratio) in enumerate(values):
            if (length := ratio if relative else value) is None:
                continue
            place = group + _LINE * (index + 0.5 - len(values) / 2)
            panel.barh(place, length, 0.9 * _LINE, color=CONTESTANTS[name].colour)
            text = amount(value, unit)
            panel.annotate(
                f"{length:.2f}  ({text})" if relative else text,
                (length, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
            longest = max(longest, length)
    panel.set_title(words + (", of full training" if relative else f", {unit}"), fontsize=10)
    panel.set_xlim(0, _ROOM * longest)
    panel.locator_params(axis="x", nbins=5)
    names = [describe(each).replace(", ", "\n") for each in measurements] if len(measurements) > 1 else [""]
    panel.set_yticks(range(len(measurements)), names, fontsize=9)
    panel.set_ylim(len(measurements) - 0.5, -0.5)
    panel.tick_params(axis="y", length=0)
    panel.label_outer()
    panel.tick_params(axis="x", labelbottom=True)
    if relative:
        panel.axvline(1, color="#777777", linewidth=0.8, linestyle=":", zorder=0)
    panel.spines[["top", "right"]].set_visible(False)


def _values(found: Mapping[str, Any], measure: str) -> list[tuple[str, float, float | None]]:
    """Name, median and ratio of each contestant that has the measure."""
    key = f"{measure}_{MEASURES[measure][1]}"
    return [(row["name"], row[key], row[f"{measure}_ratio"]) for row in found["rows"] if key in row]
