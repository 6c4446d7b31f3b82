"""Pages for people: their fenced blocks, links and headings. As a program it runs one page.

`python pages.py PAGE` runs the blocks of a page in order, in the current folder and one process.
A block whose first line is a comment with a file's name is saved as that file too. A block after
`<!-- not run: WHY -->` is left out.
"""

import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^(?:<!-- not run: (.+) -->\n)?```(\w*)\n(.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    reason: str  # why it is not run; empty if it is
    kind: str  # sh, python or toml; empty for output
    text: str


def find_blocks(page):
    return [Block(*found) for found in FENCE.findall(page.read_text("utf-8"))]


def find_links(page):
    """What a page links to, beside the web: a path or none, and an anchor or none."""
    text = FENCE.sub("", page.read_text("utf-8"))
    return re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text)


def find_anchors(page):
    """The anchors that a code host gives the headings of a page."""
    text = FENCE.sub("", page.read_text("utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in headings}


def run_command(line):
    """One line of a shell: a command of this program, its output perhaps to a file."""
    from cli_cases import invoke

    *words, sign, path = shlex.split(line) if " > " in line else [*shlex.split(line), "", ""]
    assert words[0] == "lstm-compile", f"a test cannot run {words[0]!r}"
    result = invoke(*words[1:])
    sys.stdout.write(f"$ {line}\n{result.output}")
    assert result.exit_code == 0, line
    if sign:
        Path(path).write_text(result.stdout, encoding="utf-8")


def run_block(block):
    if saved := re.match(r"# ([\w.]+\.(?:py|toml))\n", block.text):
        Path(saved[1]).write_text(block.text, encoding="utf-8")
    if block.kind == "python":
        exec(compile(block.text, "<block>", "exec"), {"__name__": "__main__"})
    elif block.kind == "sh":
        for line in block.text.replace("\\\n", " ").splitlines():
            run_command(line)


def run_page(page):
    from lstm_compile.recurrence import any_cell

    sys.path.insert(0, "")
    for block in find_blocks(page):
        if not block.reason:
            known = dict(any_cell._CELLS)
            run_block(block)
            any_cell._CELLS.clear()  # each block begins as a program of its own does
            any_cell._CELLS.update(known)


if __name__ == "__main__":
    run_page(Path(sys.argv[1]))
