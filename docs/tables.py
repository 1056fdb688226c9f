"""MkDocs hook: puts the data files of ``docs/results`` into the page that shows them."""

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
MARK = "<!-- bench -->"


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace the mark by a table of all measurements."""
    return markdown.replace(MARK, _bench_table()) if MARK in markdown else markdown


def _bench_table() -> str:
    rows = [
        "| model | learned | batch, side | full step | ours / full | masked / full | inference / full "
        "| memory / full |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    notes = set()
    for path in sorted(RESULTS.glob("bench-*.json")):
        found = json.loads(path.read_text())
        by_name = {row["name"]: row for row in found["rows"]}
        full, ours, masked = by_name["full"], by_name["ours"], by_name["masked"]
        learn = found["learn"]
        what = (
            f"fraction {learn['fraction']:g}"
            if learn["fraction"] is not None
            else f"filters {learn['filters']}"
        )
        what += "" if learn["head"] else ", no head"
        rows.append(
            f"| {found['model']} | {what}: {ours['learned_parameters']:,} of {full['learned_parameters']:,} "
            f"| {found['batch_size']}, {found['size']} | {full['step_ms']:.0f} ms "
            f"| **{ours['step_ratio']:.2f}** | {masked['step_ratio']:.2f} | {ours['infer_ratio']:.2f} "
            f"| {ours['peak_ratio']:.2f} |"
        )
        versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
        machine = [
            found["processor"],
            found["accelerator"] or "no accelerator",
            f"{found['threads']} threads",
        ]
        notes.add(
            f"- {', '.join([*machine, found['instructions']])}; {versions}; "
            f"{found['date']}, commit {found['commit']}."
        )
    return "\n".join([*rows, "", *sorted(notes)])
