"""What a terminal of 80 columns shows, and that a pipe shows nothing of it."""

import io
import re
import time

import pytest
from rich.console import Console

from lstm_compile.bench.cases import Case
from lstm_compile.bench.figures import BenchRow
from lstm_compile.cli import bench, output
from lstm_compile.cli.epochs import epoch_printer
from lstm_compile.cli.export import _known
from lstm_compile.cli.working import REFRESHES, working
from lstm_compile.training.state import Epoch

ESCAPE = re.compile(r"\x1b\[[?\d;]*[A-Za-z]")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def terminal(width=80):
    return Console(
        file=Terminal(), force_terminal=True, width=width, highlight=False, soft_wrap=True
    )


def shown(out):
    return ESCAPE.sub("", out.file.getvalue()).splitlines()


def an_epoch(number, **metrics):
    return Epoch(number, 1.0, 0.5, {"loss": 0.5, **metrics}, 1e-3, 3.5, number == 1)


@pytest.mark.parametrize(
    "metrics",
    [
        {"accuracy": 0.9, "macro_f1": 0.9},
        {"mae": 1.0, "rmse": 1.2, "r2": 0.5},
        dict.fromkeys(("pinball", "coverage", "mae", "rmse", "perplexity"), 0.123456),
    ],
)
def test_the_table_of_epochs_fits_80_columns(metrics):
    out = terminal()
    show = epoch_printer(out, 130)
    for number in (1, 129):
        show(an_epoch(number, **metrics))
    head, first, last = shown(out)
    assert all(len(line) <= 80 for line in (head, first, last))
    assert (
        len(
            {
                line.index(part) + len(part)
                for line, part in ((head, "train loss"), (first, "1.0000"))
            }
        )
        == 1
    )
    assert first.split()[0] == "1/130"
    assert last.split()[0] == "129/130"
    assert {"epoch", "train", "val.", "best", next(iter(metrics))} <= set(head.split())
    assert first.endswith("✓")


def test_a_narrow_table_leaves_the_rate_out_first():
    out = terminal(71)
    epoch_printer(out, 30)(an_epoch(1, accuracy=0.9, macro_f1=0.9))
    assert "rate" in shown(out)[0]
    out = terminal(70)
    epoch_printer(out, 30)(an_epoch(1, accuracy=0.9, macro_f1=0.9))
    assert "rate" not in shown(out)[0]
    assert "macro_f1" in shown(out)[0]


def test_lines_are_broken_between_words_and_commands_never():
    out = terminal()
    text = "mae 1.39, rmse 1.57, scaled_mse 0.533, mase 4.003, mape 14.79 %, smape 14.33 % (3 rows)"
    command = "lstm-compile export " + "a-long-name/" * 8 + " --onnx"
    output.lines(out, ("test", text), ("next", command))
    *lines, last = shown(out)
    assert len(lines) == 2
    assert all(len(line) <= 80 for line in lines)
    assert lines[1].startswith(" " * 12)
    assert " ".join(" ".join(lines).split()[1:]) == text
    assert not re.search(r"[\d.]+$", lines[0])
    assert last == f"next        {command}"


def test_a_pipe_gets_whole_lines():
    out = Console(file=io.StringIO(), width=80, soft_wrap=True)
    output.lines(out, ("test", "word " * 50))
    assert len(out.file.getvalue().splitlines()) == 1


def test_work_is_shown_on_a_terminal_alone():
    out = terminal()
    with working(out, "loading") as work:
        work.show(3, 4, "rows")
        time.sleep(2 / REFRESHES)
        output.lines(out, ("data", "some"))
        work.say("measuring")
    text = "\n".join(shown(out))
    assert "rows" in text
    assert "75%" in text
    assert "measuring" in text
    assert out.file.getvalue().rindex("\x1b[?25h") > out.file.getvalue().rindex("\x1b[?25l")
    out = Console(file=io.StringIO(), force_terminal=True)
    with working(out, "loading") as work:
        work.show(3, 4)
        work.say("measuring")
    assert out.file.getvalue() == ""


def bench_rows(**changes):
    values = {
        "case": Case(), "mode": "inference", "backend": "auto", "median_ms": 1.5, "p95_ms": 2.0,
        "sequences_per_second": 100.0, "ratios": {}, "ratio": None, "compile_seconds": 0.0,
        "rounds": 3,
    }  # fmt: skip
    return [BenchRow(**{**values, "mode": mode, **changes}) for mode in ("inference", "training")]


def test_bench_prints_one_table_a_case_without_empty_columns():
    head, *lines = [line for line, _ in bench.table(bench_rows(), 80)]
    assert head.split() == ["mode", "backend", "median", "ms", "p95", "ms", "sequences/s"]
    assert [line.split()[0] for line in lines] == ["inference", "training"]
    full = bench_rows(
        backend="onnxruntime", compile_seconds=12.3, peak_mib=123.4, ratio=1.25, median_ms=1234.567,
        p95_ms=2345.678, sequences_per_second=123456.0,
    )  # fmt: skip
    lines = [line for line, _ in bench.table(full, 80)]
    assert "peak MiB" in lines[0]
    assert all(len(line) <= 80 for line in lines)


def test_export_tells_the_limits_of_runtimes_in_one_line():
    class Row:
        runtime = "OpenVINO"

        def __str__(self):
            return "OpenVINO 1: a part: fails; do this"

    class Report:
        known = (Row(), Row())

    assert _known(Report(), verbose=True) == [("known", str(Row()))] * 2
    ((_, line),) = _known(Report(), verbose=False)
    assert line == "2 limits of other runtimes (OpenVINO); -v shows what to do"
    Report.known = ()
    assert _known(Report(), verbose=False) == []
