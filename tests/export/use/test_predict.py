import csv
import json
import os
import shutil
import subprocess
import sys
from functools import cache

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from cli_cases import invoke, invoke_small
from marks import slow

from lstm_compile.config import ModelConfig
from lstm_compile.data.schema import Schema
from lstm_compile.errors import InputError
from lstm_compile.export.use.predict_file import (
    Predictions,
    columns,
    predict_file,
    write_predictions,
)
from lstm_compile.export.write.onnx import to_onnx
from lstm_compile.model.checkpoint import Model, load_model, save_model
from lstm_compile.model.model import init_params, predict

FEATURES = ("a", "b [V]")
CLASSES = ("no", "yes", "may be, or not")


def make_model(task, **training):
    outputs = 3 if task == "classify" else 2
    config = ModelConfig(task=task, input_size=2, output_size=outputs, hidden_size=4)
    params = init_params(config, 1)
    params["scaler.shift"] += torch.tensor([3.0, -1.0])
    if task == "classify":
        return Model(params, config, Schema(FEATURES, CLASSES, ()), training)
    params["target_scaler.shift"] += 300.0
    params["target_scaler.scale"] *= 20.0
    return Model(params, config, Schema(FEATURES, (), ("speed [km/h]", "heat")), training)


@pytest.fixture(scope="module", params=["classify", slow("regress")])
def run(request, tmp_path_factory):
    """A run folder with its ONNX file, untrained."""
    return make_run(tmp_path_factory.mktemp("run"), request.param)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"), "classify")


def make_run(folder, task):
    save_model(folder / "model.safetensors", *make_model(task))
    (folder / "model.onnx").write_bytes(exported(task))
    return folder


@cache
def exported(task):
    return to_onnx(make_model(task)).SerializeToString()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sequences(count=40, seed=0):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 12, count)
    return [generator.standard_normal((n, 2)).astype(np.float32) * 2 for n in lengths]


def write_npz(path, rows, **more):
    x, lengths = np.concatenate(rows), np.array([len(row) for row in rows])
    np.savez(path, x=x, lengths=lengths, **more)
    return path


def write_csv(path, rows, header=("id", "time", "a", "b [V]"), swap=False):
    """A long table with the rows of all sequences interleaved."""
    lines = []
    for number, row in enumerate(rows):
        for time, (a, b) in enumerate(row.tolist()):
            lines.append((time, [f"s{number}", time, *((b, a) if swap else (a, b))]))
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *(line for _, line in sorted(lines))])
    return path


def write_ts(path, rows):
    head = ["@dimensions 2", "@classLabel true x y", "@data"]
    series = [[",".join(map(str, column)) for column in row.T.tolist()] for row in rows]
    path.write_text("\n".join([*head, *(":".join([*columns, "x"]) for columns in series)]))
    return path


def read(path):
    module = pyarrow.csv.read_csv if path.suffix == ".csv" else pyarrow.parquet.read_table
    return module(path).to_pydict()


def expected(folder, rows):
    params, config, _, _ = load_model(folder)
    answers = [
        predict(params, config, torch.from_numpy(row)[None], torch.tensor([len(row)]))
        for row in rows
    ]
    return torch.cat(answers).detach().numpy()


def numbers(found):
    """All columns but the first and `prediction`, (rows, outputs)."""
    names = [name for name in found if name != "prediction"][1:]
    return np.array([found[name] for name in names]).T


# ---- what is written


@pytest.mark.parametrize("suffix", ["csv", slow("parquet")])
@pytest.mark.parametrize("model", ["", "model.safetensors", "model.onnx"])
def test_every_sequence_is_answered_in_the_order_of_the_file(run, here, model, suffix):
    rows = sequences()
    data = write_npz(here / "data.npz", rows)
    result = invoke("predict", run / model, data, "--output", f"out.{suffix}")
    assert (result.exit_code, result.stderr) == (0, "")
    found = read(here / f"out.{suffix}")
    answers = expected(run, rows)
    if len(answers[0]) == 3:
        names = [f"probability_{name}" for name in CLASSES]
        assert list(found) == ["sequence", "prediction", *names]
        assert found["prediction"] == [CLASSES[code] for code in answers.argmax(1)]
    else:
        assert list(found) == ["sequence", "speed [km/h]", "heat"]
    assert found["sequence"] == list(range(40))
    np.testing.assert_allclose(numbers(found), answers, atol=1e-5, rtol=1e-6)


def test_a_run_and_its_onnx_file_agree(run, here):
    data = write_npz(here / "data.npz", sequences(300))
    ours, theirs = (predict_file(run / name, str(data)) for name in ("", "model.onnx"))
    assert np.abs(ours.values - theirs.values).max() <= 1e-5 * max(1, np.abs(ours.values).max())
    assert (ours.task, ours.schema) == (theirs.task, theirs.schema)


@pytest.mark.parametrize("model", ["", "model.onnx"])
def test_a_long_table_keeps_its_ids_and_finds_its_columns_by_name(run, here, model):
    rows = sequences()
    plain = write_csv(here / "plain.csv", rows)
    swapped = write_csv(here / "swap.csv", rows, ("id", "time", "b [V]", "a"), swap=True)
    for data in (plain, swapped):
        result = invoke("predict", run / model, data, "--output", "out.csv")
        assert (result.exit_code, result.stderr) == (0, "")
        found = read(here / "out.csv")
        assert next(iter(found)) == "id"
        order = [int(name[1:]) for name in found["id"]]
        assert sorted(order) == list(range(40))
        answers = expected(run, [rows[number] for number in order])
        np.testing.assert_allclose(numbers(found), answers, atol=1e-5, rtol=1e-6)


def test_flags_name_the_columns_of_a_long_table(classifier, here):
    rows = sequences(5)
    write_csv(here / "in.csv", rows, ("who", "when", "a", "b [V]"))
    flags = ["--id", "who", "--time", "when", "--features", "a,b [V]"]
    result = invoke("predict", classifier, "in.csv", "--output", "out.csv", *flags)
    assert result.exit_code == 0, result.output
    assert read(here / "out.csv")["who"] == ["s0", "s1", "s2", "s3", "s4"]


@pytest.mark.slow
def test_the_columns_of_training_are_remembered(here):
    training = {"table": {"id": "who", "time": "when", "features": FEATURES, "missing": "zero"}}
    folder = here / "run"
    folder.mkdir()
    model = make_model("classify", **training)
    save_model(folder / "model.safetensors", *model)
    (folder / "model.onnx").write_bytes(to_onnx(model).SerializeToString())
    rows = sequences(5)
    rows[2][0, 1] = np.nan
    write_csv(here / "in.csv", rows, ("who", "when", "a", "b [V]"))
    for name in ("", "model.onnx"):
        result = invoke("predict", folder / name, "in.csv", "--output", "out.csv")
        assert result.exit_code == 0, result.output
    rows[2][0, 1] = 0.0
    found = read(here / "out.csv")
    np.testing.assert_allclose(numbers(found), expected(folder, rows), atol=1e-5)


@pytest.mark.parametrize("model", ["", "model.onnx"])
def test_labels_in_the_data_are_not_read(classifier, here, model):
    rows = sequences(6)
    bare = write_npz(here / "bare.npz", rows)
    strange = write_npz(here / "strange.npz", rows, y=np.array([*"uvwxyz"]))
    damaged = write_npz(here / "damaged.npz", rows, y=np.full((2, 2), np.nan))
    text = write_ts(here / "text.ts", rows)
    first = predict_file(classifier / model, str(bare)).values
    for other in (strange, damaged, text):
        np.testing.assert_array_equal(predict_file(classifier / model, str(other)).values, first)


def test_the_test_part_of_a_bundled_data_set_is_taken(here):
    result = invoke(
        *("train", "japanese-vowels", "--epochs", 1, "--hidden-size", 4, "--num-layers", 1),
        *("--output", "run"),
    )
    assert result.exit_code == 0, result.output
    result = invoke("predict", "run", "japanese-vowels", "--output", "out.parquet")
    assert result.exit_code == 0
    assert len(read(here / "out.parquet")["sequence"]) == 370


def test_an_output_that_is_there_is_replaced_whole_or_not_at_all(classifier, here, monkeypatch):
    data = write_npz(here / "data.npz", sequences(3))
    (here / "out.csv").write_text("before")
    monkeypatch.setattr("os.replace", fail)
    assert invoke("predict", classifier, data, "--output", "out.csv").exit_code == 2
    assert (here / "out.csv").read_text() == "before"
    assert sorted(os.listdir(here)) == ["data.npz", "out.csv"]
    monkeypatch.undo()
    os.chdir(here)
    assert invoke("predict", classifier, data, "--output", "out.csv").exit_code == 0
    assert len(read(here / "out.csv")["sequence"]) == 3


def fail(*args):
    raise OSError(28, "No space left on device")


def test_a_target_called_like_the_id_column_keeps_its_name():
    values = np.ones((2, 2), np.float32)
    schema = Schema(("a",), (), ("id", "sequence"))
    assert list(columns(Predictions("regress", schema, ["p", "q"], values))) == [
        *("id_", "id", "sequence")
    ]
    assert next(iter(columns(Predictions("regress", schema, None, values)))) == "sequence_"


def test_write_predictions_names_its_columns(here):
    schema = Schema(("a",), (), ("speed",))
    found = Predictions("regress", schema, ["p"], np.array([[0.1]], np.float32))
    assert write_predictions(here / "out.CSV", found) == ["id", "speed"]
    assert (here / "out.CSV").read_text().splitlines()[1] == '"p",0.1'


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("kind", [pa.string_view(), pa.dictionary(pa.int8(), pa.string_view())])
def test_ids_of_types_that_no_file_has_are_written_as_text(here, suffix, kind):
    schema, values = Schema(("a",), (), ("speed",)), np.ones((1, 1), np.float32)
    found = Predictions("regress", schema, ["p"], values, id_column=("id", kind))
    write_predictions(here / f"out.{suffix}", found)
    read = pyarrow.csv.read_csv if suffix == "csv" else pyarrow.parquet.read_table
    assert read(here / f"out.{suffix}")["id"].to_pylist() == ["p"]


# ---- what is printed


def test_what_predict_prints(classifier, here):
    data = write_npz(here / "data.npz", sequences(7))
    result = invoke("predict", classifier / "model.onnx", data, "--output", "out.csv")
    lines = result.stdout.splitlines()
    names = "sequence, prediction, probability_no, probability_yes, probability_may be, or not"
    assert lines[:3] == [
        f"model       {classifier}/model.onnx",
        "rows        7 sequences",
        f"columns     {names}",
    ]
    assert lines[3].startswith("wrote       out.csv (")
    assert lines[4:] == [f"next        lstm-compile inspect {classifier}/model.onnx"]


def test_predict_prints_one_json_object(classifier, here):
    data = write_npz(here / "data.npz", sequences(7))
    result = invoke("predict", classifier, data, "--output", "out.csv", "--json")
    assert (result.exit_code, result.stderr, result.stdout.count("\n")) == (0, "", 1)
    found = json.loads(result.stdout)
    assert list(found) == ["path", "model", "task", "rows", "columns", "seconds"]
    assert (found["path"], found["model"]) == ("out.csv", str(classifier))
    assert (found["task"], found["rows"], len(found["columns"])) == ("classify", 7, 5)


def test_progress_is_told_in_blocks(classifier, here, monkeypatch):
    monkeypatch.setattr("lstm_compile.export.use.predict_file.BLOCK", 3)
    data, calls = write_npz(here / "data.npz", sequences(7)), []
    predict_file(classifier, str(data), progress=lambda *call: calls.append(call))
    assert calls == [("sequences", 3, 7), ("sequences", 6, 7), ("sequences", 7, 7)]


# ---- what is refused

REFUSED = [
    (["RUN", "data.npz", "--output", "out.txt"], "out.txt: --output must end in .csv or .parquet"),
    (["RUN", "data.npz", "--output", "out"], "out: --output must end in .csv or .parquet, found n"),
    (["RUN", "data.npz"], "Missing option '-o' / '--output'."),
    (["RUN", "data.npz", "--output", "no/out.csv"], "no/out.csv: there is no folder no; make it f"),
    (["RUN", "data.npz", "--output", "dir.csv"], "dir.csv: is a folder; name a file in it"),
    (["RUN", "in.csv", "--output", "in.csv"], "in.csv: is the file that is read; name another --o"),
    (["RUN", "three.npz", "--output", "o.csv"], "three.npz: 3 features, but the model was trained"),
    (["RUN", "named.npz", "--output", "o.csv"], "named.npz: name 0 of the features is 'b [V]', bu"),
    (["RUN", "nan.npz", "--output", "o.csv"], "nan.npz, sequence 0, step 0, feature 'feature_1': "),
    (["RUN", "other.csv", "--output", "o.csv"], "other.csv: no column 'b [V]' for --features; fou"),
    (["RUN", "gap.csv", "--output", "o.csv"], "gap.csv, row "),
    (["RUN", "absent.npz", "--output", "o.csv"], "absent.npz: cannot be read (No such file or dir"),
    (["RUN", "airlin", "--output", "o.csv"], "airlin: neither a file nor a bundled data set ("),
    (["RUN", "data.npz", "--id", "a", "--output", "o.csv"], "data.npz: --id says how to read a lo"),
]


@pytest.fixture
def files(here):
    rows = sequences(4)
    write_npz(here / "data.npz", rows)
    write_npz(here / "three.npz", [np.ones((2, 3), np.float32)])
    write_npz(here / "named.npz", rows, features=np.array(["b [V]", "a"]))
    write_npz(here / "nan.npz", [np.array([[1.0, np.nan]])])
    write_csv(here / "in.csv", rows)
    write_csv(here / "other.csv", rows, ("id", "time", "a", "b"))
    rows[1][0, 0] = np.nan
    write_csv(here / "gap.csv", rows)
    (here / "dir.csv").mkdir()
    (here / "garbage.onnx").write_bytes(b"garbage")
    return {path.name: path.read_bytes() for path in here.iterdir() if path.is_file()}


@pytest.mark.parametrize(("args", "message"), REFUSED)
@pytest.mark.parametrize("model", ["", "model.onnx"])
def test_predict_refuses_and_writes_nothing(classifier, here, files, model, args, message):
    assert_refused(here, files, [classifier / model, *args[1:]], message)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("absent", "absent: no such file or run folder; make one with `lstm-compile train`"),
        ("absent.onnx", "absent.onnx: cannot be read (No such file or directory); export it first"),
        ("garbage.onnx", "garbage.onnx: not a readable ONNX file ("),
    ],
)
def test_predict_refuses_what_is_no_model(here, files, model, message):
    assert_refused(here, files, [model, "data.npz", "--output", "o.csv"], message)


def assert_refused(here, files, args, message):
    result = invoke("predict", *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert isinstance(result.exception, SystemExit)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    assert message in last
    assert files == {path.name: path.read_bytes() for path in here.iterdir() if path.is_file()}


def test_the_output_is_checked_before_any_work(classifier, here):
    result = invoke("predict", "absent", "absent.npz", "--output", "out.txt")
    assert "out.txt: --output must end in .csv or .parquet, found '.txt'" in result.stderr
    found = Predictions("regress", Schema(("a",), (), ("t",)), None, np.ones((1, 1), np.float32))
    with pytest.raises(InputError, match="--output must end in"):
        write_predictions(here / "out.txt", found)


# ---- without torch

BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "onnx", "onnxscript"}:
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Block())
from lstm_compile.cli import main
main()
"""


@pytest.mark.parametrize("kind", ["csv", slow("npz"), slow("ts")])
def test_an_onnx_file_answers_without_torch(run, here, kind):
    rows = sequences(9)
    data = {"csv": write_csv, "npz": write_npz, "ts": write_ts}[kind](here / f"in.{kind}", rows)
    shutil.copy(run / "model.onnx", here / "m.onnx")
    for suffix in ("csv", "parquet"):
        args = ["predict", "m.onnx", data.name, "--output", f"out.{suffix}"]
        done = subprocess.run([sys.executable, "-c", BLOCK, *args], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        found = read(here / f"out.{suffix}")
        np.testing.assert_allclose(numbers(found), expected(run, rows), atol=1e-5, rtol=1e-6)


TIMES = {
    "days": lambda steps: pd.Timestamp("2024-02-27") + pd.to_timedelta(steps, "D"),
    "hours": lambda steps: pd.Timestamp("2024-02-27T05") + pd.to_timedelta(steps, "h"),
    "counts": lambda steps: steps * 10,
    "seconds": lambda steps: steps / 4,
    "frames": lambda steps: [f"2024-W{step + 10}" for step in steps],
}


@pytest.mark.parametrize("kind", TIMES)
def test_answers_to_steps_join_the_table_by_its_own_columns(here, kind):
    """The rows of the table are shuffled; each answer must be that of its own row."""
    steps, random = np.tile(np.arange(6), 8), np.random.default_rng(0)
    frame = pd.DataFrame({"engine": np.repeat(np.arange(8), 6), "at ": TIMES[kind](steps)})
    frame["u"], frame["life"] = random.normal(size=48), 5.0 - steps
    frame = frame.sample(frac=1, random_state=1)
    texts = frame.assign(**{"at ": frame["at "].astype(str)}) if kind == "days" else frame
    texts.to_csv("t.csv", index=False)
    frame.rename(columns={"at ": "at"}).to_parquet("t.parquet", index=False)
    named = ("--id", "engine", "--time", "at", "--target", "life", "--features", "u")
    done = invoke_small(
        "train", "t.csv", *named, "--task", "regress", "--per-step", "--output", "run"
    )
    assert done.exit_code == 0, done.output
    for source, output in (("t.csv", "p.csv"), ("t.parquet", "p.parquet"), ("t.csv", "q.parquet")):
        done = invoke("predict", "run", source, "--output", output)
        assert done.exit_code == 0, done.output
    answers, typed = pd.read_csv("p.csv"), pd.read_parquet("p.parquet")
    assert answers.columns.tolist() == typed.columns.tolist() == ["engine", "at", "life"]
    table = pd.read_csv("t.csv").rename(columns={"at ": "at"})
    rows = table.merge(answers, on=["engine", "at"], suffixes=("", "_found"))
    assert len(rows) == len(table)
    theirs = pd.read_parquet("t.parquet").merge(typed, on=["engine", "at"], suffixes=("", "_found"))
    model = load_model("run")
    for engine, part in rows.groupby("engine"):
        x = torch.tensor(part.sort_values("at")[["u"]].to_numpy("f")[None])
        expected = predict(model.params, model.config, x)[0].numpy()
        for found in (part, theirs[theirs.engine == engine]):
            order = found.sort_values("at")["life_found"]
            np.testing.assert_allclose(order, expected[:, 0], rtol=1e-4)
    if kind == "days":
        texts.rename(columns={"at ": "at"}).to_parquet("s.parquet", index=False)
        assert invoke("predict", "run", "s.parquet", "--output", "t.parquet").exit_code == 0
        assert set(pd.read_parquet("t.parquet")["at"]) == set(texts["at "])  # texts stay texts
    mixed = pd.read_parquet("q.parquet")["at"]
    assert sorted(mixed) == sorted(typed["at"])
