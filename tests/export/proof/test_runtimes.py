"""Other runtimes: `verify --runtimes`, what is known of them, and processes that crash or hang."""

import math
import os
import re
import time

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from forecast_cases import FORECASTERS, forecast_model
from model_cases import sequence_file, sequence_model, streaming_file, streaming_model
from onnx import helper

from lstm_compile.cli.app import app
from lstm_compile.export import verify_onnx
from lstm_compile.export.proof import known_faults, runtimes
from lstm_compile.export.proof.engines import EVERYWHERE, choose_runtimes
from lstm_compile.export.proof.inputs import ragged_cases, random_inputs
from lstm_compile.export.proof.runtimes import IsolatedRuntime, NoAnswerError
from lstm_compile.export.write.onnx import to_onnx
from lstm_compile.model.checkpoint import save_model

INSTALLED = choose_runtimes(None, EVERYWHERE)[0]
TWO_LAYERS = {"pooling": "attention", "hidden_size": 8}


def everywhere(model, proto, tmp_path):
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    return verify_onnx(model, tmp_path / "m.onnx", everywhere=True)


def differing(report):
    return {row.runtime for row in report.failures()}


# ---- every runtime


def test_ragged_cases_are_what_breaks_runtimes():
    cases, model = ragged_cases(), sequence_model()
    assert len({case.batch for case in cases}) == len({case.time for case in cases}) == 2
    drawn = [random_inputs(case, model) for case in cases]
    lengths = [(inputs["lengths"], case.time) for inputs, case in zip(drawn, cases, strict=True)]
    assert any((rows < steps).all() for rows, steps in lengths)
    assert {0, 1} <= {int(row) for rows, _ in lengths for row in rows}
    behind = [i["x"][np.arange(i["x"].shape[1]) >= i["lengths"][:, None]] for i in drawn]
    assert any(np.isnan(rows).any() for rows in behind)
    assert any((rows == 12_345).any() for rows in behind)


@pytest.mark.slow
def test_portable_is_right_in_every_runtime_installed(tmp_path):
    model = sequence_model(**TWO_LAYERS)
    report = everywhere(model, sequence_file(**TWO_LAYERS), tmp_path)
    assert report.passed, "\n".join(report.lines())
    assert {row.runtime for row in report.rows} == {"metadata", *INSTALLED}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tag", "forecast", "season", "hybrid", "streaming", "plain"])
def test_other_models_are_right_in_every_runtime_installed(tmp_path, kind):
    if kind in ("streaming", "plain"):
        model = streaming_model(task="tag")
        proto = streaming_file("node" if kind == "streaming" else "plain", task="tag")
    elif kind in ("tag", "hybrid"):
        blocks = {"transformer_layers": 1, "heads": 2, "hidden_size": 8}
        changes = {"task": "tag"} if kind == "tag" else blocks
        model = sequence_model(num_layers=1, **changes)
        proto = sequence_file(num_layers=1, **changes)
    else:
        configs = FORECASTERS
        changes = {
            "forecast": {**configs["known, static"], "targets": 1},
            "season": configs["season, revin"],
        }[kind]
        model = forecast_model(**changes)
        proto = to_onnx(model)
    report = everywhere(model, proto, tmp_path)
    assert report.passed, "\n".join(report.lines())


@pytest.mark.slow
@pytest.mark.skipif("tract" not in INSTALLED, reason="tract is not installed")
@pytest.mark.parametrize("scaling", ["last", "mean", "revin"])
def test_tract_takes_what_is_known_of_lengths_apart(tmp_path, scaling):
    changes = {"targets": 1, "scaling": scaling, "bidirectional": True, "pooling": "mean"}
    model = forecast_model(**changes)
    (tmp_path / "m.onnx").write_bytes(to_onnx(model).SerializeToString())
    report = verify_onnx(model, tmp_path / "m.onnx", ["tract"])
    assert report.passed, "\n".join(report.lines())


@pytest.mark.slow
@pytest.mark.skipif("openvino" not in INSTALLED, reason="OpenVINO is not installed")
def test_the_silent_error_is_caught_with_its_size(tmp_path):
    model = sequence_model(**TWO_LAYERS)
    (tmp_path / "model.safetensors").touch()
    save_model(tmp_path / "model.safetensors", *model)
    path = tmp_path / "model-ort.onnx"
    path.write_bytes(sequence_file("ort", **TWO_LAYERS).SerializeToString())
    words = ["verify", str(tmp_path), "--onnx", str(path), "--runtimes"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 1
    found = re.findall(r"\[x\] openvino .* max difference (\S+)", shown.stdout)
    assert any(float(difference) > 0.01 for difference in found)
    assert "[✓] onnxruntime" in shown.stdout
    if "mnn" in INSTALLED:
        assert "[x] mnn" in shown.stdout


@pytest.mark.slow
def test_the_ort_form_is_compared_in_onnx_runtime_alone(tmp_path):
    model = sequence_model()
    (tmp_path / "m.onnx").write_bytes(sequence_file("ort").SerializeToString())
    report = verify_onnx(model, tmp_path / "m.onnx")
    assert report.passed
    assert report.skipped["openvino"] == "the file is for ONNX Runtime only"
    assert "openvino" not in {row.runtime for row in report.rows}


def test_what_is_not_installed_is_said(monkeypatch):
    monkeypatch.setattr("lstm_compile.export.proof.runtimes.find_spec", lambda name: None)
    chosen, skipped = choose_runtimes(None, EVERYWHERE)
    assert chosen == []
    assert skipped["tract"] == "not installed; pip install tract"
    assert skipped["opencv"] == "not installed; pip install opencv-python-headless"


# ---- processes of their own


@pytest.fixture
def file():
    """A file that doubles its input, and what it takes and gives."""
    x, y = (helper.make_tensor_value_info(name, 1, ["n"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return model.SerializeToString(), ["x"], ["y"]


@pytest.fixture
def misbehaving(tmp_path, monkeypatch):
    """Let a runtime be what some lines of Python make of `run(inputs)` and `load()`."""

    def put(code):
        (tmp_path / "_misbehaving.py").write_text(f"import os, signal, time\n{code}\n")
        patch = "from lstm_compile.export.proof.runtimes import RUNTIMES, Runtime\n"
        patch += "import _misbehaving\n"
        patch += "RUNTIMES['bad'] = Runtime('os', 'bad', _misbehaving.load)\n"
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(runtimes, "PROGRAM", patch + runtimes.PROGRAM)

    return put


def test_a_process_answers_and_goes_away(file):
    apart = IsolatedRuntime("onnxruntime", *file)
    for size in (1, 4):
        (found,) = apart({"x": np.arange(size, dtype=np.float32)})
        np.testing.assert_array_equal(found, 2 * np.arange(size))
    apart.close()
    assert apart._process.poll() is not None
    assert not os.path.exists(apart._folder.name)


def test_a_crash_is_an_answer(file, misbehaving):
    misbehaving(
        "def load(file):\n    def run(inputs):\n        print('on the way', flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGSEGV)\n    return run"
    )
    apart = IsolatedRuntime("bad", *file)
    for _ in range(2):
        with pytest.raises(NoAnswerError, match=r"its process ended \(SIGSEGV\) on the way"):
            apart({"x": np.zeros(1, np.float32)})
    apart.close()


@pytest.mark.slow
def test_a_runtime_that_hangs_is_given_up(file, misbehaving):
    misbehaving("def load(file):\n    time.sleep(60)")
    began = time.perf_counter()
    with pytest.raises(NoAnswerError, match="no answer within 2 s"):
        IsolatedRuntime("bad", *file, limit=2.0)
    assert time.perf_counter() - began < 20


def test_an_error_is_one_line_and_the_next_call_is_answered(file, misbehaving):
    misbehaving(
        "def load(file):\n    def run(inputs):\n        if len(inputs['x']) == 2:\n"
        "            raise BaseException('panicked\\nmore')\n        return [inputs['x']]\n"
        "    return run"
    )
    apart = IsolatedRuntime("bad", *file)
    with pytest.raises(NoAnswerError, match=r"^BaseException: panicked$"):
        apart({"x": np.zeros(2, np.float32)})
    assert apart({"x": np.zeros(1, np.float32)})[0].tolist() == [0.0]
    apart.close()


def test_what_a_compiler_says_is_told(file, misbehaving):
    misbehaving("def load(file):\n    raise ValueError('failed\\nm.mlir:3: error: no such thing')")
    with pytest.raises(NoAnswerError, match=r"^ValueError: m\.mlir:3: error: no such thing$"):
        IsolatedRuntime("bad", *file)


def test_verify_goes_on_where_a_runtime_ends(tmp_path, misbehaving, monkeypatch):
    misbehaving("def load(file):\n    os.kill(os.getpid(), signal.SIGABRT)")
    monkeypatch.setitem(runtimes.RUNTIMES, "bad", runtimes.Runtime("os", "bad", lambda file: None))
    for name in ("EVERYWHERE", "KNOWN"):
        monkeypatch.setattr(f"lstm_compile.export.proof.engines.{name}", ("bad", "onnxruntime"))
    report = everywhere(sequence_model(), sequence_file(), tmp_path)
    (bad,) = [row for row in report.rows if row.runtime == "bad"]
    assert (bad.case, math.isnan(bad.difference)) == ("load", True)
    assert "SIGABRT" in bad.error
    assert differing(report) == {"bad"}


# ---- what is known


def test_every_row_says_something():
    for row in known_faults.TABLE:
        assert all(row[:5])
        assert "|" not in "".join(row[:5])


def happenings(proto):
    return {(row.runtime, row.part) for row in known_faults.concerning(proto.graph)}


def test_rows_concern_the_nodes_of_the_file():
    portable, ort = happenings(sequence_file()), happenings(sequence_file("ort"))
    silent = ("OpenVINO", known_faults.LENGTHS)
    assert silent in ort
    assert silent not in portable
    assert not {part for _, part in portable} & {
        "LSTM without initial states", "LSTM with outputs that have no name", "Max of one input",
        "ConstantOfShape without value", "ReverseSequence", "LSTM with layout 1", "Loop, Scan",
    }  # fmt: skip
    plain = happenings(streaming_file("plain", task="tag"))
    assert not any("LSTM" in part for _, part in plain)


def test_rows_of_other_files():
    nodes = [
        helper.make_node("Max", ["x"], ["a"]),
        helper.make_node("ConstantOfShape", ["a"], ["b"]),
        helper.make_node("LSTM", ["x", "w", "r"], ["y"], layout=1),
        helper.make_node("ReverseSequence", ["x", "l"], ["z"]),
    ]
    found = {row.part for row in known_faults.concerning(onnx.GraphProto(node=nodes))}
    assert {
        "Max of one input", "ConstantOfShape without value", "LSTM with layout 1",
        "LSTM with outputs that have no name", "LSTM without initial states", "ReverseSequence",
    } <= found  # fmt: skip
