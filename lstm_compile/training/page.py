"""HTML pages that need nothing beside them: no script, no network. Whatever they say is escaped."""

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.6em } h1, p, td:nth-child(2):last-child { overflow-wrap: anywhere }
table { border-collapse: collapse } td, th { padding: .2em .7em; text-align: left }
td { vertical-align: top } td + td { white-space: nowrap }
td + td:last-child { white-space: normal; min-width: 5em }
th { border-bottom: 1px solid #999; white-space: nowrap }
tr:nth-child(even), pre { background: #f4f4f4 } tr.best { background: #e3edf9 }
pre { padding: 1em; overflow: auto } svg { max-width: 100%; height: auto }
.wide { overflow-x: auto }
.charts { display: flex; flex-wrap: wrap; gap: 1em } summary { cursor: pointer }"""
HEAD = """<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
"""


def page(title: str, body: Iterable[str]) -> bytes:
    """A whole page in UTF-8, its heading the title; `body` is HTML."""
    head = f"{HEAD}<title>{escape(title)}</title>\n<style>{STYLE}</style>"
    lines = ["<!doctype html>", f'<html lang="en"><head>{head}</head><body>']
    lines += [f"<h1>{escape(title)}</h1>", *body, "</body></html>\n"]
    return "\n".join(lines).encode(errors="backslashreplace")  # names may hold half of a pair


def table(rows: Iterable[Sequence[str]], head: Sequence[str] = (), marked: str = "") -> str:
    """Rows of text; the one whose first cell is `marked` stands out."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = [f"<tr>{top}</tr>"] if head else []
    for row in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        lines.append(f'<tr class="best">{cells}</tr>' if row[0] == marked else f"<tr>{cells}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'
