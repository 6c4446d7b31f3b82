import json

import numpy as np
import pytest
import torch
from forecast_cases import FORECASTERS, forecast_file, forecast_model, inputs, make_forecaster
from marks import slow
from series_cases import do, hourly, several

from lstm_compile.errors import InputError
from lstm_compile.export import export_onnx, verify_onnx
from lstm_compile.export.runtime import ModelError, calendar, load
from lstm_compile.export.write.onnx import to_onnx
from lstm_compile.model.checkpoint import load_model, save_model
from lstm_compile.model.model import complete

RUNTIMES = ["eager", "onnxruntime", "openvino"]
every_config = pytest.mark.parametrize(
    "name", [name if name == "known, static" else slow(name) for name in FORECASTERS]
)


@every_config
def test_runtimes_agree_with_the_reference(tmp_path, name):
    (tmp_path / "m.onnx").write_bytes(forecast_file(name).SerializeToString())
    report = verify_onnx(forecast_model(**FORECASTERS[name]), tmp_path / "m.onnx", RUNTIMES)
    assert report.passed, "\n".join(report.lines())
    assert {row.runtime for row in report.rows} == {"metadata", *RUNTIMES}


@pytest.mark.slow
def test_compiled_chunks_agree_too(tmp_path):
    (tmp_path / "m.onnx").write_bytes(forecast_file("known, static").SerializeToString())
    model = forecast_model(**FORECASTERS["known, static"])
    assert verify_onnx(model, tmp_path / "m.onnx", ["compiled"]).passed


@every_config
def test_every_input_is_named_and_the_graph_is_portable(name):
    model = forecast_model(**FORECASTERS[name])
    graph = forecast_file(name).graph
    found = [value.name for value in graph.input]
    assert found == ["x", "lengths", *model.config.given]
    assert json.loads(load(forecast_file(name).SerializeToString()).metadata["inputs"]) == found
    operators = {node.op_type for node in graph.node}
    banned = {"Loop", "Scan", "GatherElements", "ReverseSequence", "CastLike", "If", "ScatterND"}
    assert not operators & banned
    for node in graph.node:
        assert node.op_type != "ConstantOfShape" or node.attribute
    (output,) = graph.output
    sizes = [size.dim_param or size.dim_value for size in output.type.tensor_type.shape.dim]
    steps = 1 if model.config.decoder == "recursive" else 5
    quantiles = [len(model.config.quantiles)] if model.config.quantiles else []
    assert (output.name, sizes) == ("forecast", ["batch", steps, 2, *quantiles])


@pytest.mark.parametrize(
    "changes",
    [
        slow({"context": 1, "horizon": 1, "targets": 1}),
        slow({"context": 1, "horizon": 1, "targets": 1, "hidden_size": 1, "known_size": 1}),
        slow({"context": 1, "horizon": 3, "targets": 1, "num_layers": 3, "bidirectional": True}),
        slow(
            {"context": 2, "horizon": 9, "quantiles": (0.5,), "transformer_layers": 1, "heads": 1}
        ),
    ],
)
def test_the_smallest_windows_are_exported(tmp_path, changes):
    model = forecast_model(**changes)
    (tmp_path / "m.onnx").write_bytes(to_onnx(model).SerializeToString())
    report = verify_onnx(model, tmp_path / "m.onnx", RUNTIMES)
    assert report.passed, "\n".join(report.lines())


@pytest.mark.slow
def test_the_graph_computes_nothing_from_weights_alone():
    graph = forecast_file("season, revin").graph
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        assert not set(node.input) <= constants, node.op_type


@every_config
def test_the_torch_free_runtime_forecasts_whole_horizons(name):
    model = forecast_model(**FORECASTERS[name])
    config = model.config
    x, lengths, given = inputs(config, [6, 3, 1, 0])
    with torch.no_grad():
        expected = complete(model.params, config, x, lengths, given=given).numpy()
    ready = load(forecast_file(name).SerializeToString())
    arrays = {n: v.numpy() for n, v in given._asdict().items() if v is not None}
    padded = ready.forecast_padded({"x": x.numpy(), "lengths": lengths.numpy(), **arrays})
    np.testing.assert_allclose(padded, expected, rtol=1e-5, atol=1e-5)
    if config.scaling == "series":
        return  # there the location is that of the histories themselves
    histories = [row[:length].numpy() for row, length in zip(x, lengths, strict=True)]
    static = arrays.get("static")
    found = ready.forecast(
        histories, arrays.get("known_future"), None if static is None else static.tolist(), 2
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert ready.forecast([]).shape == (0, *expected.shape[1:])


@pytest.mark.slow
def test_series_statistics_are_of_the_whole_history():
    ready = load(forecast_file("series").SerializeToString())
    history = np.random.default_rng(0).normal(5, 2, (40, 3)).astype(np.float32)
    location, scale = history.mean(0), history.std(0)
    inputs = {"x": history[None, -6:], "lengths": np.array([6])}
    inputs |= {"series_location": location[None], "series_scale": scale[None]}
    expected = ready.forecast_padded(inputs)
    np.testing.assert_allclose(ready.forecast([history]), expected, atol=1e-5)


def test_the_runtime_refuses_what_does_not_fit():
    ready = load(forecast_file("known, static").SerializeToString())
    history, known = np.zeros((4, 5), np.float32), np.zeros((1, 5, 3), np.float32)
    for args, message in (
        (
            ([history],),
            "known_future is missing; the model's inputs are x, lengths, known_future, st",
        ),
        (([history], known[:, :4], [[0, 0]]), r"known_future must be numbers of shape \(1, 5, 3\)"),
        (([history], known * np.nan, [[0, 0]]), "known_future must be finite"),
        (([history], known, [["category_1", "nowhere"]]), "row 0: unknown category 'nowhere'; kno"),
        (([history], known, [[0, 5]]), "row 0: unknown category 5"),
        (([history], known, [[0]]), "static must be 1 rows of 2 categories"),
        (([history[:, :4]], known, [[0, 0]]), "4 features, but the model was trained on 5"),
        (([history * np.nan], known, [[0, 0]]), "expected a finite float32 number, found nan"),
        (([history], known, [[0, 0]], 0), "batch_size must be a whole number of at least 1, got 0"),
        (([history], [[[0.0]], [[0.0, 1.0]]], [[0, 0]]), "known_future: not one array"),
        (([history], known, 3), "static must be a list, got 3"),
        (([history], known, ["ab"]), "static, row 0 must be a list, got 'ab'"),
        (([history], known, [[True, 0]]), "row 0: unknown category True"),
    ):
        with pytest.raises(ModelError, match=message):
            ready.forecast(*args)
    codes = ready.forecast([history], known, [[1, 4]])
    names = ready.forecast([history], known, [["category_1", "category_4"]])
    np.testing.assert_array_equal(codes, names)
    with pytest.raises(ModelError, match=r"task of this file is forecast: call model.forecast"):
        ready.predict([history])
    inputs = {"x": history[None], "lengths": np.array([4]), "known_future": known}
    inputs["static"] = np.array([[1, 4]])
    np.testing.assert_array_equal(ready.forecast_padded(inputs), codes)
    for change, message in (
        ({"more": known}, "inputs must be named 'x', 'lengths', 'known_future', 'static', found"),
        ({"x": history}, r"x must be numbers \(batch, time, 5\), found float32 \(4, 5\)"),
        ({"x": history[None].astype(float) + 1e39}, "x must be finite float32 numbers"),
        ({"lengths": np.array([4.0])}, r"lengths must be whole numbers \(1,\), found float64"),
        ({"lengths": np.array([5])}, r"lengths must be numbers in \[0, 4\], found 5 in row 0"),
        ({"known_future": known[:, :4]}, r"known_future must be numbers of shape \(1, 5, 3\)"),
        ({"static": np.array([[-1, 0]])}, "static must be codes below"),
        ({"static": [[0.0, 0.0]]}, "static must be codes"),
    ):
        with pytest.raises(ModelError, match=message):
            ready.forecast_padded({**inputs, **change})


def test_a_number_is_the_category_that_is_written_like_it():
    ready = load(forecast_file("known, static").SerializeToString())
    history, known = np.ones((4, 5), np.float32), np.zeros((1, 5, 3), np.float32)
    expected = ready.forecast([history], known, [[0, 0]])
    assert not np.array_equal(ready.forecast([history], known, [[1, 0]]), expected)
    first, second = ready.schema.series["categories"]
    numbers = [str(code + 1) for code in range(len(first))]
    ready.schema.series["categories"] = [numbers, second]
    for one in (1, np.int64(1), "1"):
        np.testing.assert_array_equal(ready.forecast([history], known, [[one, 0]]), expected)
    for doubtful in (0, -1, len(first) + 1, 1.0, True, None):
        with pytest.raises(ModelError, match=f"row 0: unknown category {doubtful}; known are '1'"):
            ready.forecast([history], known, [[doubtful, 0]])


@pytest.mark.slow
def test_the_runtime_refuses_what_is_no_input():
    with pytest.raises(
        ModelError, match="static is no input of this model; its inputs are x, lengths"
    ):
        load(forecast_file("season, revin").SerializeToString()).forecast(
            [np.zeros((4, 3))], static=[[0]]
        )


def test_calendar_columns_are_those_of_training(tmp_path):
    outcome = do(hourly(tmp_path / "t.csv", 600), tmp_path / "run")
    table = outcome.model.schema.series
    stamps = np.array(["2020-01-01T05", "2020-01-04T17"], "M8[s]")
    from lstm_compile.data.series.clock import calendar_columns

    np.testing.assert_array_equal(
        calendar(stamps, table.calendar), calendar_columns(stamps, table.calendar)
    )
    assert calendar(["2020-01-01T05"], []).shape == (1, 0)


@pytest.mark.slow
def test_real_forecasts_agree_within_1e5_of_the_targets_spread(tmp_path):
    """At contexts shorter and longer than trained, in raw units."""
    model = {"scaling": "revin", "log1p": True, "season": 4, "context": 12}
    outcome = do(
        several(tmp_path / "t.csv", (200, 150)),
        tmp_path / "run",
        model,
        table={"static": ("kind",)},
    )
    export_onnx(tmp_path / "run", tmp_path / "run" / "model.onnx", ["onnxruntime"])
    ready, loaded = load(tmp_path / "run" / "model.onnx"), load_model(tmp_path / "run")
    spread = loaded.training["target_deviation"][0]
    from series_cases import read

    table = read(str(tmp_path / "t.csv"), static=("kind",))
    known = loaded.config.known_size
    for time in (1, 3, 12, 40):
        x = torch.from_numpy(np.stack([table.x[100 - time : 100], table.x[300 - time : 300]]))
        lengths = torch.tensor([time, time])
        future = torch.from_numpy(np.stack([table.x[100:103, -known:], table.x[300:303, -known:]]))
        codes = torch.tensor([[0], [1]])
        from lstm_compile.model.batch import Given

        with torch.no_grad():
            given = Given(future if known else None, codes)
            expected = complete(loaded.params, loaded.config, x, lengths, given=given).numpy()
        arrays = {"known_future": future.numpy()} if known else {}
        found = ready.forecast_padded(
            {"x": x.numpy(), "lengths": lengths.numpy(), "static": codes.numpy(), **arrays}
        )
        assert np.abs(found - expected).max() <= 1e-5 * spread
    assert outcome.model.config.season == 4


@pytest.mark.slow
def test_the_selftest_has_every_input(tmp_path):
    model = forecast_model(**FORECASTERS["known, static"])
    export_onnx(model, tmp_path / "m.onnx", ["onnxruntime"])
    found = json.loads((tmp_path / "selftest.json").read_text())
    assert found["inputs"] == ["x", "lengths", "known_future", "static"]
    ready = load(tmp_path / "m.onnx")
    allowed = np.array(found["tolerance"])
    for case in found["cases"]:
        given = {name: np.array(case[name]) for name in found["inputs"]}
        answers = ready.forecast_padded(given)
        assert (np.abs(answers - np.array(case["expected"])) <= allowed).all()


def test_a_file_of_other_inputs_is_refused(tmp_path):
    (tmp_path / "m.onnx").write_bytes(forecast_file("known, static").SerializeToString())
    with pytest.raises(InputError, match=r"inputs is .*, the model's is .*; name the file of this"):
        verify_onnx(forecast_model(past_size=3), tmp_path / "m.onnx", ["onnxruntime"])


@every_config
def test_a_saved_model_is_the_same(tmp_path, name):
    model = forecast_model(**FORECASTERS[name])
    save_model(tmp_path / "m.safetensors", *model)
    again = load_model(tmp_path / "m.safetensors")
    assert (again.config, again.schema) == (model.config, model.schema)
    assert all(value.equal(again.params[key]) for key, value in model.params.items())


def test_an_untrained_model_has_names(tmp_path):
    params, config = make_forecaster(**FORECASTERS["known, static"])
    save_model(tmp_path / "m.safetensors", params, config)
    schema = load_model(tmp_path / "m.safetensors").schema
    assert schema.targets == ("target_0", "target_1")
    assert schema.series.known == ("feature_2", "feature_3", "feature_4")
    assert schema.series.categories[0] == ("category_0", "category_1")
