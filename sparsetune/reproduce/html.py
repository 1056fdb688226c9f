"""Pieces of a page that needs nothing but itself."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; max-width: 1080px;
  margin: 0 auto; padding: 0 16px 48px; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 1.2em 0 .4em; }
h2 { font-size: 1.25rem; margin: 2em 0 .3em; border-bottom: 1px solid #ddd; padding-bottom: .2em; }
p { margin: .5em 0; } a { color: #1f5fa8; }
.note { color: #555; font-size: .9rem; }
.warn { background: #fff6e0; border-left: 4px solid #d98200; padding: .4em .8em; margin: .8em 0; }
nav { display: flex; flex-wrap: wrap; gap: .3em .8em; margin: .8em 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; margin: .8em 0; }
th, td { padding: .3em .7em; text-align: right; border-bottom: 1px solid #e6e6e6; vertical-align: top; }
th { background: #f5f5f5; font-weight: 600; }
.text { text-align: left; }
td.near { background: #e3f4e6; } td.off { background: #fdf1d8; } td.far { background: #fbe0dc; }
td.none { color: #888; }
.panels { display: flex; flex-wrap: wrap; gap: 8px; }
.panels img { max-width: 430px; min-width: 0; height: auto; flex: 1 1 300px; }
.mark { white-space: nowrap; font-weight: 600; }
.yes { color: #1c7a34; } .no { color: #b3261e; } .open { color: #777; font-weight: 400; }
@media (max-width: 640px) {
  body { font-size: 15px; padding: 0 10px 32px; } th, td { padding: .25em .45em; }
  .claims thead { display: none; }
  .claims tr { display: block; border-bottom: 1px solid #ccc; padding: .4em 0; }
  .claims td { display: block; border: 0; padding: .1em 0; }
}
@media print {
  body { max-width: none; font-size: 10pt; } nav { display: none; } h2 { break-after: avoid; }
  tr, .panels img { break-inside: avoid; } .panels img { max-width: 48%; } .wide { overflow: visible; }
  td.near, td.off, td.far, th { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""


class Cell:
    """A table's cell with a class of ``STYLE``."""

    def __init__(self, text: str, kind: str = "") -> None:
        self.text, self.kind = text, kind


def page(title: str, body: Sequence[str]) -> str:
    """Return a whole document; ``body`` holds pieces of HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def heading(text: str, identity: str) -> str:
    """Return a section's heading, with an anchor."""
    return f'<h2 id="{escape(identity)}">{escape(text)}</h2>'


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph of plain text."""
    return f"<p{_class(kind)}>{escape(text)}</p>"


def table(header: Sequence[str], rows: Sequence[Sequence[str | Cell]], texts: int = 1, kind: str = "") -> str:
    """Return a table, of which the first columns are words; it scrolls by itself where it is too wide."""
    head = _row(header, "th", texts)
    body = "\n".join(_row(row, "td", texts) for row in rows)
    made = f"<table{_class(kind)}><thead>{head}</thead>\n<tbody>{body}</tbody></table>"
    return f'<div class="wide">{made}</div>'


def pictures(svgs: Sequence[str], title: str) -> str:
    """Return SVG pictures side by side, as far as there is room."""
    shown = [
        f'<img alt="{escape(title)}, panel {number}" src="data:image/svg+xml;base64,'
        f'{base64.b64encode(svg.encode()).decode()}">'
        for number, svg in enumerate(svgs, 1)
    ]
    return f'<div class="panels">{"".join(shown)}</div>'


def links(targets: Sequence[tuple[str, str]]) -> str:
    """Return links to sections: (anchor, text)."""
    return "<nav>" + " ".join(f'<a href="#{escape(a)}">{escape(text)}</a>' for a, text in targets) + "</nav>"


def _row(cells: Sequence[str | Cell], tag: str, texts: int) -> str:
    return f"<tr>{''.join(_cell(cell, tag, number < texts) for number, cell in enumerate(cells))}</tr>"


def _cell(cell: str | Cell, tag: str, is_text: bool) -> str:
    text, kind = (cell, "") if isinstance(cell, str) else (cell.text, cell.kind)
    words = " ".join(filter(None, [kind, "text" * is_text]))
    return f"<{tag}{_class(words)}>{escape(text)}</{tag}>"


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
