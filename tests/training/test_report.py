import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from training_cases import QUICK, means, prepared, save_npz, two_classes

from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.training import report
from lstm_compile.training.html_pages import Axis, line_chart, render_page
from lstm_compile.training.run import run

SMALL = {"hidden_size": 6, "num_layers": 1}
VOID = {"meta", "br", "hr", "img", "link", "input"}
HOSTILE = "</td></table><script>alert('\"&\u202e')</script>"
FORBIDDEN = r"<script|<link|<img|<iframe|<object|@import|url\(|https?://|(?:src|href)="


class Page(HTMLParser):
    """Every element must be closed in order; collects text and the cells of each row."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.rows, self.text = [], set(), [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    @property
    def pairs(self):
        return {row[0]: row[1] for row in self.rows if len(row) == 2}


def text_of(folder):
    return (folder / "report.html").read_text("utf-8")


def job_of(data, folder, training=QUICK, model=SMALL, **options):
    return prepared(data, model, training, output=folder, **options)


def write_series(path, target="v", count=60):
    lines = [f'date,"{target}"']
    lines += [f"{1900 + k},{k % 7 + math.sin(k):.3f}" for k in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def of_classes(folder):
    path = save_npz(folder, two_classes(), "classes")
    return job_of(path, folder / "run", test=save_npz(folder, two_classes(30, seed=5), "test"))


def of_numbers(folder):
    return job_of(save_npz(folder, means(targets=2), "numbers"), folder / "run")


def of_steps(folder):
    data = two_classes()
    y = np.array(data.classes)[data.y].repeat(data.lengths)
    path = folder / "steps.npz"
    np.savez(path, x=data.x, lengths=data.lengths, y=y)
    return job_of(str(path), folder / "run", replace(QUICK, refit=True), task="tag")


def of_series(folder):
    path, model = write_series(folder / "series.csv"), {**SMALL, "context": 8, "horizon": 3}
    return job_of(path, folder / "run", model={**model, "bidirectional": False}, task="forecast")


def of_text(folder):
    (folder / "some.txt").write_text("to be or not to be, that is it. " * 60)
    training = replace(QUICK, unroll=16)
    model = {**SMALL, "bidirectional": False}
    return job_of(str(folder / "some.txt"), folder / "run", training, model, task="lm")


HEADLINES = {
    of_classes: "accuracy, %",
    of_numbers: "rmse",
    of_steps: "accuracy, %",
    of_series: "mae",
    of_text: "bits_per_character",
}
EPOCHS = {"forecast": "15", "lm": "20"}  # that are the default


@pytest.mark.parametrize("make", HEADLINES)
def test_the_report_says_what_the_run_was_and_gave(tmp_path, make):
    outcome = run(job := make(tmp_path))
    text = text_of(tmp_path / "run")
    assert not re.search(FORBIDDEN, text)
    assert len(text) < 40_000
    found = Page(text)
    assert found.text.lstrip().startswith(f"{job.data}: training of task {job.config.task}")
    assert outcome.evaluation.verdict in found.text
    rows = {row[0]: row[1:] for row in found.rows}
    assert set(outcome.evaluation.metrics) <= {cell for row in found.rows for cell in row}
    assert set(outcome.evaluation.baselines) <= set(rows)
    assert found.pairs["fingerprint"] == job.fingerprint
    assert found.pairs["backend"] == outcome.backend
    assert torch.__version__ in found.pairs["versions"]
    assert f"{outcome.seconds:.1f} s" in found.pairs["time"]
    assert re.fullmatch(r"[\d,]+ parameters, \d+ kB", found.pairs["size"])
    assert ["epochs", "3", EPOCHS.get(job.config.task, "30")] in found.rows
    assert not {"backend", "threads"} & {row[0] for row in found.rows if len(row) == 3}
    assert f"lstm-compile export {job.folder} --onnx" in found.text
    charts = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text)]
    assert [chart.get("aria-label") for chart in charts] == ["loss", HEADLINES[make]]
    for chart in charts:
        words = [each.text for each in chart.iter("text")]
        assert f"best: epoch {outcome.fit.best.epoch}" in words
        assert {"1", "2", "3", "epoch", "validation"} <= set(words)
    assert len(list(charts[0].iter("polyline"))) == 2


def test_names_from_the_data_are_text_and_nothing_else(tmp_path):
    hostile = replace(two_classes(), classes=(HOSTILE, "tab\tbell\x07"))
    path = save_npz(tmp_path, hostile, "<i>data & more")
    run(job_of(path, tmp_path / "<b>run"))
    text = text_of(tmp_path / "<b>run")
    assert not re.search("<script|<i>|<b>run", text)
    found = Page(text)
    assert "alert" in found.pairs["classes"]
    assert "<i>data & more.npz" in found.pairs["data"]
    assert not {"script", "i"} & found.tags


def test_a_hostile_target_of_a_series_is_escaped(tmp_path):
    name = "<script>alert(1)</script>"
    path = write_series(tmp_path / "series.csv", name)
    model = {**SMALL, "context": 8, "horizon": 3, "bidirectional": False}
    run(job_of(path, tmp_path / "run", model=model, task="forecast", table=TableOptions()))
    text = text_of(tmp_path / "run")
    assert "<script" not in text
    assert f"{name} by step ahead" in Page(text).text


def test_many_targets_have_a_row_each_and_the_first_their_steps(tmp_path):
    names = [f"v{k}" for k in range(14)]
    lines = [",".join(["date", *names])]
    lines += [",".join([f"{1900 + t}", *(f"{math.sin(t + k):.3f}" for k in range(14))]) for t in
              range(60)]  # fmt: skip
    path = tmp_path / "series.csv"
    path.write_text("\n".join(lines) + "\n")
    model = {**SMALL, "context": 8, "horizon": 3, "bidirectional": False}
    options = {"task": "forecast", "table": TableOptions(target=tuple(names))}
    run(job_of(str(path), tmp_path / "run", model=model, **options))
    found = Page(text_of(tmp_path / "run"))
    assert [row[0] for row in found.rows if row[0] in names] == names
    assert found.text.count("by step ahead") == 12


def test_without_validation_there_is_one_curve(tmp_path):
    path = save_npz(tmp_path, two_classes())
    test = save_npz(tmp_path, two_classes(30, seed=5), "test")
    outcome = run(job_of(path, tmp_path / "run", replace(QUICK, validation=0.0), test=test))
    text = text_of(tmp_path / "run")
    Page(text)
    (chart,) = re.findall(r"<svg.*?</svg>", text)
    assert chart.count("<polyline") == 1
    assert "nan" not in chart
    assert outcome.fit.best.epoch == 3


def test_a_report_that_cannot_be_written_fails_nothing(tmp_path):
    (tmp_path / "run" / "report.html").mkdir(parents=True)
    notes = []
    job = job_of(save_npz(tmp_path, two_classes()), tmp_path / "run")
    outcome = run(job, note=notes.append)
    assert outcome.fit.stopped == "epochs"
    (note,) = notes
    assert note.startswith(f"{tmp_path}/run/report.html: cannot be written (")
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def test_a_report_that_fails_is_a_note(tmp_path, monkeypatch):
    def failing(job, outcome):
        raise ZeroDivisionError("of nothing")

    monkeypatch.setattr(report, "report", failing)
    notes = []
    run(job_of(save_npz(tmp_path, two_classes()), tmp_path / "run"), note=notes.append)
    assert notes == [f"{tmp_path}/run/report.html: not written (of nothing)"]
    assert not (tmp_path / "run/report.html").exists()


def test_an_interrupted_run_says_how_it_goes_on(tmp_path):
    def stop(epoch):
        raise KeyboardInterrupt

    path = save_npz(tmp_path, two_classes())
    run(job_of(path, tmp_path / "run"), stop)
    found = Page(text_of(tmp_path / "run"))
    assert f"lstm-compile train --resume {tmp_path}/run" in found.text
    run(job_of(path, tmp_path / "run", resume=True))
    again = Page(text_of(tmp_path / "run"))
    assert "--resume" not in again.text
    assert again.pairs["resumed"] == "epoch 2, after 0 steps of it"
    assert again.pairs["stopped"] == "all epochs done"


# ---- pages and charts


def page(title, **changes):
    """The report of a study without any trial."""
    plan = SimpleNamespace(metric="loss", direction="minimize", space={"<th>": 1})
    empty = {"counts": "", "best": None, "importance": "", "fewest": 4, "space": [], "trials": []}
    return render_page("study.html", title=title, plan=plan, **{**empty, **changes})


def test_a_page_escapes_its_title_and_its_cells():
    text = page(HOSTILE, counts="&", space=[(HOSTILE, "b")], trials=[(HOSTILE, "&")]).decode()
    found = Page(text)
    head = ["trial", "state", "loss", "s", "<th>", "why"]
    assert found.rows == [[HOSTILE, "b"], head, [HOSTILE, "&"]]
    assert found.text.count(HOSTILE) == 4


def test_a_page_holds_what_is_no_text():
    assert b"\\ud800" in page("\ud800")


@pytest.mark.parametrize(
    "values",
    [
        [0.0],
        [1e-300, 2e-300],
        [5.0, 5.0, 5.0],
        [1e30, 1.0, -1e30],
        [1.0, math.nan, 0.5, math.inf, 0.25],
        [1.0, math.nextafter(1.0, 2.0)],
        [k / 7 for k in range(1000)],
    ],
)
def test_every_point_of_a_chart_stands_within_its_axes(values):
    points = list(enumerate(values, 1))
    chart = ElementTree.fromstring(line_chart("loss", {"a": points}, "epoch", 1))
    (line,) = chart.iter("polyline")
    places = [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
    assert len(places) == sum(map(math.isfinite, values))
    assert all(62 <= x <= 408 and 48 <= y <= 222 for x, y in places)


def test_a_chart_of_nothing_is_empty():
    assert line_chart("loss", {"a": [(1, math.nan)], "b": []}, "epoch") == ""


@pytest.mark.parametrize(
    ("low", "high", "most", "whole", "expected"),
    [
        (0.0, 1.0, 5, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-3.0, 17.0, 4, False, [0, 5, 10, 15]),
        (0.9, 3.1, 8, True, [1, 2, 3]),
        (0.0, 240.0, 8, True, [0, 50, 100, 150, 200]),
    ],
)
def test_ticks_are_round(low, high, most, whole, expected):
    assert Axis(low, high, 0, 1).ticks(most, whole) == pytest.approx(expected)
