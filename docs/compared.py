"""MkDocs hook: what `sparsetune compare` found, as figures and tables on the page that helps to choose."""

import json
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from sparsetune.runs import LATER, UNIFORM, WAYS
from sparsetune.studies.compare import (
    CHOSEN,
    DTYPES,
    FAMILIES,
    FEW,
    KEPT,
    SAME,
    SPREAD,
    THEIRS,
    Comparison,
    Point,
    Table,
    Verdict,
    budgets,
    choices,
    chosen,
    draw,
    find,
    methods,
    read_lines,
    verdicts,
)
from sparsetune.studies.paper import Spread

RESULTS = Path(__file__).parent / "results"
MARK, MIXED, TRIALS = "<!-- compare -->", "<!-- mixed -->", "<!-- trials -->"
GOAL = 0.85
"""Share of LoRA's training time that ours shall not exceed."""
NOTHING = "Nothing yet: no results of it are among the data files of these pages."


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a figure for each file of results."""
    for path in _measured():
        rows, comparison = read_lines(path)
        if points := find(rows, comparison):
            titles = {name: benchmark.title for name, benchmark in comparison.benchmarks.items()}
            with TemporaryDirectory() as folder:
                draw(points, titles, Path(folder) / "figure.png")
                drawn = (Path(folder) / "figure.png").read_bytes()
            files.append(File.generated(config, f"results/{path.stem}.png", content=drawn))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace each mark by all that was found."""
    if MARK in markdown:
        markdown = markdown.replace(MARK, "\n\n".join(map(_found, _measured())) or NOTHING)
    for mark, made in ((MIXED, _mixed), (TRIALS, _trials)):
        markdown = markdown.replace(mark, made()) if mark in markdown else markdown
    return markdown


def _measured() -> list[Path]:
    return sorted(RESULTS.glob("compare-*.jsonl"))


def _found(path: Path) -> str:
    rows, comparison = read_lines(path)
    points = find(rows, comparison)
    if not points:
        return f"{path.name} has no finished method of preset {comparison.preset} as it is now; run it again."
    benchmarks = {
        name: [point for point in points if point.benchmark == name] for name in comparison.benchmarks
    }
    only = ", ".join(FAMILIES[name].title for name in comparison.only or ())
    ran = [f"Run were: {only}."] if only else []
    pieces = [f"## Preset {comparison.preset}", *ran, *_spreads(benchmarks, comparison), *_chosen(benchmarks)]
    pieces.append(f"![Accuracy against bytes and against seconds](results/{path.stem}.png)")
    for name, here in benchmarks.items():
        title = comparison.benchmarks[name].title
        if any(point.family in THEIRS for point in here):
            judged = [verdict for verdict in verdicts(here) if verdict.ours or verdict.theirs]
            pieces += [f"### {title}", _told(judged), *_everywhere(here), _markdown(budgets(judged))]
        if here:
            pieces.append(f'??? note "Every method: {title}"\n\n{_indented(_markdown(methods(here)))}')
    lossy = sorted({row.about["data"]["name"] for row in rows if row.about["data"]["lossy"]})
    pieces += [f"{name} was a lossy JPEG copy." for name in lossy]
    return "\n\n".join([*pieces, "\n".join(sorted({_note(row.about) for row in rows}))])


def _spreads(benchmarks: dict[str, list[Point]], comparison: Comparison) -> list[str]:
    """One budget, spread in every way and as ``--budget`` chose it, a column for each benchmark."""
    plain = {
        name: {
            p.family if p.family == CHOSEN else p.name: p
            for p in here
            if p.dtype == _kept(p) and p.budget in (None, comparison.benchmarks[name].budgets[0])
        }
        for name, here in benchmarks.items()
        if any(point.family == SPREAD for point in here)
    }
    if not plain:
        return []
    lines = []
    for way in ("norm and head", *WAYS, CHOSEN):
        points = {name: row.get(way) for name, row in plain.items()}
        cells = [_cell(point) for point in points.values()]
        lines.append(["what `--budget` chose" if way == CHOSEN else way, *cells])
    return [_markdown((["top-1 (%), seconds of training", *plain], lines))]


def _chosen(benchmarks: dict[str, list[Point]]) -> list[str]:
    """What ``--budget`` chose beside the best fixed method."""
    picked = {name: choices(here) for name, here in benchmarks.items()}
    judged = [verdict for found in picked.values() for verdict in found if verdict.gap is not None]
    if not judged:
        return []
    said = (
        f"What `fit --budget` chose beside the best fixed method, at {len(judged)} budgets: {_count(judged)}."
    )
    header, _ = chosen([])
    lines = [[name, *line] for name, found in picked.items() for line in chosen(found)[1]]
    return [f"{said}{_alone(judged)}", _markdown((["benchmark", *header], lines))]


def _count(judged: list[Verdict]) -> str:
    """How often which is said."""
    counts = Counter(verdict.said for verdict in judged)
    return ", ".join(
        f"{words} at {counts[words]}" for words in ("higher", "lower", SAME, FEW) if counts[words]
    )


def _alone(judged: list[Verdict]) -> str:
    """What a star means, where there is one."""
    if all(verdict.whole for verdict in judged):
        return ""
    return (
        " \\* Not all of these results tell which pictures were right: the interval is over seeds alone, and"
        " too narrow, if anything."
    )


def _kept(point: Point) -> str:
    """The precision that a method is told in: that in which its bytes were counted."""
    return KEPT if point.family in (CHOSEN, SPREAD) else DTYPES[0]


def _cell(point: Point | None) -> str:
    if point is None:
        return ""
    return f"{point.top1}{'' if point.seconds is None else f'<br>{point.seconds:.1f} s'}"


def _mixed() -> str:
    """What slices and a low-rank sum on one layer came to, beside either alone."""
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("mixed-*.json"))]
    rows = [
        [each["benchmark"], row["choice"], f"{row['learned']:,}", str(_spread(row["top1"])), f"{row['lr']:g}"]
        for each in found
        for row in each["rows"]
    ]
    table = _markdown((["benchmark", "each layer learns", "learned values", "top-1 (%)", "lr"], rows))
    notes = {_note({**each, "jobs": 1}) for each in found}
    return "\n\n".join([table, "\n".join(sorted(notes))])


def _trials() -> str:
    """What trials of each length prefer on each benchmark, beside the accuracies of whole trainings."""
    path = RESULTS / "trials.json"
    if not path.is_file():
        return NOTHING
    value = json.loads(path.read_text())
    points = find(*read_lines(RESULTS / "compare-small.jsonl"))
    top1 = {(p.benchmark, p.name): p.top1 for p in points if p.family == SPREAD and p.dtype == KEPT}
    steps = [*dict.fromkeys(row["steps"] for row in value["rows"])]
    lines = []
    for benchmark in dict.fromkeys(row["benchmark"] for row in value["rows"]):
        here = [row for row in value["rows"] if row["benchmark"] == benchmark]
        won = [_counted([row["losses"] for row in here if row["steps"] == count]) for count in steps]
        whole = [f"{top1[benchmark, way]}" if (benchmark, way) in top1 else "" for way in (UNIFORM, LATER)]
        lines.append([benchmark, *won, *whole])
    header = ["benchmark", *(f"{count} steps" for count in steps), "all layers, top-1 (%)", "last two thirds"]
    return "\n\n".join([_markdown((header, lines)), _note({**value, "jobs": 1})])


def _counted(trials: list[dict[str, float]]) -> str:
    """How often which of the two candidates had the lower loss."""
    uniform = sum(losses[UNIFORM] < losses[LATER] for losses in trials)
    return f"all layers {uniform}, last two thirds {len(trials) - uniform}"


def _spread(shares: list[float]) -> Spread:
    return Spread(tuple(100 * share for share in shares), 0)


def _told(judged: list[Verdict]) -> str:
    """Say where ours is higher, where lower, and in what time."""
    decided = [verdict for verdict in judged if verdict.gap is not None]
    if not decided:
        return "Only one side was run, so nothing is decided."
    said = f"Ours beside LoRA's, at {len(decided)} budgets: {_count(decided)}."
    lost = [verdict for verdict in decided if verdict.holds is False]
    if lost:
        sizes = ", ".join(f"{verdict.budget / 1000:,.0f} KB" for verdict in lost)
        said += f" **Use LoRA at {sizes}, if accuracy is what counts.**"
    fast = [v.fastest for v in decided if v.fastest is not None and v.fastest.time_ratio is not None]
    if fast:
        ratios = [verdict.time_ratio for verdict in fast]
        said += (
            f" Our fastest that was as accurate where it was chosen takes {min(ratios):.2f} to"
            f" {max(ratios):.2f} of LoRA's time, at {sum(ratio <= GOAL for ratio in ratios)} of {len(ratios)}"
            f" at most {GOAL}; where judged: {_count(fast)}."
        )
    return said + _alone(decided)


def _everywhere(points: list[Point]) -> list[str]:
    """The same beside PEFT's in all layers, as most use it, where it was run in some layers too."""
    everywhere, *placed = THEIRS
    if not any(point.family in placed for point in points):
        return []
    left = [point for point in points if point.family not in placed]
    return [f"Beside {FAMILIES[everywhere].title} in all layers alone: {_told(verdicts(left))}"]


def _markdown(table: Table) -> str:
    header, rows = table
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def _note(about: dict[str, object]) -> str:
    """Say what a result was measured on."""
    versions = about["versions"]
    assert isinstance(versions, dict)
    shown = ", ".join(f"{name} {number}" for name, number in versions.items())
    where = about["accelerator"] or f"{about['processor']}, {about['threads']} threads"
    return f"- {where}, {about['jobs']} at a time; {shown}; {about['date']}, commit {about['commit']}."
