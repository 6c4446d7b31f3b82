"""Files of models of any cell: ONNX Runtime, onnx's evaluator and others give the same answers."""

from dataclasses import replace

import pytest
import torch
from marks import slow
from torch.nn.functional import linear

from lstm_compile.config import ModelConfig
from lstm_compile.data.schema import Schema
from lstm_compile.errors import InputError
from lstm_compile.export.proof.parity import verify_onnx
from lstm_compile.export.proof.runtimes import RUNTIMES
from lstm_compile.export.proof.selftest import selftest, streaming_selftest
from lstm_compile.export.runtime import load, open_streams
from lstm_compile.export.write.onnx import to_onnx
from lstm_compile.export.write.streaming import to_streaming
from lstm_compile.model.checkpoint import Model
from lstm_compile.model.model import init_params
from lstm_compile.recurrence.any_cell import Cell, known_cells, register_cell

NAMES = ("a", "b", "c")
STREAMED = {"bidirectional": False, "pooling": "last"}
COMPARED = [
    name for name in ("onnxruntime", "onnx", "openvino", "tract") if RUNTIMES[name].installed
]


def _step(params, share, state):
    h, c, slow = state
    gates = share + linear(h, params["weight_hh"])
    i, g, o = gates.chunk(3, -1)
    i = torch.sigmoid(i + linear(slow, params["weight_slow"]))
    c = (1 - i) * c + i * torch.tanh(g)
    slow = 0.5 * slow + linear(h, params["weight_up"]) - 0.1 * slow.mean(-1, keepdim=True)
    h = torch.sigmoid(o) * torch.tanh(c)
    return h, (h, c, slow)


COUPLED = Cell(
    "coupled-test",
    lambda size: {"h": size, "c": size, "slow": 3},
    lambda entering, size: {
        "weight_ih": (3 * size, entering),
        "weight_hh": (3 * size, size),
        "weight_slow": (size, 3),
        "weight_up": (3, size),
        "bias": (3 * size,),
    },
    lambda params, x: linear(x, params["weight_ih"], params["bias"]),
    _step,
)


def model_of(cell, task="classify", **options):
    if cell == COUPLED.name and cell not in known_cells():
        register_cell(COUPLED)
    sizes = {"hidden_size": 6, "num_layers": 2, **options}
    config = ModelConfig(task=task, input_size=4, output_size=3, cell=cell, **sizes)
    random = torch.Generator().manual_seed(1)
    params = {
        name: value + 0.1 * torch.randn(value.shape, generator=random) * ("scaler" not in name)
        for name, value in init_params(config, 0).items()
    }
    return Model(params, config, Schema(features=tuple("wxyz"), classes=NAMES, targets=()), {})


@pytest.mark.parametrize(
    ("cell", "bidirectional"),
    [
        ("gru", False),
        slow("coupled-test", False),
        slow("layernorm-lstm", False),
        slow("slstm", True),
        slow("peephole-lstm", True),
    ],
)
def test_a_sequence_file_is_right_for_all_lengths(tmp_path, cell, bidirectional):
    model = model_of(cell, "tag" if bidirectional else "classify", bidirectional=bidirectional)
    example, path = selftest(model), tmp_path / "model.onnx"
    path.write_bytes(to_onnx(model, "portable", example).SerializeToString())
    report = verify_onnx(model, path, COMPARED, everywhere=True)
    assert report.passed, report.lines()
    assert load(path).check(example.encode()) <= 1


@pytest.mark.parametrize("bidirectional", [False, True])
def test_onnx_runtime_alone_gets_peepholes_as_a_node(tmp_path, bidirectional):
    model, path = model_of("peephole-lstm", bidirectional=bidirectional), tmp_path / "model.onnx"
    graph = to_onnx(model, "ort")
    assert [len(node.input) for node in graph.graph.node if node.op_type == "LSTM"]
    path.write_bytes(graph.SerializeToString())
    report = verify_onnx(model, path, ["onnxruntime"])
    assert report.passed, report.lines()


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        ("gru", "node"),
        slow("coupled-test", "node"),
        slow("slstm", "node"),
        slow("peephole-lstm", "plain"),
        slow("layernorm-lstm", "plain"),
        slow("coupled-test", "plain"),
    ],
)
def test_a_streaming_file_is_right_from_any_state(tmp_path, cell, kind):
    model = model_of(cell, "tag", bidirectional=False)
    example, path = streaming_selftest(model, kind == "plain"), tmp_path / "streaming.onnx"
    graph = to_streaming(model, kind, example)
    path.write_bytes(graph.SerializeToString())
    used = {node.op_type for node in graph.graph.node}
    assert bool(used & {"GRU", "LSTM", "Scan"}) == (kind == "node")
    report = verify_onnx(model, path, ["onnxruntime"])
    assert report.passed, report.lines()
    assert open_streams(path).check(example.encode()) <= 1


def test_streams_keep_parts_of_any_size(tmp_path):
    model, path = model_of(COUPLED.name, **STREAMED), tmp_path / "s.onnx"
    path.write_bytes(to_streaming(model).SerializeToString())
    streams, x = open_streams(path), torch.randn(2, 5, 4).numpy()
    streams.push(["a", "b"], x)
    kept = streams.snapshot(["b", "a"])
    assert [kept[part].shape for part in ("h", "c", "slow")] == [(2, 2, 6), (2, 2, 6), (2, 2, 3)]
    expected = streams.push(["a", "b"], x)
    streams.restore(kept)
    assert (streams.push(["a", "b"], x) == expected).all()
    assert (streams.push(["b"], x[1:])[0] != expected[1]).any()


@pytest.mark.slow
def test_a_cell_with_zoneout_exports(tmp_path):
    model, path = model_of(COUPLED.name, **STREAMED, zoneout=0.1), tmp_path / "model.onnx"
    path.write_bytes(to_onnx(model).SerializeToString())
    assert verify_onnx(model, path, ["onnxruntime"]).passed
    plain = model._replace(config=replace(model.config, zoneout=0.0))
    assert not verify_onnx(plain, path, ["onnxruntime"]).passed
    path.write_bytes(to_streaming(model).SerializeToString())
    assert verify_onnx(model, path, ["onnxruntime"]).passed


def test_parts_with_names_of_other_tensors_are_refused():
    output = model_of("gru", **STREAMED).config.traits.output
    if "clash-test" not in known_cells():
        parts = lambda n: {output: n, "c": n, "s": 3}  # noqa: E731
        register_cell(replace(COUPLED, name="clash-test", parts=parts))
    model = model_of("clash-test", **STREAMED)
    with pytest.raises(InputError, match="names another tensor of a streaming file; rename"):
        to_streaming(model)
