"""README and docs: every block runs, links lead somewhere, generated parts are up to date."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pages import PAGES, ROOT, find_anchors, find_blocks, find_links

from lstm_compile.export.proof import known_faults

RUN = [page for page in PAGES if any(b.kind and not b.reason for b in find_blocks(page))]
COMPILES = {"cells.md"}  # other pages see no C++ compiler, which saves their tests a minute
SUPPORT = ROOT / "tests" / "support" / "pages.py"
by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_the_readme_is_one_read():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 200


@by_name
def test_commands_stand_in_blocks_that_run(page):
    for block in find_blocks(page):
        assert block.kind in ("", "sh", "python", "toml")
        lines = block.text.splitlines()
        assert block.kind or not any(line.startswith(("$ ", "    $ ")) for line in lines)


@by_name
def test_links_lead_somewhere(page):
    for path, anchor in find_links(page):
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), f"{page.name}: {path}"
        assert not anchor or anchor in find_anchors(other), f"{page.name}: {path}#{anchor}"


def test_the_index_names_every_page():
    index = ROOT / "docs" / "README.md"
    assert {path for path, _ in find_links(index)} >= {
        page.name for page in PAGES if page.parent == index.parent and page != index
    }


def test_the_reference_is_what_the_commands_say():
    spec = importlib.util.spec_from_file_location("make_cli", ROOT / "docs" / "make_cli.py")
    make_cli = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_cli)
    assert make_cli.page() == make_cli.PAGE.read_text("utf-8"), "run `python docs/make_cli.py`"


def test_the_table_of_known_faults_is_shown():
    assert known_faults.markdown() in (ROOT / "docs" / "runtimes.md").read_text("utf-8")


def test_the_cell_is_fifteen_lines():
    block, *_ = find_blocks(ROOT / "docs" / "cells.md")
    assert block.kind == "python"
    assert block.text.startswith("# coupled.py\n")
    assert len(block.text.splitlines()[1:]) <= 15


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_a_page_runs_from_the_top_to_the_bottom(page, tmp_path):
    binaries = str(Path(sys.executable).parent)
    path = [binaries, os.environ["PATH"]] if page.name in COMPILES else [binaries]
    done = subprocess.run(
        [sys.executable, SUPPORT, page],
        cwd=tmp_path,
        env={**os.environ, "PATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}{done.stderr[-4000:]}"
    assert "[x]" not in done.stdout
    assert all(path.read_text("utf-8").count("\n") > 1 for path in tmp_path.glob("*.csv"))
    if page.name == "cells.md":
        answers, same = (tmp_path / name for name in ("answers.csv", "same.csv"))
        assert len(answers.read_text().splitlines()) == len(same.read_text().splitlines()) > 300
