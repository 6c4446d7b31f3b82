"""Columns of categories: codes in the table, vectors in the model, words in `runtime.py`."""

import csv
import json

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from lstm_compile import ModelConfig, init_params
from lstm_compile.cli.app import app
from lstm_compile.data import TableOptions, read_sequences
from lstm_compile.data.schema import Categories, Schema
from lstm_compile.data.series.reader import read_series
from lstm_compile.data.series.windows import windows_of
from lstm_compile.errors import InputError
from lstm_compile.evaluation.baselines import features_of
from lstm_compile.export.runtime import ModelError, load, open_streams
from lstm_compile.export.write.onnx import to_onnx
from lstm_compile.export.write.streaming import to_streaming
from lstm_compile.model.batch import Given
from lstm_compile.model.checkpoint import Model, load_model, numbered_schema, save_model
from lstm_compile.model.embeddings import codes_kept, with_others
from lstm_compile.model.model import forward, predict
from lstm_compile.model.scaling import Scaler
from lstm_compile.training.augment import add_noise, drop_features

SKY = TableOptions(features=("u",), categories=("sky", "wet"))
SIZES = {"input_size": 3, "output_size": 2, "hidden_size": 4, "num_layers": 1}
CODED = {**SIZES, "task": "classify", "category_sizes": (4, 2), "has_other": True}


def table(count=30, seed=0):
    """Sequences whose label is that of their usual sky."""
    random = np.random.default_rng(seed)
    skies, rows = np.array(["sunny", "rain", "fog"]), []
    for number in range(count):
        for step in range(int(random.integers(3, 8))):
            usual = number % 3 if random.random() < 0.8 else int(random.integers(3))
            wet = bool(random.integers(2))
            rows.append((f"s{number}", step, random.normal(), skies[usual], wet, "abc"[number % 3]))
    return pd.DataFrame(rows, columns=["id", "time", "u", "sky", "wet", "label"])


def save(folder, frame, name="t.csv"):
    path = folder / name
    (frame.to_csv if path.suffix == ".csv" else frame.to_parquet)(path, index=False)
    return str(path)


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
@pytest.mark.parametrize("other", [False, True])
def test_cells_become_codes_in_the_order_of_the_names(tmp_path, name, other):
    frame = table()
    options = TableOptions(
        features=("u",), categories=("sky", "wet"), unknown="other" if other else None
    )
    shuffled = frame.sample(frac=1, random_state=1)
    found = read_sequences(save(tmp_path, shuffled, name), table=options)
    names = [[each.lower() for each in column] for column in found.categories.names]
    assert names == [["fog", "rain", "sunny"], ["false", "true"]]
    assert found.features == ("u", "sky", "wet")
    order = list(dict.fromkeys(shuffled["id"]))
    whole = pd.concat([frame[frame["id"] == name].sort_values("time") for name in order])
    sky = [names[0].index(value) + other for value in whole["sky"]]
    wet = [int(value) + other for value in whole["wet"]]
    assert found.x[:, 1].tolist() == sky
    assert found.x[:, 2].tolist() == wet
    np.testing.assert_allclose(found.x[:, 0], whole["u"], rtol=1e-6)


def test_later_data_take_the_codes_of_training(tmp_path):
    trained = read_sequences(save(tmp_path, table()), table=SKY)
    few = table()[lambda rows: rows["sky"] == "sunny"]
    found = read_sequences(save(tmp_path, few, "f.parquet"), schema=trained.schema, table=SKY)
    assert set(found.x[:, 1].tolist()) == {2.0}
    new = table()
    new.loc[4, "sky"] = "fogg"
    path = save(tmp_path, new, "n.csv")
    message = "row 5, column 'sky': found 'fogg', expected one of .*: fog, rain, sunny; did you mea"
    with pytest.raises(InputError, match=message):
        read_sequences(path, schema=trained.schema, table=SKY)
    others = TableOptions(features=("u",), categories=("sky", "wet"), unknown="other")
    trained = read_sequences(save(tmp_path, table()), table=others)
    assert read_sequences(path, schema=trained.schema, table=others).x[4, 1] == 0


def test_an_empty_cell_is_an_error_or_a_category(tmp_path):
    frame = table()
    frame.loc[2, "sky"] = None
    path = save(tmp_path, frame)
    with pytest.raises(InputError, match=r"row 3, column 'sky': found an empty cell, expected a c"):
        read_sequences(path, table=SKY)
    options = TableOptions(features=("u",), categories=("sky",), missing="forward")
    assert read_sequences(path, table=options).categories.names[0] == ("", "fog", "rain", "sunny")


def test_nan_in_a_column_of_numbers_is_an_empty_cell_of_a_category(tmp_path):
    frame = table()
    frame["sky"] = frame["sky"].map({"fog": 1.0, "rain": 2.0, "sunny": 3.0})
    frame.loc[2, "sky"] = np.nan
    path = save(tmp_path, frame, "t.parquet")
    with pytest.raises(InputError, match=r"row 3, column 'sky': found an empty cell, expected a c"):
        read_sequences(path, table=SKY)
    options = TableOptions(features=("u",), categories=("sky",), missing="zero")
    found = read_sequences(path, table=options)
    assert found.categories.names[0] == ("", "1.0", "2.0", "3.0")
    expected = frame["sky"].fillna(0).tolist()
    assert found.x[:, 1].tolist() == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"features": ("u", "sky")},
            "choose columns with --features, columns of words with --cate",
        ),
        ({"categories": ("sky", "u"), "features": ("u",)}, "asked for as --features and as --cate"),
        ({"categories": ("cloud",)}, "no column 'cloud' for --categories"),
    ],
)
def test_wrong_columns_are_refused(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        read_sequences(save(tmp_path, table()), table=TableOptions(**options))


def test_options_that_do_not_go_together():
    with pytest.raises(InputError, match="unknown other is for categories; name columns of them"):
        TableOptions(unknown="other")
    with pytest.raises(InputError, match="text replaces features"):
        TableOptions(text="a", categories=("b",))


words = st.lists(st.text(), min_size=1, max_size=4, unique=True).map(tuple)


@given(st.lists(words, min_size=1, max_size=3), st.booleans())
def test_categories_survive_json(names, other):
    features = tuple(f"f{number}" for number in range(len(names) + 1))
    schema = Schema(features, ("a",), (), categories=Categories(tuple(names), other))
    assert Schema.from_json(schema.to_json()) == schema
    assert schema.category_columns == features[1:]
    assert schema.category_sizes == tuple(len(each) + other for each in names)


def coded_model(**changes):
    config = ModelConfig(**{**CODED, **changes})
    return Model(init_params(config, 0), config, numbered_schema(config), {})


def coded_rows(batch=4, time=6):
    random = np.random.default_rng(0)
    x = random.standard_normal((batch, time, 3)).astype(np.float32)
    x[..., 1], x[..., 2] = random.integers(0, 4, (2, batch, time)) % np.array([4, 2])[:, None, None]
    return torch.from_numpy(x)


def test_the_network_reads_scaled_numbers_and_the_vectors_of_codes():
    params, config, *_ = coded_model()
    params["scaler.shift"], params["scaler.scale"] = torch.tensor([[3.0, 0, 0], [2.0, 1, 1]])
    x = coded_rows()
    tables = [params[f"categories.{index}.weight"] for index in range(2)]
    assert [tuple(each.shape) for each in tables] == [(4, 2), (2, 1)]
    vectors = [each[x[..., 1 + index].long()] for index, each in enumerate(tables)]
    plain = ModelConfig(**{**SIZES, "task": "classify", "input_size": 4, "scaling": "none"})
    expected = predict(params, plain, torch.cat([(x[..., :1] - 3) / 2, *vectors], -1))
    torch.testing.assert_close(predict(params, config, x), expected)


def test_padding_may_hold_any_number():
    params, config, *_ = coded_model()
    x, lengths = coded_rows(), torch.tensor([6, 3, 1, 0])
    clean = predict(params, config, x, lengths)
    x[1, 3:], x[2, 1:], x[3] = torch.nan, 1e9, -7
    assert predict(params, config, x, lengths).equal(clean)


def test_training_learns_the_vector_of_others():
    _, config, *_ = coded_model()
    torch.manual_seed(0)
    codes = with_others(torch.ones(4000, 5, 2), config)
    assert bool((codes == codes[:, :1]).all())  # whole sequences
    assert 0.03 < float((codes == 0).float().mean()) < 0.07
    static = with_others(torch.ones(4000, 2, dtype=torch.int64), config)
    assert 0.03 < float((static == 0).float().mean()) < 0.07
    sure = coded_model(has_other=False).config
    assert bool((with_others(torch.ones(400, 5, 2), sure) == 1).all())


def test_scalers_and_augmentation_leave_codes_alone(tmp_path):
    config = coded_model().config
    scaler = codes_kept(Scaler(torch.tensor([5.0, 6, 7]), torch.tensor([2.0, 3, 4])), config, 0.0)
    assert (scaler.shift.tolist(), scaler.scale.tolist()) == ([5.0, 0.0, 0.0], [2.0, 0.0, 0.0])
    data = read_sequences(save(tmp_path, table()), table=SKY)
    batch = data.gather(torch.arange(5))
    seed = torch.Generator().manual_seed(0)
    for changed in (add_noise(batch, 1.0, scaler, seed), drop_features(batch, 1.0, scaler, seed)):
        assert changed.x[..., 1:].equal(batch.x[..., 1:])
        assert not changed.x[..., 0].equal(batch.x[..., 0])


def test_baselines_see_a_column_for_each_category(tmp_path):
    data = read_sequences(save(tmp_path, table()), table=SKY)
    found = features_of("ridge on summaries", data)
    assert found.shape == (30, 4 * (1 + 3 + 2))
    shares = [
        float((data.select(torch.tensor([0])).x[:, 1] == code).double().mean()) for code in range(3)
    ]
    assert found[0, 1:4].tolist() == pytest.approx(shares)


def test_files_hold_the_categories(tmp_path):
    model = coded_model()
    save_model(tmp_path / "m.safetensors", *model)
    again = load_model(tmp_path / "m.safetensors")
    assert (again.config, again.schema) == (model.config, model.schema)
    other = coded_model(category_sizes=(3, 2))
    with pytest.raises(InputError, match=r"columns of \(4, 2\) categories, the config of \(3, 2\)"):
        save_model(tmp_path / "m.safetensors", other.params, other.config, model.schema)


@pytest.mark.slow
def test_the_exported_file_takes_codes_of_words():
    model = coded_model(bidirectional=False, pooling="last")
    data = to_onnx(model).SerializeToString()
    found, streams = load(data), open_streams(to_streaming(model).SerializeToString())
    words = [["category_2", "category_0"], ["never seen", "category_0"]]
    codes = found.codes(words)
    assert codes.tolist() == [[3.0, 1.0], [0.0, 1.0]]
    x = np.concatenate([np.ones((2, 1)), codes], 1).astype(np.float32)
    expected = predict(model.params, model.config, torch.from_numpy(x[None])).numpy()
    np.testing.assert_allclose(found.predict([x]), expected, atol=1e-6)
    np.testing.assert_allclose(streams.push(["a"], x[None]), expected, atol=1e-6)
    assert min(found.warm_up(2, 3), streams.warm_up(2, 1)) > 0
    for wrong in (4.0, -1.0, 0.5):
        x[1, 1] = wrong
        for ask in (lambda: found.predict([x]), lambda: streams.push(["a"], x[None])):
            with pytest.raises(
                ModelError, match="'feature_1' must be codes from 0 to 3, which `co"
            ):
                ask()
    for wrong in ([["category_0"]], 3, "ab", [[1, 2]], [[True, "category_0"]]):
        with pytest.raises(ModelError):
            found.codes(wrong)
    sure = load(to_onnx(coded_model(has_other=False)).SerializeToString())
    with pytest.raises(ModelError, match="step 0: unknown category 'never seen'; known are"):
        sure.codes([["never seen", "category_0"]])


# ---- series


def days(folder, name="days.csv", **changes):
    """Three shops whose sales follow the weather of the day."""
    rows, random = [], np.random.default_rng(0)
    for shop in range(3):
        for day in range(90):
            sky = ["sunny", "rain", "fog"][day // 3 % 3]
            stamp = pd.Timestamp("2024-01-01") + pd.Timedelta(days=day)
            sales = 10 * shop + len(sky) + random.normal(0, 0.1)
            rows.append((f"shop {shop}", stamp, sky, f"region {shop % 2}", sales))
    frame = pd.DataFrame(rows, columns=["shop", "day", "sky", "region", "sales"])
    for (row, column), value in changes.pop("cells", {}).items():
        frame.loc[[*row] if isinstance(row, range) else row, column] = value
    return save(folder, frame, name)


WEATHER = {
    "id": "shop", "time": "day", "target": ("sales",), "categories": ("sky",),
    "calendar": ("none",),
}  # fmt: skip


def test_series_carry_codes_behind_their_numbers(tmp_path):
    options = TableOptions(**WEATHER, gaps="indicate")
    found = read_series(days(tmp_path), options)
    assert found.schema.features == ("sales", "gap", "sky")
    assert found.schema.categories.names == (("fog", "rain", "sunny"),)
    expected = [
        ["fog", "rain", "sunny"].index(["sunny", "rain", "fog"][d // 3 % 3]) for d in range(90)
    ]
    assert found.x[:90, 2].tolist() == expected


def test_empty_cells_of_series_are_gaps(tmp_path):
    path = days(tmp_path, cells={(0, "sky"): None, (7, "sky"): None})
    told = r"row 1, column 'sky': found an empty cell, expected a category; .* with --gaps forward$"
    with pytest.raises(InputError, match=told):
        read_series(path, TableOptions(**WEATHER))
    found = read_series(path, TableOptions(**WEATHER, gaps="linear"))
    assert found.schema.categories.names == (("fog", "rain", "sunny"),)
    assert found.x[7, 1] == found.x[6, 1]
    counts = np.bincount(found.x[1:, 1].astype(int))
    assert counts[int(found.x[0, 1])] == counts.max()


def test_series_refuse_what_categories_cannot_do(tmp_path):
    path = days(tmp_path)
    with pytest.raises(InputError, match="categories have no mean; take --duplicates last"):
        read_series(path, TableOptions(**WEATHER, duplicates="mean"))
    with pytest.raises(InputError, match=r"with --features \(numbers\) or --categories"):
        read_series(path, TableOptions(**{**WEATHER, "categories": (), "static": ("sky",)}))
    with pytest.raises(InputError, match=r"'sky': found 'sunny', .* column of 0 and 1 for each w"):
        read_series(path, TableOptions(**{**WEATHER, "categories": (), "known": ("sky",)}))
    with pytest.raises(InputError, match=r"'sky': found 'sunny', .* name another column with --ta"):
        read_series(path, TableOptions(**{**WEATHER, "categories": (), "target": ("sky",)}))
    with pytest.raises(InputError, match="recursive takes no past covariates and categories"):
        ModelConfig(
            task="forecast", input_size=2, output_size=1, category_sizes=(3,), decoder="recursive"
        )


def test_a_forecast_depends_on_its_categories(tmp_path):
    found = read_series(
        days(tmp_path), TableOptions(**WEATHER, static=("region",), unknown="other")
    )
    config = ModelConfig(
        task="forecast", input_size=2, output_size=1, category_sizes=(4,), static_sizes=(3,),
        has_other=True, context=8, horizon=2, hidden_size=4, num_layers=1, bidirectional=False,
        pooling="last",
    )  # fmt: skip
    batch = windows_of(found, config).gather(torch.arange(4))
    params = init_params(config, 0)
    answer, _ = forward(params, config, batch.x, batch.lengths, given=batch.given)
    changed = batch.x.clone()
    changed[..., 1] = (changed[..., 1] + 1) % 4
    other, _ = forward(params, config, changed, batch.lengths, given=batch.given)
    assert bool((answer != other).any(1).all())
    moved = Given(static=torch.zeros_like(batch.given.static))
    assert not forward(params, config, batch.x, batch.lengths, given=moved)[0].equal(answer)


def test_a_new_static_is_refused_or_another_one(tmp_path):
    options = TableOptions(**WEATHER, static=("region",))
    new = days(tmp_path, "new.csv", cells={(range(90, 180), "region"): "region 9"})
    trained = read_series(days(tmp_path), options)
    with pytest.raises(InputError, match=r"found 'region 9', expected .*with --unknown other"):
        read_series(new, options, schema=trained.schema)
    trained = read_series(
        days(tmp_path), TableOptions(**WEATHER, static=("region",), unknown="other")
    )
    assert trained.statics.ravel().tolist() == [1, 2, 1]
    found = read_series(new, trained.roles.options, schema=trained.schema)
    assert found.statics.ravel().tolist() == [1, 0, 1]


@pytest.mark.slow
def test_int8_files_keep_the_vectors_of_categories(tmp_path):
    path, run = save(tmp_path, table()), tmp_path / "run"
    named = ["--features", "u", "--categories", "sky,wet", "--unknown", "other"]
    ok("train", path, *named, "--hidden-size", 6, "--epochs", 2, "--output", run)
    ok("export", run, "--onnx", "--profile", "ort", "--int8")
    ok("verify", run, "--onnx", run / "model-int8.onnx")
    new = table()
    new.loc[0, "sky"] = "snow"
    new = save(tmp_path, new, "new.csv")
    answers = []
    for model in (run, run / "model-int8.onnx"):
        ok("predict", model, new, "--output", tmp_path / "p.csv")
        answers.append(pd.read_csv(tmp_path / "p.csv").filter(like="probability").to_numpy())
    assert np.abs(answers[0] - answers[1]).max() < 0.02
    assert np.ptp(answers[0], axis=0).min() > 0.001


def ok(*words):
    found = CliRunner().invoke(app, [str(word) for word in words])
    assert found.exit_code == 0, found.output
    return found.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sequences", "series"])
def test_the_command_line_from_words_to_answers(tmp_path, kind):
    run, onnx = tmp_path / "run", tmp_path / "model.onnx"
    small = ["--hidden-size", 6, "--num-layers", 1, "--epochs", 2, "--unknown", "other"]
    if kind == "sequences":
        path, new = save(tmp_path, table()), table()
        new.loc[4, "sky"] = "hail"
        later = save(tmp_path, new, "later.parquet")
        words = ["--target", "label", "--features", "u", "--categories", "sky,wet"]
    else:
        path, later = days(tmp_path), days(tmp_path, "later.csv", cells={(89, "sky"): "hail"})
        words = ["--task", "forecast", "--id", "shop", "--target", "sales", "--categories", "sky"]
        words += ["--static", "region", "--context", 8, "--horizon", 2]
    shown = ok("train", path, *words, *small, "--output", run)
    assert "categories: sky" in " ".join(shown.split())
    ok("export", run, "--onnx", "--output", onnx)
    answers = []
    for model in (run, onnx):
        ok("predict", model, later, "--output", tmp_path / "out.csv")
        rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
        answers.append([float(value) for value in (list(row.values())[-1] for row in rows)])
    np.testing.assert_allclose(*answers, rtol=1e-4)
    figures = [
        json.loads(ok("evaluate", model, path, "--json"))["metrics"] for model in (run, onnx)
    ]
    assert figures[0] == pytest.approx(figures[1], abs=1e-3)
