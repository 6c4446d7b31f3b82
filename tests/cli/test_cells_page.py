"""docs/cells.md, executed as it stands: its file, its commands and its programs, in one folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "cells.md"
BLOCKS = re.findall(r"^```(python|sh)\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
BIN = Path(sys.executable).parent


def test_the_cell_is_fifteen_lines():
    (kind, text), *_ = BLOCKS
    assert kind == "python"
    assert text.startswith("# coupled.py\n")
    assert len(text.splitlines()[1:]) <= 15


@pytest.mark.slow
def test_the_page_runs_from_the_top_to_the_bottom(tmp_path):
    (_, cell), *others = BLOCKS
    (tmp_path / "coupled.py").write_text(cell)
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    for kind, text in others:
        shell = ["bash", "-euc"] if kind == "sh" else [sys.executable, "-c"]
        done = subprocess.run(
            [*shell, text], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        assert "[x]" not in done.stdout
    assert {kind for kind, _ in others} == {"sh", "python"}
    answers, same = (tmp_path / name for name in ("answers.csv", "same.csv"))
    assert len(answers.read_text().splitlines()) == len(same.read_text().splitlines()) > 300
