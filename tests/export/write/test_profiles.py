"""The two forms of the sequence file, property by property, and its int8 variant."""

import json
import re

import numpy as np
import onnx
import pytest
from cli_cases import invoke
from forecast_cases import FORECASTERS, forecast_file, forecast_model
from marks import slow
from model_cases import sequence_file, sequence_model
from onnx import numpy_helper

from lstm_compile.errors import InputError
from lstm_compile.export import export_int8, verify_onnx
from lstm_compile.export.proof.parity import INT8_TOLERANCE
from lstm_compile.export.runtime import load
from lstm_compile.export.write.int8 import quantize
from lstm_compile.export.write.onnx import to_onnx
from lstm_compile.model.checkpoint import save_model

ORT = ("onnxruntime",)
KINDS = {
    "two layers": {},
    "forward": {"bidirectional": False, "pooling": "last"},
    "tag": {"task": "tag", "num_layers": 1},
    "regress": {"task": "regress", "pooling": "max"},
}


def make(kind):
    if kind == "forecast":
        return forecast_model(**FORECASTERS["season, revin"])
    return sequence_model(**KINDS[kind])


def exported(kind, profile):
    if kind == "forecast":
        return forecast_file("season, revin", profile)
    return sequence_file(profile, **KINDS[kind])


def nodes(kind, profile, *types):
    return [node for node in exported(kind, profile).graph.node if node.op_type in types]


def attributes(node):
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


every_kind = pytest.mark.parametrize(
    "kind", ["two layers", *map(slow, [*KINDS][1:]), slow("forecast")]
)
both_profiles = pytest.mark.parametrize("profile", ["portable", "ort"])


# ---- portable


@every_kind
def test_portable_nodes_run_forward_without_lengths(kind):
    found = nodes(kind, "portable", "LSTM")
    assert found
    for node in found:
        assert attributes(node).get("direction", b"forward") == b"forward"
        assert attributes(node).get("layout", 0) == 0
        assert node.input[4] == ""  # sequence_lens
        assert node.input[5]  # initial_h
        assert node.input[6]  # initial_c
        assert all(node.output)
        assert len(node.output) == 3


@every_kind
def test_portable_rows_are_reversed_within_their_length(kind):
    gathers = nodes(kind, "portable", "GatherND")
    assert all(attributes(node)["batch_dims"] == 1 for node in gathers)
    config = make(kind).config
    if config.bidirectional:  # to the end and back again, once a layer
        assert len(gathers) >= 2 * config.num_layers
    assert nodes(kind, "portable", "Where")
    banned = {"ReverseSequence", "Loop", "Scan", "If", "GatherElements", "CastLike"}
    assert not banned & {node.op_type for node in exported(kind, "portable").graph.node}


# ---- ort


@pytest.mark.slow
@every_kind
def test_ort_nodes_take_lengths_as_int32(kind):
    config, found = make(kind).config, nodes(kind, "ort", "LSTM")
    assert len(found) == config.num_layers
    (cast,) = {node.input[4] for node in found}
    (source,) = [n for n in nodes(kind, "ort", "Cast") if n.output[0] == cast]
    assert (source.input[0], attributes(source)["to"]) == ("lengths", onnx.TensorProto.INT32)
    direction = b"bidirectional" if config.bidirectional else b"forward"
    assert {attributes(node)["direction"] for node in found} == {direction}


@every_kind
def test_ort_files_agree_with_the_model(kind, tmp_path):
    (tmp_path / "m.onnx").write_bytes(exported(kind, "ort").SerializeToString())
    report = verify_onnx(make(kind), tmp_path / "m.onnx", ORT)
    assert report.passed, "\n".join(report.lines())


# ---- both


@both_profiles
@every_kind
def test_files_are_opset_17_and_hold_nothing_unused(kind, profile):
    model = exported(kind, profile)
    assert model.ir_version == 8
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    used = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= used
    assert all(t.data_location != onnx.TensorProto.EXTERNAL for t in model.graph.initializer)
    biases = [t for t in model.graph.initializer if t.name.endswith(".bias")]
    assert all(len(tensor.dims) == 1 for tensor in biases)
    sizes = [d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim[:2]]
    assert sizes == ["batch", "time"]


@every_kind
def test_both_profiles_answer_alike(kind):
    portable, ort = (exported(kind, name).graph for name in ("portable", "ort"))
    assert [v.name for v in portable.input] == [v.name for v in ort.input]
    one, other = (load(exported(kind, name).SerializeToString()) for name in ("portable", "ort"))
    rows = [np.full((size, len(one.schema.features)), 0.3 * size) for size in (5, 0, 1)]
    if one.task == "tag":
        for left, right in zip(one.predict_steps(rows), other.predict_steps(rows), strict=True):
            np.testing.assert_allclose(left, right, atol=1e-5)
    elif one.task != "forecast":
        np.testing.assert_allclose(one.predict(rows), other.predict(rows), rtol=1e-5, atol=1e-5)


# ---- int8


@pytest.fixture(scope="module")
def int8():
    model = sequence_model(hidden_size=64)
    plain = to_onnx(model, "ort", finite=True)
    return model, plain, *quantize(model, plain)


def test_int8_is_smaller_and_near(int8):
    _, plain, quantized, error = int8
    assert quantized.ByteSize() < 0.4 * plain.ByteSize()  # a quarter where the LSTM is all
    assert 0 < error < INT8_TOLERANCE
    kinds = [node.op_type for node in quantized.graph.node]
    assert kinds.count("DynamicQuantizeLSTM") == 2
    weights = {t.name: t.data_type for t in quantized.graph.initializer}
    assert weights["lstm.weight_hh_l0_quantized"] == onnx.TensorProto.INT8


def test_int8_says_so_and_verifies(int8, tmp_path):
    model, _, quantized, error = int8
    (tmp_path / "m.onnx").write_bytes(quantized.SerializeToString())
    report = verify_onnx(model, tmp_path / "m.onnx", ORT)
    assert report.passed, "\n".join(report.lines())
    assert {row.tolerance for row in report.rows[1:]} == {INT8_TOLERANCE}
    metadata = load(tmp_path / "m.onnx").metadata
    assert metadata["runtimes"] == "onnxruntime"
    found = json.loads(metadata["quantization"])
    assert found["error"] == pytest.approx(error, rel=1e-2)


def test_what_stands_in_the_padding_does_not_move_int8(int8):
    session = load(int8[2].SerializeToString()).session
    x = np.random.default_rng(0).standard_normal((2, 9, 3)).astype(np.float32)
    lengths = np.array([9, 4])
    answers = []
    for padding in (0.0, np.nan, 1e6):
        x[1, 4:] = padding
        answers.append(session.run(None, {"x": x, "lengths": lengths})[0])
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_array_equal(answers[0], answers[2])


def test_a_quantised_weight_gone_wrong_is_found(int8, tmp_path):
    model, _, quantized, _ = int8
    broken = onnx.ModelProto()
    broken.CopyFrom(quantized)
    for tensor in broken.graph.initializer:
        if tensor.name == "head.weight" or "head.weight" in tensor.name:
            tensor.CopyFrom(
                numpy_helper.from_array(-20 * numpy_helper.to_array(tensor), tensor.name)
            )
    (tmp_path / "m.onnx").write_bytes(broken.SerializeToString())
    assert not verify_onnx(model, tmp_path / "m.onnx", ORT).passed


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    model = sequence_model(num_layers=1)
    save_model(folder / "model.safetensors", *model._replace(training={"data": "mine.npz"}))
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--int8"], "--int8 writes an operator that only ONNX Runtime loads.*add --profile ort"),
        (
            ["--profile", "ort", "--streaming"],
            "do not apply to the streaming file.*leave --streaming out",
        ),
        (["--int8", "--streaming"], "do not apply to the streaming file"),
        (["--data", "x.npz"], "--data is for measuring --int8: add --int8"),
        (["--profile", "fast"], "'fast' is not one of 'portable', 'ort'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(run, words, message):
    shown = invoke("export", run, "--onnx", *words)
    assert shown.exit_code == 2
    assert "Error: " in shown.stderr

    assert re.search(message, " ".join(shown.stderr.split()))
    assert not list(run.glob("*.onnx"))


@pytest.mark.slow
def test_export_writes_each_form_under_its_own_name(run):
    shown = invoke("export", run, "--onnx", "--profile", "ort", "-v")
    assert shown.exit_code == 0, shown.output
    assert "only in     ONNX Runtime: others silently ignore the lengths" in shown.stdout
    assert "known       OpenVINO 2026.4.1: LSTM with sequence_lens" in shown.stdout
    shown = invoke("export", run, "--onnx", "--profile", "ort", "--int8")
    assert shown.exit_code == 0, shown.output
    assert "int8        largest difference from the float64 model" in shown.stdout
    assert "metrics     not measured: " in shown.stdout
    assert {path.name for path in run.iterdir()} == {
        "model.safetensors",
        *("model-ort.onnx", "model-ort.parity.json", "model-ort.selftest.json"),
        *("model-int8.onnx", "model-int8.parity.json", "model-int8.selftest.json"),
    }
    load(run / "model-int8.onnx").check(run / "model-int8.selftest.json")
    inspected = invoke("inspect", run / "model-int8.onnx")
    assert "quantized   weights int8, error " in inspected.stdout
    assert "right in ONNX Runtime only" in inspected.stdout


@pytest.mark.slow
def test_named_data_must_be_there(run):
    with pytest.raises(InputError, match=r"nothing\.npz"):
        export_int8(run, run / "m.onnx", str(run / "nothing.npz"))


@pytest.mark.slow
def test_the_metric_loss_is_measured_on_named_data(run):
    random = np.random.default_rng(0)
    np.savez(
        run / "held_out.npz",
        x=(20 + random.standard_normal((60, 3))).astype(np.float32),
        lengths=np.full(12, 5),
        y=np.array([f"class_{index % 4}" for index in range(12)]),
    )
    words = ["export", run, "--onnx", "--profile", "ort", "--int8", "--data", run / "held_out.npz"]
    shown = invoke(*words, "--json")
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)["int8"]
    assert set(found["float32_metrics"]) == set(found["int8_metrics"]) >= {"accuracy"}
    assert found["bytes"] > 0
