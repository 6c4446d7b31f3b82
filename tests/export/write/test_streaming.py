"""The streaming file and the class that keeps its states."""

import json
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from marks import slow
from model_cases import streaming_file, streaming_model

from lstm_compile.cli.app import app
from lstm_compile.errors import InputError
from lstm_compile.export import export_streaming, verify_onnx
from lstm_compile.export.proof import parity
from lstm_compile.export.proof.engines import EVERYWHERE, choose_runtimes
from lstm_compile.export.proof.inputs import CUTS, STEPS, feedings
from lstm_compile.export.runtime import ModelError, load, open_streams
from lstm_compile.export.write.onnx import to_onnx
from lstm_compile.export.write.streaming import to_streaming
from lstm_compile.model.checkpoint import save_model
from lstm_compile.model.model import predict

FAST = ["eager", "onnxruntime", "openvino"]
# in one process of their own each, and without compiling anything
QUICK = [*FAST, *({"tract", "opencv"} & {*choose_runtimes(None, EVERYWHERE)[0]})]
KINDS = [
    {"task": "tag"},
    {"task": "regress-steps", "num_layers": 1},
    {"task": "classify", "pooling": "last", "scaling": "minmax", "bias": False},
    {"task": "regress", "pooling": "last", "num_layers": 1, "hidden_size": 1},
    {"task": "forecast", "pooling": "last", "linear": False, "horizon": 2, "output_size": 3},
]


@pytest.fixture(scope="module")
def tag():
    return streaming_model(task="tag")


@pytest.fixture(scope="module")
def data(tag):
    return streaming_file(task="tag").SerializeToString()


@pytest.fixture
def streams(data):
    return open_streams(data)


def steps(count, seed=0, batch=1):
    return np.random.default_rng(seed).standard_normal((batch, count, 3)).astype(np.float32)


def whole(model, x):
    return predict(model.params, model.config, torch.from_numpy(x)).numpy()


@pytest.mark.parametrize(
    ("kind", "cells", "runtimes"),
    [
        (KINDS[0], "node", ["eager", "onnxruntime"]),
        *(slow(kind, cells, QUICK) for kind in KINDS for cells in ("node", "plain")),
    ],
    ids=lambda given: given["task"] if isinstance(given, dict) else None,
)
def test_every_kind_streams_as_it_runs_whole(tmp_path, kind, cells, runtimes):
    report = export_streaming(streaming_model(**kind), tmp_path / "s.onnx", cells, runtimes)
    assert report.parity.passed
    assert max(row.difference for row in report.parity.rows if row.runtime in FAST) <= 1e-5
    assert json.loads((tmp_path / "s.parity.json").read_text())["passed"]
    operators = {node.op_type for node in onnx.load(tmp_path / "s.onnx").graph.node}
    assert ("LSTM" in operators) == (cells == "node")
    assert not {"Loop", "Scan", "If"} & operators
    assert cells == "node" or "ConstantOfShape" not in operators  # OpenCV cannot load it here


@pytest.mark.slow
@pytest.mark.parametrize("led", [False, True])
def test_a_model_that_adds_up_passes(tmp_path, monkeypatch, led):
    model = streaming_model(task="tag", num_layers=1)
    model.params["lstm.bias_ih_l0"][5:10] = 3.0  # it forgets little: 1,000 roundings add up
    if led:  # some processors round so that its own loop in float32 nears the tolerance
        monkeypatch.setattr(parity, "_is_chaotic", lambda *_: True)
    report = export_streaming(model, tmp_path / "s.onnx", "node", ["compiled", "onnxruntime"])
    assert report.parity.passed
    assert not led or any("led" in row.case for row in report.parity.rows)


def test_the_proof_takes_a_thousand_steps_in_every_way():
    assert all(sum(sizes) == STEPS == 1000 for cut, sizes in CUTS.items() if cut != "one step")
    assert len(set(CUTS["chunks"])) > 4
    assert {(each.cut, each.state) for each in feedings(False)} == {
        (cut, state) for cut in CUTS for state in ("zero", "random")
    }


@pytest.mark.slow
def test_a_state_that_is_not_handed_on_is_found(tmp_path, tag):
    proto = to_streaming(tag)
    for node in proto.graph.node:
        if node.op_type == "Gather" and "c" in node.input:  # one state is taken for the other
            node.input[list(node.input).index("c")] = "h"
    path = tmp_path / "wrong.onnx"
    path.write_bytes(proto.SerializeToString())
    assert not verify_onnx(tag, path, ["onnxruntime"]).passed


def test_metadata_say_which_output_feeds_which_input(data):
    model = onnx.load_model_from_string(data)
    found = {prop.key: prop.value for prop in model.metadata_props}
    state = json.loads(found["state"])
    assert json.loads(found["inputs"]) == ["x", "h", "c"]
    assert [value.name for value in model.graph.output] == [
        "step_probabilities",
        "h_next",
        "c_next",
    ]
    assert state["cells"] == "node"
    assert state["tensors"] == {
        name: {"from": f"{name}_next", "shape": [2, "batch", 5], "initial": 0.0} for name in "hc"
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "tag", "bidirectional": True}, "train with --no-bidirectional"),
        (
            {"task": "classify", "pooling": "mean"},
            "pooling mean reads all steps at once; train with",
        ),
        ({"task": "forecast", "pooling": "last"}, "its linear path reads the whole window"),
        (
            {"task": "forecast", "pooling": "last", "scaling": "revin"},
            "scaling revin needs the whole",
        ),
        (
            {"task": "forecast", "pooling": "last", "linear": False, "season": 3},
            "season reads steps",
        ),
    ],
)
def test_models_that_need_the_whole_sequence_are_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        export_streaming(streaming_model(**{"output_size": 3, **changes}), tmp_path / "s.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_sequence_runtime_names_the_way_and_the_other_way_round(data, tmp_path, tag):
    with pytest.raises(ModelError, match="this file streams: open it with `open_streams`"):
        load(data)
    with pytest.raises(ModelError, match="this file does not stream: open it with `load`"):
        open_streams(to_onnx(tag).SerializeToString())


def test_chunks_of_any_size_give_what_the_whole_gives(streams, tag):
    x = steps(40)
    parts = [streams.push(["a"], x[:, start:stop]) for start, stop in ((0, 1), (1, 8), (8, 40))]
    np.testing.assert_allclose(np.concatenate(parts, 1), whole(tag, x), atol=1e-5)


def test_streams_are_apart_and_ragged_chunks_are_grouped(streams, tag):
    x = steps(20, batch=4)
    names = ["a", 7, ("c", 1), "d"]
    cuts = [(3, 3, 9, 1), (17, 17, 11, 19)]
    starts, parts = [0] * 4, [[] for _ in names]
    for sizes in cuts:
        chunks = [x[i, starts[i] : starts[i] + size] for i, size in enumerate(sizes)]
        for i, answer in enumerate(streams.push(names, chunks)):
            assert answer.shape == (sizes[i], 4)
            parts[i].append(answer)
        starts = [start + size for start, size in zip(starts, sizes, strict=True)]
    expected = whole(tag, x)
    for part, own in zip(parts, expected, strict=True):
        np.testing.assert_allclose(np.concatenate(part), own, atol=1e-5)
    assert len(streams) == 4
    streams.reset(["a"])
    np.testing.assert_allclose(streams.push(["a"], x[:1]), expected[:1], atol=1e-5)


def test_plain_cells_take_chunks_step_by_step(tag):
    streams, x = (
        open_streams(streaming_file("plain", task="tag").SerializeToString()),
        steps(9, batch=2),
    )
    np.testing.assert_allclose(streams.push("ab", x), whole(tag, x), atol=1e-5)


FORECASTS = next(kind for kind in KINDS if kind.get("task") == "forecast")


@pytest.mark.slow
@pytest.mark.parametrize("cells", ["node", "plain"])
def test_forecasts_stream(cells):
    model, x = streaming_model(**FORECASTS | {"horizon": 1}), steps(9, batch=2)
    streams = open_streams(to_streaming(model, cells).SerializeToString())
    assert not streams.stepwise
    streams.push("ab", x[:, :4])
    np.testing.assert_allclose(streams.push("ab", x[:, 4:]), whole(model, x), atol=1e-5)


@pytest.mark.slow
def test_pooled_answers_are_of_the_last_step():
    model = streaming_model(task="classify", pooling="last")
    streams, x = open_streams(to_streaming(model).SerializeToString()), steps(9, batch=2)
    streams.push("ab", x[:, :4])
    answers = streams.push("ab", x[:, 4:])
    np.testing.assert_allclose(answers, whole(model, x), atol=1e-5)
    assert streams.labels(answers) == [f"class_{code}" for code in answers.argmax(1)]


def test_snapshots_bring_streams_back(streams):
    x = steps(6, batch=2)
    streams.push("ab", x[:, :3])
    kept = streams.snapshot()
    first = streams.push("ab", x[:, 3:])
    assert not np.array_equal(streams.push("ab", x[:, 3:]), first)
    streams.restore(kept)
    assert np.array_equal(streams.push("ab", x[:, 3:]), first)
    streams.reset()
    assert len(streams) == 0
    streams.restore(kept)
    assert streams.snapshot(["b"])["h"].shape == (2, 1, 5)
    assert np.array_equal(streams.push("ab", x[:, 3:]), first)
    with pytest.raises(ModelError, match="stream 'z' has not begun"):
        streams.snapshot(["z"])
    with pytest.raises(ModelError, match="a snapshot of 2 streams has float32"):
        streams.restore({**kept, "h": kept["h"][:, :1]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda kept: {}, "a snapshot has `ids`, `h` and `c`; take one with `snapshot`"),
        (lambda kept: {"ids": ["a", "b"], "h": kept["h"]}, "a snapshot has `ids`, `h` and `c`"),
        (lambda kept: {**kept, "ids": "ab"}, "stream ids must be a list, got 'ab'"),
        (lambda kept: {**kept, "ids": ["a", "a"]}, "a stream is named twice"),
        (lambda kept: {**kept, "ids": [["a"], "b"]}, "stream ids must be texts or numbers"),
        (lambda kept: {**kept, "c": kept["c"] * np.float32("nan")}, "a snapshot must be finite"),
    ],
)
def test_a_damaged_snapshot_changes_no_stream(streams, change, message):
    streams.push("ab", steps(4, batch=2))
    kept = streams.snapshot()
    with pytest.raises(ModelError, match=message):
        streams.restore(change(kept))
    after = streams.snapshot()
    assert all(np.array_equal(kept[part], after[part]) for part in ("ids", "h", "c"))


def test_a_snapshot_of_all_leaves_out_what_is_reset_meanwhile(streams):
    streams.push("ab", steps(4, batch=2))
    with streams._held({"a"}):  # as another thread does while it works
        waiting = threading.Thread(target=lambda: found.append(streams.snapshot()))
        found = []
        waiting.start()
        waiting.join(0.05)
        del streams._states["a"]
    waiting.join()
    assert found[0]["ids"] == ["b"]


def test_streams_warm_up_with_a_step_at_least(streams):
    with pytest.raises(ModelError, match="time must be a whole number of at least 1, got 0"):
        streams.warm_up(1, 0)
    assert streams.warm_up(2, 3) > 0
    assert len(streams) == 0


@pytest.mark.parametrize(
    ("names", "x", "message"),
    [
        (
            ["a"],
            steps(3)[0],
            r"x must have shape \(streams, time, features\) = \(1, 1 or more, 3\)",
        ),
        (["a"], steps(3)[..., :2], "x must have shape"),
        (["a", "b"], steps(3), "x must have shape"),
        (["a"], steps(0), "x must have shape"),
        (["a"], steps(3).astype(np.float64), r"x must be float32, found float64; use x.astype"),
        (["a"], np.full((1, 2, 3), np.nan, np.float32), "x must be finite"),
        (["a", "a"], steps(3, batch=2), "a stream is named twice"),
        ([["a"]], steps(3), "stream ids must be texts or numbers"),
        ([None], steps(3), "stream ids must be texts or numbers, got None or NaN"),
        ([float("nan")], steps(3), "stream ids must be texts or numbers, got None or NaN"),
        (["a"], np.ma.zeros((1, 2, 3), np.float32), "x: masked values would be read as numbers"),
        (["a"], [[[1.0, 2.0, 3.0], [1.0]]], r"the chunk of stream 'a': not one array"),
        (["a"], 7, "x must be a list, got 7"),
        (["a", "b"], [steps(3)[0]], "2 streams, but 1 chunks"),
        (["a", "b"], [steps(3)[0], steps(0)[0]], "the chunk of stream 'b' must have shape"),
    ],
)
def test_what_does_not_fit_is_refused_and_no_state_changes(streams, names, x, message):
    streams.push("ab", steps(4, batch=2))
    before = streams.snapshot()
    with pytest.raises(ModelError, match=message):
        streams.push(names, x)
    after = streams.snapshot()
    assert before["ids"] == after["ids"]
    assert np.array_equal(before["h"], after["h"])


def test_nothing_gives_nothing(streams):
    assert streams.push([], []) == []


def test_threads_may_push_at_once(streams, tag):
    x = steps(60, batch=6)

    def run(index):
        for step in range(0, 60, 3):
            chunk = x[index : index + 1, step : step + 3]
            answers[index].append(streams.push([index], chunk))
            both = sorted({"s", "t"}) if index % 2 else ["t", "s"]  # in either order
            streams.push(both, np.zeros((2, 1, 3), np.float32))

    answers = [[] for _ in x]
    workers = [threading.Thread(target=run, args=(index,)) for index in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
    found = np.concatenate([np.concatenate(part, 1) for part in answers])
    np.testing.assert_allclose(found, whole(tag, x), atol=1e-5)
    alone = open_streams(streaming_file(task="tag").SerializeToString())
    alone.push(["s"], np.zeros((1, 120, 3), np.float32))
    np.testing.assert_allclose(streams.snapshot(["s"])["h"], alone.snapshot(["s"])["h"], atol=1e-5)


@pytest.mark.slow
def test_the_command_line_writes_and_verifies(tmp_path, tag):
    invoke = CliRunner().invoke
    save_model(tmp_path / "model.safetensors", *tag)
    found = invoke(app, ["export", str(tmp_path), "--onnx", "--streaming", "--json"])
    assert found.exit_code == 0, found.output
    path = Path(json.loads(found.stdout)["path"])
    assert path == tmp_path / "streaming.onnx"
    found = invoke(app, ["verify", str(tmp_path), "--onnx", str(path)])
    assert found.exit_code == 0, found.output
    assert found.output.splitlines()[-1].split()[1:3] == ["lstm-compile", "inspect"]
    found = invoke(app, ["inspect", str(path)])
    assert found.exit_code == 0, found.output
    assert "h_next" in found.output
    found = invoke(app, ["export", str(tmp_path), "--onnx", "--cells", "plain"])
    assert found.exit_code == 2
    found = invoke(app, ["evaluate", str(path), "japanese-vowels"])
    assert found.exit_code == 2
    assert "this file streams" in found.output
