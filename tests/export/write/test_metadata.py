"""The metadata of exported files, and what a host may rely on in them."""

import hashlib
import json
from importlib.resources import files

import jsonschema
import numpy as np
import onnx
import onnxruntime
import pytest
from forecast_cases import forecast_file
from marks import slow
from model_cases import (
    sequence_file,
    sequence_model,
    streaming_file,
    streaming_model,
    text_file,
)

from lstm_compile.data.schema import Schema
from lstm_compile.export import export_onnx, export_streaming, names
from lstm_compile.export.use.inspect import inspect_onnx
from lstm_compile.export.write.onnx import to_onnx

SCHEMA = json.loads(files("lstm_compile.export").joinpath("metadata.schema.json").read_text())
FAST = ["eager", "onnxruntime"]
FILES = {
    "classify": sequence_file,
    "classify, ort": lambda: sequence_file("ort"),
    "regress": lambda: sequence_file(task="regress", target_scaling="minmax"),
    "tag": lambda: sequence_file(task="tag"),
    "forecast": lambda: forecast_file("known, static"),
    "lm": lambda: text_file(6),
    "streaming": lambda: streaming_file(task="tag"),
    "plain cells": lambda: streaming_file("plain", task="tag"),
    "another cell": lambda: streaming_file("plain", task="tag", cell="slstm"),
}
USUAL = ("classify", "forecast", "streaming")
every_kind = pytest.mark.parametrize(
    "kind", [kind if kind in USUAL else slow(kind) for kind in FILES]
)


def parsed(model):
    """What `metadata.schema.json` says a host does first."""
    found = {entry.key: entry.value for entry in model.metadata_props}
    return {k: json.loads(v) if v.startswith(("{", "[")) else v for k, v in found.items()}


@every_kind
def test_metadata_of_every_kind_of_file_fit_the_schema(kind):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    model = FILES[kind]()
    jsonschema.validate(parsed(model), SCHEMA)
    assert {entry.key for entry in model.metadata_props} >= set(names.METADATA_KEYS)


@every_kind
def test_the_schema_describes_every_key(kind):
    known = {*names.METADATA_KEYS, *names.FORM_KEYS}
    assert set(SCHEMA["properties"]) == known
    assert set(parsed(FILES[kind]())) <= known
    assert all(
        "enum" in v or "const" in v or "description" in v for v in SCHEMA["properties"].values()
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("interface_version", "2"),
        ("runtimes", "some"),
        ("task", "cluster"),
        ("selftest_sha256", "0"),
        ("schema", {"features": []}),
    ],
)
def test_the_schema_refuses_others(key, value):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(parsed(sequence_file()) | {key: value}, SCHEMA)


@every_kind
def test_inputs_and_outputs_are_those_of_the_graph(kind):
    model = FILES[kind]()
    found = parsed(model)
    assert found["inputs"] == [value.name for value in model.graph.input]
    assert found["outputs"] == [value.name for value in model.graph.output]


@pytest.mark.slow
def test_the_profile_says_where_lengths_are_honoured():
    assert parsed(sequence_file())["runtimes"] == "any"
    assert parsed(sequence_file("ort"))["runtimes"] == "onnxruntime"


@pytest.mark.slow
def test_the_file_knows_its_selftest(tmp_path):
    report = export_onnx(sequence_model(), tmp_path / "model.onnx", FAST)
    assert [path.name for path in report.beside] == ["parity.json", "selftest.json"]
    digest = parsed(onnx.load(tmp_path / "model.onnx"))["selftest_sha256"]
    assert digest == hashlib.sha256((tmp_path / "selftest.json").read_bytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("cells", ["node", "plain"])
@pytest.mark.parametrize("changes", [{"task": "tag"}, {"task": "classify", "pooling": "last"}])
def test_any_host_can_run_the_streaming_selftest(tmp_path, cells, changes):
    path = tmp_path / "streaming.onnx"
    report = export_streaming(streaming_model(**changes), path, cells, FAST)
    assert [file.name for file in report.beside] == [
        "streaming.parity.json",
        "streaming.selftest.json",
    ]
    text = (tmp_path / "streaming.selftest.json").read_bytes()
    assert parsed(onnx.load(path))["selftest_sha256"] == hashlib.sha256(text).hexdigest()
    example, session = json.loads(text), onnxruntime.InferenceSession(path)
    assert {len(case["calls"]) for case in example["cases"]} == {4, 3 if cells == "node" else 6}
    for case in example["cases"]:
        state = {name: np.array(case[name], np.float32) for name in example["state"]}
        for call in case["calls"]:
            x = np.array(call["x"], np.float32)
            answer, *after = session.run(None, {"x": x, **state})
            state = dict(zip(example["state"], after, strict=True))
            assert (np.abs(answer - call["expected"]) <= example["tolerance"]).all()
        for name, after in example["state"].items():
            assert np.abs(state[name] - case[after]).max() <= example["state_tolerance"]


@pytest.mark.slow
def test_inspect_shows_what_a_host_needs(tmp_path):
    model = sequence_model(task="regress", output_size=1)
    model = model._replace(schema=Schema(("speed [km/h]", "b", "c"), (), ("force [N]",)))
    (tmp_path / "m.onnx").write_bytes(to_onnx(model).SerializeToString())
    found = inspect_onnx(tmp_path / "m.onnx")
    assert (found["profile"], found["runtimes"], found["interface_version"]) == (
        "portable",
        "any",
        "1",
    )
    assert found["schema"]["units"] == ["km/h", "", "", "N"]
    assert len(found["selftest_sha256"]) == 64
    (tmp_path / "s.onnx").write_bytes(streaming_file(task="tag").SerializeToString())
    state = inspect_onnx(tmp_path / "s.onnx")["state"]["tensors"]
    assert (state["h"]["from"], state["c"]["from"], state["c"]["initial"]) == (
        "h_next",
        "c_next",
        0,
    )
