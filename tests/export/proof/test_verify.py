import json
import math
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from model_cases import sequence_file, sequence_model
from onnx import numpy_helper

from lstm_compile.devices import tf32
from lstm_compile.errors import InputError
from lstm_compile.export import ParityReport, verify_onnx
from lstm_compile.export.proof.engines import choose_runtimes
from lstm_compile.export.proof.inputs import ParityCase, all_cases, random_inputs
from lstm_compile.export.proof.onnx_file import read_onnx
from lstm_compile.export.proof.parity import answer_units, rounding, tolerance
from lstm_compile.export.proof.parity_report import Comparison
from lstm_compile.export.runtime import ModelError, ask, open_session
from lstm_compile.export.write.onnx import to_onnx
from lstm_compile.model.checkpoint import numbered_schema, save_model

ORT = ("onnxruntime",)


@pytest.fixture(scope="module")
def proto():
    return sequence_file()


@pytest.fixture
def path(proto, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.fixture
def edit(proto, path):
    """A changed copy of the file: `edit(change)` runs `change` on its protobuf."""

    def edit(change):
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        change(copy)
        path.write_bytes(copy.SerializeToString())
        return path

    return edit


def test_good_file_passes_on_every_runtime_asked(path):
    report = verify_onnx(sequence_model(), path, ("eager", "onnxruntime", "openvino"))
    assert report.passed
    assert not report.failures()
    assert count_rows(report) == {"metadata": 1, "eager": 30, "onnxruntime": 30, "openvino": 30}
    assert all(row.difference < 1e-6 for row in report.rows)


def count_rows(report):
    names = [row.runtime for row in report.rows]
    return {name: names.count(name) for name in names}


def test_model_may_be_a_path(path, tmp_path):
    save_model(tmp_path / "model.safetensors", *sequence_model())
    assert verify_onnx(tmp_path, path, ORT).passed


def test_cases_cover_the_sizes_and_lengths_that_break_runtimes():
    cases = all_cases()
    assert {case.batch for case in cases} == {1, 3, 32}
    assert {case.time for case in cases} == {1, 2, 17, 61}
    assert len(set(cases)) == len(cases)
    mixed = random_inputs(ParityCase(3, 17, "mixed"), sequence_model())["lengths"]
    assert (mixed[0], mixed[1]) == (17, 0)
    assert random_inputs(ParityCase(3, 17, "zero"), sequence_model())["lengths"].tolist() == [
        0,
        0,
        0,
    ]
    assert random_inputs(ParityCase(3, 17, "one"), sequence_model())["lengths"].tolist() == [
        1,
        1,
        1,
    ]


@pytest.mark.parametrize(
    ("scaling", "mean", "low", "high"),
    [("standard", 20.0, -1300, 1300), ("minmax", 170.0, 20, 320), ("none", 0.0, -5, 5)],
)
def test_inputs_are_in_the_users_own_units(scaling, mean, low, high):
    x = random_inputs(ParityCase(32, 61, "full"), sequence_model(scaling=scaling))["x"]
    assert x.dtype == np.float32
    assert abs(x[..., 2].mean() - mean) < 20
    assert low < x[..., 2].min()
    assert x[..., 2].max() < high


def test_padding_of_the_inputs_is_nan():
    x, lengths = random_inputs(ParityCase(32, 17, "mixed"), sequence_model()).values()
    padded = np.arange(17) >= lengths[:, None]
    assert np.isnan(x[padded]).all()
    assert np.isfinite(x[~padded]).all()


def test_retrained_model_fails(path):
    report = verify_onnx(sequence_model(seed=1), path, ("eager", *ORT))
    assert not report.passed
    assert {row.runtime for row in report.failures()} == {"onnxruntime"}


def test_one_changed_weight_fails(edit):
    def change(model):
        tensor = next(t for t in model.graph.initializer if t.name == "lstm.weight_hh_l1_reverse")
        values = numpy_helper.to_array(tensor).copy()
        values[0, 7, 2] += 0.01
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    assert not verify_onnx(sequence_model(), edit(change), ORT).passed


def test_nan_in_an_answer_fails(edit):
    def change(model):
        tensor = next(t for t in model.graph.initializer if t.name == "head.bias")
        tensor.CopyFrom(numpy_helper.from_array(np.full(4, np.nan, np.float32), tensor.name))

    report = verify_onnx(sequence_model(), edit(change), ORT)
    assert len(report.failures()) == 30
    assert all(math.isnan(row.difference) for row in report.failures())
    assert json.loads(report.to_json())["rows"][1]["difference"] is None


def test_swapped_class_names_fail(path):
    model = sequence_model()
    schema = numbered_schema(model.config)
    swapped = type(schema)(schema.features, schema.classes[::-1], ())
    (failure,) = verify_onnx(model._replace(schema=swapped), path, ORT).failures()
    assert str(failure) == "[x] metadata         names            not the model's: schema"


def test_runtime_that_refuses_the_file_is_a_failure(edit):
    def use_layout_1(model):
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "layout":
                    attribute.i = 1

    report = verify_onnx(sequence_model(), edit(use_layout_1), ORT)
    assert not report.passed
    assert any(row.error for row in report.failures())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_size": 2}, "features is 3, the model's is 2"),
        ({"output_size": 5}, "outputs is 4, the model's is 5"),
        ({"task": "regress"}, "task is classify, the model's is regress"),
    ],
)
def test_file_of_another_shape_is_refused(path, changes, message):
    with pytest.raises(InputError, match=rf"model\.onnx: {message}; name the file"):
        verify_onnx(sequence_model(**changes), path, ORT)


def rename_lengths(model):
    model.graph.input[1].name = "sizes"
    for node in model.graph.node:
        node.input[:] = ["sizes" if name == "lengths" else name for name in node.input]


def make_lengths_int32(model):
    model.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.INT32


def move_weights_out(model):
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def hide_weights_in_an_attribute(model):
    node = next(n for n in model.graph.node if n.op_type == "ConstantOfShape")
    node.attribute[0].t.data_location = onnx.TensorProto.EXTERNAL


def remove_a_node(model):
    del model.graph.node[3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            rename_lengths,
            "expected inputs x or tokens, lengths and one output .*; found inputs x, sizes",
        ),
        (move_weights_out, "a tensor lies in another file, which is refused"),
        (hide_weights_in_an_attribute, "lies in another file, which is refused"),
        (remove_a_node, "not a valid ONNX file"),
        (make_lengths_int32, "not a valid ONNX file|lengths must be INT64"),
    ],
)
def test_wrong_file_is_refused_in_one_line(edit, change, message):
    with pytest.raises(InputError, match=rf"model\.onnx: .*({message})") as caught:
        verify_onnx(sequence_model(), edit(change), ORT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [b"", b"not an ONNX file at all", None])
def test_corrupt_file_is_refused_in_one_line(path, damage):
    path.write_bytes(path.read_bytes()[:2000] if damage is None else damage)
    with pytest.raises(InputError, match=r"model\.onnx: ") as caught:
        verify_onnx(sequence_model(), path, ORT)
    assert "\n" not in str(caught.value)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none\.onnx: cannot be read .*; export it first"):
        verify_onnx(sequence_model(), tmp_path / "none.onnx", ORT)


def test_unknown_runtime_is_refused(path):
    with pytest.raises(InputError, match=r"runtime must be one of eager, .*; got 'tensorrt'"):
        verify_onnx(sequence_model(), path, ("tensorrt",))


def test_absent_runtimes_are_skipped_or_refused(monkeypatch):
    there = "lstm_compile.export.proof.runtimes.find_spec"
    monkeypatch.setattr(there, lambda name: None if name == "openvino" else name)
    chosen, skipped = choose_runtimes(None)
    assert "openvino" not in chosen
    assert skipped == {"openvino": "not installed; pip install openvino"}
    with pytest.raises(InputError, match="runtime openvino: not installed"):
        choose_runtimes(("openvino",))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_runtimes_need_a_device():
    chosen, _ = choose_runtimes(None)
    assert not any(name.endswith("-cuda") for name in chosen)
    with pytest.raises(InputError, match="runtime eager-cuda: torch finds no CUDA device"):
        choose_runtimes(("eager-cuda",))


@pytest.mark.cuda
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_backends_agree(path):
    report = verify_onnx(sequence_model(), path, ("eager-cuda", "compiled-cuda"))
    assert report.passed, "\n".join(report.lines())


def test_tf32_is_given_back():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with tf32(False):
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


def test_tolerance_grows_past_512_steps():
    assert (tolerance(1), tolerance(512), tolerance(513)) == (1e-5, 1e-5, 1e-4)


def test_units_of_values_are_the_reach_of_the_head_times_the_target_scale():
    answers = np.zeros((3, 4))
    assert answer_units(sequence_model(), answers).tolist() == [1.0] * 4
    model = sequence_model(task="regress", output_size=2)
    model.params["head.weight"] = torch.full((2, 10), 0.5) * torch.tensor([[1.0], [-0.1]])
    model.params["target_scaler.scale"] = torch.tensor([3.0, 7.0])
    np.testing.assert_allclose(answer_units(model, answers), [15.0, 7.0])
    plain = replace(model.config, target_scaling="none")
    np.testing.assert_allclose(answer_units(model._replace(config=plain), answers), [5.0, 1.0])


@pytest.mark.slow
def test_values_far_from_zero_may_be_rounded_to_float32(tmp_path):
    model = sequence_model(task="regress", output_size=1)
    model.params["target_scaler.shift"] = torch.tensor([1e6])  # float32 steps of 0.06 there
    model.params["target_scaler.scale"] = torch.tensor([0.5])
    (tmp_path / "far.onnx").write_bytes(to_onnx(model).SerializeToString())
    assert verify_onnx(model, tmp_path / "far.onnx", ORT).passed
    assert rounding(np.array([1e6])) == 0.125


def test_ask_guards_what_ends_the_onnxruntime_process(path):
    session = open_session(read_onnx(path).data)
    for shape in ((0, 3, 3), (2, 0, 3), (2, 3)):
        with pytest.raises(ModelError, match="batch and time at least 1; got"):
            ask(session, np.zeros(shape, np.float32), np.zeros(shape[0], np.int64))
    for lengths, message in (
        ([4], r"lengths must be numbers in \[0, 3\], found 4 in row 0"),
        ([-1], r"lengths must be numbers in \[0, 3\], found -1 in row 0"),
        ([1, 1], r"lengths must be 1 numbers, got shape \(2,\)"),
    ):
        with pytest.raises(ModelError, match=message):
            ask(session, np.zeros((1, 3, 3), np.float32), np.array(lengths))


def test_lines_summarise_what_passed_and_show_what_failed():
    rows = [Comparison("eager", f"B=1 T={t} full", 1e-5, 3e-8 * t) for t in (1, 2)]
    rows += [Comparison("onnxruntime", f"B=1 T={t} full", 1e-5, 0.1) for t in range(1, 6)]
    report = ParityReport(tuple(rows), "00", {}, "x86", {"openvino": "not installed"})
    assert report.lines() == [
        "[✓] eager            2 cases          max difference 6.0e-08  tolerance 1e-05",
        "[x] onnxruntime      B=1 T=1 full     max difference 1.0e-01  tolerance 1e-05",
        "[x] onnxruntime      B=1 T=2 full     max difference 1.0e-01  tolerance 1e-05",
        "[x] onnxruntime      B=1 T=3 full     max difference 1.0e-01  tolerance 1e-05",
        "[x] onnxruntime      and 2 more of 5 cases",
        "[-] openvino         not installed",
    ]
    assert not report.passed
    assert not ParityReport((), "00", {}, "x86").passed


def test_report_is_one_json_object():
    row = Comparison("onnxruntime", "load", 1e-5, math.nan, "Fail: cannot")
    values = json.loads(ParityReport((row,), "00", {"torch": "2"}, "x86").to_json())
    assert values == {
        "passed": False,
        "rows": [
            {
                "runtime": "onnxruntime",
                "case": "load",
                "tolerance": 1e-5,
                "difference": None,
                "error": "Fail: cannot",
                "passed": False,
            }
        ],
        "onnx_sha256": "00",
        "versions": {"torch": "2"},
        "device": "x86",
        "skipped": {},
    }
