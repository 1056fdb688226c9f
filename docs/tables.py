"""MkDocs hook: puts the data files of ``docs/results`` into the page that shows them."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from picture import best_rate

from sparsetune.bench import MEASURES, amount, describe, draw_bench
from sparsetune.host import size

RESULTS = Path(__file__).parent / "results"
KILLED = {
    "fits": "a training, by SIGKILL, then resumed",
    "saves": "a process that saves, by SIGKILL",
    "studies": "`sparsetune reproduce paper`, by SIGKILL, then gone on with",
    "terms": "`sparsetune fit`, by SIGTERM, then resumed",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the chart of all benches, the commands as typer tells of them, and the changelog."""
    with TemporaryDirectory() as folder:
        draw_bench(_measured(), Path(folder) / "bench.png")
        drawn = (Path(folder) / "bench.png").read_bytes()
    files.append(File.generated(config, "results/bench.png", content=drawn))
    words = [sys.executable, "-m", "typer", "sparsetune.cli", "utils", "docs", "--name", "sparsetune"]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    title = "# Commands\n\nAs `--help` tells of them; every command also takes `--json`.\n\n"
    commands = title + told.split("\n", 1)[1]
    files.append(File.generated(config, "commands.md", content=commands))
    changes = (RESULTS.parents[1] / "CHANGELOG.md").read_text().replace("](docs/", "](")
    files.append(File.generated(config, "changelog.md", content=changes))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace each mark by a table of all measurements of its kind."""
    for mark, table in (
        ("bench", _bench_table),
        ("keeping", _keeping_table),
        ("profile", _profile_table),
        ("compile", _compile_table),
        ("transfer", _transfer_table),
        ("kept", _kept_table),
        ("small", _small_table),
        ("fuzz", _fuzz_table),
        ("many", _many_tables),
        ("tasks", _tasks_table),
        ("serving", _serving_table),
        ("zoo", _zoo_table),
        ("precision", _precision_table),
        ("slim", _slim_table),
        ("paper", _paper_tables),
    ):
        if f"<!-- {mark} -->" in markdown:
            markdown = markdown.replace(f"<!-- {mark} -->", table())
    return markdown


def _serving_table() -> str:
    found = json.loads((RESULTS / "serving-cpu.json").read_text())
    rate, times = found["pictures_per_second"], found["milliseconds"]
    rows = ["| asked | measured |", "| --- | --- |"]
    for key, words in (("one", "one task"), ("hundred", "a hundred tasks, at random")):
        rows.append(f"| {words} | {rate[key]:.0f} pictures a second, {_times(times[key])} |")
    bounded = found["bounded"]
    rows.append(f"| mixed against one, turn by turn | {found['mixed_ratio']:.2f} |")
    for what, words in (("tenth", "a tenth of each layer"), ("vector", "a vector in int6")):
        part, file = found[what], size(found["file_bytes"][what])
        before, after, each = (
            size(part[f"{key}"]) for key in ("resident_before", "resident_after", "bytes_per_task")
        )
        rows += [
            f"| {part['tasks']:,} tasks, {words}, {file} a file | "
            f"{before} with one in memory, {after} with all: {each} a task |",
            f"| one client, first answer of such a task | {_times(part['cold_milliseconds'])} |",
            f"| one client, later answers | {_times(part['warm_milliseconds'])} |",
        ]
    told = f"{bounded['pictures_per_second']:.0f} pictures a second in {size(bounded['resident'])}"
    rows.append(f"| 1,000 tasks at random, `--cache {bounded['cache']}` | {told} |")
    return "\n".join([*rows, "", _note(found)])


def _times(told: dict[str, float]) -> str:
    return f"{told['median']:.0f} ms in the median, p99 {told['p99']:.0f} ms"


def _zoo_table() -> str:
    head, *found = map(json.loads, (RESULTS / "zoo.jsonl").read_text().splitlines())
    rows = [
        "| | models run | built | came back bit for bit | gradients checked on | file / values | stored |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for library in ("timm", "torchvision"):
        part = [row for row in found if row["name"].startswith("torchvision/") == (library == "torchvision")]
        built = [row for row in part if "parameters" in row]
        back = sum(row.get("round_trip", False) for row in part)
        kinds = {kind for row in part if "gradient" in row and "failed" not in row for kind in row["kinds"]}
        ratio = max((row["ratio"] for row in built if "ratio" in row), default=0)
        stored = sum(row["stored_bytes"] > 0 for row in built)
        rows.append(
            f"| {library} | {len(part)} | {len(built)} | {back} | {len(kinds)} kinds of layer "
            f"| at most {ratio:.4f} | {stored} models |"
        )
    for key, words in {"too_big": "Not built", "failed": "Failed"}.items():
        reasons: dict[str, list[str]] = {}
        for row in found:
            if key in row:
                reasons.setdefault(row[key], []).append(f"`{row['name']}`")
        rows += ["", *(f"- {words}, {why}: {', '.join(names)}" for why, names in sorted(reasons.items()))]
    run = head["run"]
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    return "\n".join(
        [
            *rows,
            "",
            f"- {run['processor']}, {run['instructions']}; {versions}; {run['date']}, {run['commit']}.",
        ]
    )


def _measured() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("bench-*.json"))]


def _bench_table() -> str:
    rows = [
        "| model | learned | batch, side | full step | ours / full | masked / full | LoRA / full "
        "| inference: ours / full | LoRA / full | memory: ours / full | LoRA / full |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    notes = set()
    for found in _measured():
        by_name = {row["name"]: row for row in found["rows"]}
        full, ours = by_name["full"], by_name["ours"]
        cells = [
            describe(found),
            f"{ours['learned_parameters']:,} of {full['learned_parameters']:,}",
            f"{found['batch_size']}, {found['size']}",
            f"{full['step_ms']:.0f} ms",
            f"**{ours['step_ratio']:.2f}**",
            *(_ratio(by_name, name, "step") for name in ("masked", "lora")),
            *(_ratio(by_name, name, "infer") for name in ("ours", "lora")),
            *(_ratio(by_name, name, "peak") for name in ("ours", "lora")),
        ]
        rows.append(f"| {' | '.join(cells)} |")
        notes.add(_note(found))
    return "\n".join([*rows, "", *sorted(notes)])


def _keeping_table() -> str:
    rows = [
        "| model | whole checkpoint | delta | LoRA adapter | `torch.load` | our `load` "
        "| task switch: ours | LoRA's `set_adapter` |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for found in _measured():
        by_name = {row["name"]: row for row in found["rows"]}
        cells = [
            describe(found),
            *(_amount(by_name, name, "file") for name in ("full", "ours", "lora")),
            *(_amount(by_name, name, "load") for name in ("full", "ours")),
            *(_amount(by_name, name, "switch") for name in ("ours", "lora")),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _profile_table() -> str:
    found = json.loads((RESULTS / "profile-cpu.json").read_text())
    kinds = list(found["rows"][0]["ms"]["full"])
    rows = [f"| ms a step | learned | {' | '.join(kinds)} |", "| --- " * (len(kinds) + 2) + "|"]
    for row in found["rows"]:
        for learned, times in row["ms"].items():
            cells = [f"{times[kind]:.0f}" for kind in kinds]
            name = f"fraction {row['fraction']:g}" if learned == "ours" else learned
            rows.append(f"| {row['model']} | {name} | {' | '.join(cells)} |")
    return "\n".join([*rows, "", _note(found)])


def _compile_table() -> str:
    rows = [
        "| model | learned | eager step | compiled step | compiled / eager | ours / full: eager | compiled |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    found = json.loads((RESULTS / "compile-cpu.json").read_text())
    for row in found["rows"]:
        ms = row["step_ms"]
        for learned, name in (("full", "everything"), ("ours", f"fraction {row['fraction']:g}")):
            shares = [f"{row['ours_over_full'][how]:.2f}" for how in ("eager", "compiled")]
            rows.append(
                f"| {row['model']} | {name} | {ms[f'{learned} eager']:.0f} ms | "
                f"{ms[f'{learned} compiled']:.0f} ms | {row['compiled_over_eager'][learned]:.2f} | "
                f"{' | '.join(shares if learned == 'ours' else ['', ''])} |"
            )
    return "\n".join([*rows, "", _note(found)])


def _ratio(by_name: dict[str, Any], name: str, measure: str) -> str:
    return f"{by_name[name][f'{measure}_ratio']:.2f}" if name in by_name else ""


def _amount(by_name: dict[str, Any], name: str, measure: str) -> str:
    unit = MEASURES[measure][1]
    value = by_name.get(name, {}).get(f"{measure}_{unit}")
    return "" if value is None else amount(value, unit)


def _transfer_table() -> str:
    rows = [json.loads(line) for line in (RESULTS / "transfer.jsonl").read_text().splitlines()]
    methods = ["logistic regression", "full", "no flag", "60 KB"]
    table = ["| task | " + " | ".join(methods) + " |", "| --- " * (1 + len(methods)) + "|"]
    for task in dict.fromkeys(row["task"] for row in rows):
        part = [row for row in rows if row["task"] == task]
        best = best_rate(rows, task)
        cells = []
        for method in methods:
            found = [r for r in part if r["method"] == method and r.get("lr") in (None, best)]
            shares = [row["top1"] for row in found]
            mean = f"{sum(shares) / len(shares):.1%} of {len(shares)}" if shares else ""
            cells.append(f"{mean}{f', rate {best:g}' if shares and method == 'full' else ''}")
        table.append(f"| {task} | " + " | ".join(cells) + " |")
    return "\n".join([*table, "", *dict.fromkeys(_note(row["run"]) for row in rows)])


def _kept_table() -> str:
    found = json.loads((RESULTS / "kept-cpu.json").read_text())
    words = {
        "head": "ten epochs of the classifier alone, over one pass of the pictures",
        "third": "an epoch of the last third behind kept outputs, over one of everything",
        "search": "trials of `--lr auto`, over their training",
    }
    rows = [f"| {words[row['what']]} | {row['ratio']:.2f} |" for row in found["rows"]]
    return "\n".join(["| | ratio of times |", "| --- | --- |", *rows, "", _note(found)])


def _small_table() -> str:
    rows = [json.loads(line) for line in (RESULTS / "small.jsonl").read_text().splitlines()]
    table = ["| budget | file, bytes | learned | accuracy | seeds |", "| --- | --- | --- | --- | --- |"]
    for budget in sorted({row["budget"] for row in rows}, key=lambda text: float(text[:-2])):
        part = [row for row in rows if row["budget"] == budget]
        mean = sum(row["top1"] for row in part) / len(part)
        spread = f" ({min(r['top1'] for r in part):.1%} to {max(r['top1'] for r in part):.1%})"
        learned = ", ".join(dict.fromkeys(f"{row['learned_parameters']:,}" for row in part))
        size = max(row["file_bytes"] for row in part)
        cells = [f"`--budget {budget}`", f"{size:,}", f"{learned} values, {part[0]['chosen']}"]
        cells += [f"{mean:.1%}{spread if len(part) > 1 else ''}", str(len(part))]
        table.append(f"| {' | '.join(cells)} |")
    return "\n".join([*table, "", *dict.fromkeys(_note(row["run"]) for row in rows)])


def _fuzz_table() -> str:
    rows = [json.loads(line) for line in (RESULTS / "fuzz.jsonl").read_text().splitlines()]
    inputs = Counter[str]()
    for row in rows:
        by = row.get("by", {row.get("guided"): row["inputs"]})
        for what, count in by.items():
            inputs[what.partition(",")[0]] += count
    table = ["| what reads it | inputs |", "| --- | --- |"]
    table += [f"| {name} | {count:,} |" for name, count in inputs.most_common()]
    escapes, peak = sum(row["escapes"] for row in rows), max(row["peak_mib"] for row in rows)
    table += [f"| together | {inputs.total():,}, of which {escapes} escaped; at most {peak:,} MiB |", ""]
    kills = [json.loads(line) for line in (RESULTS / "kills.jsonl").read_text().splitlines()]
    table += ["| what was killed | times | torn, lost or otherwise |", "| --- | --- | --- |"]
    for kind, words in KILLED.items():
        found = [row[kind] for row in kills if kind in row]
        times, wrong = sum(each["at_least"] for each in found), sum(len(each["wrong"]) for each in found)
        table.append(f"| {words} | {times} or more | {wrong} |")
    readers = json.loads((RESULTS / "readers.json").read_text())
    table += ["", "| module that reads files | lines | run by tests and fuzzing |", "| --- | --- | --- |"]
    counts = {**readers["lines"], "together": [*map(sum, zip(*readers["lines"].values(), strict=True))]}
    for name, (lines, reached) in counts.items():
        table.append(f"| {name} | {lines:,} | {reached / lines:.1%} |")
    notes = dict.fromkeys(_note(row["run"]) for row in (*rows, *kills, readers))
    return "\n".join([*table, "", *notes])


def _many_tables() -> str:
    tables = []
    for path in sorted(RESULTS.glob("many-*.json")):
        found = json.loads(path.read_text())
        shape = ", ".join(f"{name} {value}" for name, value in found["model"].items() if name != "name")
        rows = [
            f"{found['data']}, {found['train']:,} pictures to learn from and {found['test']:,} to test; "
            f"{found['model']['name']} ({shape}), fraction {found['learn']['fraction']:g}, "
            f"{found['epochs']} epochs:",
            "",
            "| | bytes | of the whole model's | accuracy | whole model's accuracy |",
            "| --- | --- | --- | --- | --- |",
        ]
        for row in found["rows"]:
            both = [row["accuracy"], row["full_accuracy"]]
            accuracy, full = ("" if share is None else f"{share:.1%}" for share in both)
            rows.append(f"| {row['name']} | {row['bytes']:,} | {row['ratio']:.1%} | {accuracy} | {full} |")
        tables.append("\n".join([*rows, "", _note(found)]))
    return "\n\n".join(tables)


def _tasks_table() -> str:
    rows = [
        "| model | delta | memory a task / delta | switch | mixed batch |",
        "| --- | --- | --- | --- | --- |",
    ]
    notes = []
    for path in sorted(RESULTS.glob("tasks-*.json")):
        found = json.loads(path.read_text())
        times = [
            f"{each['median']:.2f} ms ({each['fifth_percent']:.2f} to {each['ninety_fifth_percent']:.2f}) "
            f"on {each['threads']} thread{'s' * (each['threads'] > 1)}"
            for each in found["switch_ms"]
        ]
        mixed = found["mixed"]
        equal = "equal to each model alone" if mixed["equals_each_model_alone"] else "unlike the models alone"
        rows.append(
            f"| {found['model']}, fraction {found['fraction']:g} | {found['delta_bytes']:,} bytes "
            f"| {found['resident_over_delta']:.2f} | {'; '.join(times)} "
            f"| {equal}; to single pictures within {mixed['largest_difference_to_one_row_at_a_time']:.1g} |"
        )
        notes.append(_note(found))
    return "\n".join([*rows, "", *notes])


def _note(found: dict[str, Any]) -> str:
    """Say what a measurement was taken on."""
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    machine = [found["processor"], found["accelerator"] or "no accelerator", f"{found['threads']} threads"]
    return (
        f"- {', '.join([*machine, found['instructions']])}; {versions}; "
        f"{found['date']}, commit {found['commit']}."
    )


def _precision_table() -> str:
    rows = [
        "| model, data | written in | file | top-1 | loss (nats) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for path in sorted(RESULTS.glob("precision-*.json")):
        found = json.loads(path.read_text())
        whole = found["rows"][0]["bytes"]
        rows += [
            f"| {found['model']}, {found['pictures']:,} test pictures of {found['data']} | {row['dtype']} "
            f"| {row['bytes'] / 1024:,.0f} KiB, {row['bytes'] / whole:.1%} "
            f"| {row['top1']:.2%} | {row['nll']:.4f} |"
            for row in found["rows"]
        ]
    return "\n".join(rows)


def _slim_table() -> str:
    rows = [
        "| model | batch, side | values | inference | training step | outputs differ by |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    notes = []
    for path in sorted(RESULTS.glob("slim-*.json")):
        found = json.loads(path.read_text())
        for row in found["rows"]:
            values, times = row["values"], []
            for part in (row["inference"], row["training_step"]):
                ms = part["ms"]
                times.append(
                    f"{ms['zeroed']:.0f} to {ms['slim']:.0f} ms, **{part['times_faster']:.2f} times**"
                )
            rows.append(
                f"| {row['model']}, fraction {row['fraction']:g} | {row['batch_size']}, {row['size']} "
                f"| {values['slim']:,} of {values['learned']:,} learned, {values['whole']:,} in all "
                f"| {' | '.join(times)} | {row['largest_difference_of_largest_output']:.0e} of the largest |"
            )
        notes.append(_note(found))
    return "\n".join([*rows, "", *notes])


def _paper_results() -> dict[str, Any]:
    """What ``sparsetune reproduce paper`` left here, by file name; the largest trainings first."""
    from sparsetune.studies.paper import PRESETS, read_results, results_of

    found = {path.stem: results_of(*read_results(path)) for path in (RESULTS / "paper").glob("*.jsonl")}
    ranks = [*PRESETS]

    def size(item: tuple[str, Any]) -> tuple[bool, int]:
        chosen = item[1].selection
        cut = any((chosen.epochs, chosen.train_limit, chosen.test_limit))
        return cut, -ranks.index(chosen.preset)

    return dict(sorted(found.items(), key=size))


def _paper_tables() -> str:
    """The claims, each by the largest trainings that were run for it, and the rows."""
    from sparsetune.studies.paper import CLAIMS, EXPERIMENTS, rows_of, scale

    found = _paper_results()
    lines: list[list[Any]] = []
    for claim in CLAIMS:
        verdicts = ((claim.verdict(results), results) for results in found.values())
        verdict, results = next(((v, r) for v, r in verdicts if v.mark != "not run"), (None, None))
        told = [verdict.mark, claim.where, claim.text] if verdict else ["not run", claim.where, claim.text]
        ours = (
            [verdict.said, verdict.margin, scale(results, claim.experiment, verdict.seeds)] if verdict else []
        )
        lines.append([*told, claim.paper, *(ours or ["", "", ""])])
    pieces = [_markdown(["", "where", "claim", "the paper's", "ours", "margin", "decided by"], lines)]
    for name, results in found.items():
        chosen, rows = results.selection, results.by_id.values()
        limits = {
            key: value for key in ("train_limit", "test_limit", "epochs") if (value := getattr(chosen, key))
        }
        shown = ", ".join(f"`--{key.replace('_', '-')} {value}`" for key, value in limits.items())
        lossy = sorted({row.about["data"]["name"] for row in rows if row.about["data"]["lossy"]})
        pieces.append(
            f"`--preset {chosen.preset}` with {shown or 'nothing changed'}; {len(rows)} jobs, "
            f'<a href="{name}.html">as a page with the figures</a>. {results.preset.about}'
            + "".join(f" {each} was a lossy JPEG copy." for each in lossy)
        )
        for experiment in EXPERIMENTS.values():
            if results.finished(experiment.id)[0] and experiment.id != "fig3":
                header, cells = rows_of(experiment, results)
                title = f"{experiment.label}: {experiment.title}"
                table = _markdown(header, cells).replace("\n", "\n    ")
                pieces.append(f'??? note "{title}"\n\n    {table}')
        pieces.append("\n".join(sorted({_note(row.about) for row in rows})))
    return "\n\n".join(pieces)


def on_post_build(config: Any) -> None:
    """Write the paper's page from its rows, beside the page that has the tables."""
    from sparsetune.studies.paper import page

    for name, results in _paper_results().items():
        (Path(config.site_dir) / "paper" / f"{name}.html").write_text(page(results, []), encoding="utf-8")


def _markdown(header: list[str], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] * len(header), *([getattr(cell, "text", cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
