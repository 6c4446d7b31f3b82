import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_cases import invoke
from marks import slow
from safetensors.numpy import save_file

from lstm_compile.config import ModelConfig
from lstm_compile.data.profile import profile
from lstm_compile.data.schema import Schema
from lstm_compile.data.tables.table import Table
from lstm_compile.export.write.onnx import to_onnx
from lstm_compile.model.checkpoint import Model, load_model, save_model
from lstm_compile.model.model import init_params

DATA_KEYS = [
    *("kind", "path", "part", "columns", "unlabelled", "sequences", "rows", "features"),
    *("lengths", "histogram", "missing", "classes", "targets", "constant", "duplicate", "leaks"),
]
MODEL_KEYS = ["task", "schema", "config", "training", "parameters", "tensors"]
TRAINING = {
    "data": "some.csv",
    "data_fingerprint": "6e21",
    "seed": 3,
    "epochs": 7,
    "stopped": "patience",
    "validation": {"accuracy": 0.5, "loss": 1.25},
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
}

LEAVE_OUT = "if it holds the answer, leave it out"


TRAINED = (
    "data some.csv, data_fingerprint 6e21, seed 3, epochs 7, stopped patience, "
    "python 3.11.7, torch 2.13.0"
)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def inspect(*args):
    """What `inspect --json` prints, and its plain lines."""
    result, plain = invoke("inspect", *args, "--json"), invoke("inspect", *args)
    for done in (result, plain):
        assert (done.exit_code, done.stderr) == (0, "")
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout), plain.stdout.splitlines()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    config = ModelConfig(task="classify", input_size=3, output_size=2, hidden_size=5)
    schema = Schema(("a", "b", "c"), ("no", "yes"), ())
    model = Model(init_params(config, 0), config, schema, TRAINING)
    save_model(folder / "model.safetensors", *model)
    (folder / "model.onnx").write_bytes(to_onnx(model).SerializeToString())
    (folder / "metrics.jsonl").write_text("{}\n")
    return folder


# ---- data


def test_series():
    found, lines = inspect("airline")
    assert (found["kind"], found["series"], found["rows"]) == ("series", 1, 144)
    assert (found["step"], found["season"], found["missing"]) == ("1 month", 12, {})
    assert lines[0] == "data        airline: 1 series, 144 steps of 1 month"
    assert lines[2] == "from, to    1949-01-01T00:00:00, 1960-12-01T00:00:00"
    assert lines[-1] == "next        lstm-compile train airline"


def test_series_of_one_s_own(here):
    rows = ["time,y", *(f"2020-01-01T{hour:02},{hour}" for hour in (0, 1, 2, 5, 6))]
    (here / "t.csv").write_text("\n".join(rows))
    found, lines = inspect("t.csv", "--gaps", "forward")
    assert (found["rows"], found["missing"]) == (7, {"y": 2})
    assert "2 steps without a row (forward)" in found["columns"]
    assert lines[-1] == "next        lstm-compile train t.csv --task forecast --gaps forward"


def test_a_table_without_an_id_is_one_series(here):
    rows = ["day,sales,rain", *(f"2020-01-{day:02},{day},{day % 3}" for day in range(1, 20))]
    (here / "t.csv").write_text("\n".join(rows))
    found, lines = inspect("t.csv", "--target", "sales")
    assert (found["kind"], found["rows"], found["targets"]) == ("series", 19, ["sales"])
    assert lines[-1] == "next        lstm-compile train t.csv --task forecast --target sales"
    refused = invoke("inspect", "t.csv")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "name the id column with --id; one series alone is for --task fore" in refused.stderr


def test_a_table_of_several_series(here):
    rows = [
        f"{store},2020-01-{day:02},{day * 1.5 + len(store)}"
        for store in ("aa", "b") for day in range(1, 20)
    ]  # fmt: skip
    (here / "t.csv").write_text("\n".join(["store,day,sales", *rows]))
    columns = ("--id", "store", "--target", "sales")
    found, lines = inspect("t.csv", *columns)
    assert (found["kind"], found["series"], found["rows"]) == ("series", 2, 38)
    assert (found["from"][:10], found["step"]) == ("2020-01-01", "1 day")
    command = "lstm-compile train t.csv --task forecast --id store --target sales"
    assert lines[-1] == f"next        {command}"
    assert inspect("t.csv", *columns, "--task", "forecast")[0] == found
    alone = invoke("inspect", "t.csv", "--target", "sales", "--task", "forecast")
    assert (alone.exit_code, alone.stdout) == (2, "")
    assert "name the column of the series with --id" in alone.stderr
    (here / "n.csv").write_text("\n".join(["unique_id,ds,y", *rows]))
    assert inspect("n.csv")[0]["targets"] == ["y"]
    refused = invoke("inspect", "t.csv", *columns, "--task", "lm")
    assert "--id, --target says how to read a table, and task lm" in refused.stderr


def test_the_task_says_how_labels_are_read(here):
    rows = [f"{take},{t},{t / 2},{'ab'[t % 2]}" for take in (1, 2) for t in range(4)]
    (here / "t.csv").write_text("\n".join(["id,t,u,label", *rows]))
    found, lines = inspect("t.csv", "--task", "tag")
    assert (found["unlabelled"], found["classes"]) == (None, {"a": 4, "b": 4})
    assert lines[-1] == "next        lstm-compile train t.csv --task tag"
    assert "learn one a step with --task tag" in inspect("t.csv")[0]["unlabelled"]
    refused = invoke("inspect", "t.csv", "--task", "forecast")
    assert (refused.exit_code, refused.stdout) == (2, "")


def test_gaps_of_a_ts_file(here):
    (here / "t.ts").write_text("@univariate true\n@classLabel true a\n@data\n1,?,3:a\n")
    found, lines = inspect("t.ts")
    assert (found["missing"], found["columns"]) == ({"feature_0": 1}, None)
    assert lines[-1] == "next        lstm-compile train t.ts --missing forward"


@pytest.mark.parametrize("name", ["spoken-digits", "japanese-vowels"])
def test_every_bundled_data_set(name):
    found, lines = inspect(name)
    assert list(found) == DATA_KEYS
    assert (found["kind"], found["part"], found["unlabelled"]) == ("data", "train", None)
    assert found["missing"] == {}
    assert found["leaks"] == []
    assert sum(row["sequences"] for row in found["histogram"]) == found["sequences"]
    assert lines[0] == (
        f"data        {name} (train part): {found['sequences']} sequences, {found['rows']} rows"
    )
    assert lines[-1] == f"next        lstm-compile train {name}"


def test_japanese_vowels_in_detail():
    found, lines = inspect("japanese-vowels")
    assert (found["sequences"], found["rows"], len(found["features"])) == (270, 4274, 12)
    assert found["lengths"] == {"min": 7, "median": 15.0, "mean": 15.83, "max": 26, "empty": 0}
    assert found["classes"] == {str(label): 30 for label in range(1, 10)}
    assert found["histogram"][0] == {"from": 7, "to": 8, "sequences": 1}
    assert lines[2] == "lengths     min 7, median 15, mean 15.83, max 26, empty 0"
    assert lines[3] == "              7-8 █ 1"
    assert lines[7] == f"            15-16 {'█' * 40} 69"
    assert "classes     9: 1 30 (11.1 %), 2 30 (11.1 %), 3 30 (11.1 %)" in "\n".join(lines)
    assert lines[-2] == "suspicious  none: no feature seems to hold the answer"


def write_table(path, header, rows):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def made_table(path):
    rows = []
    for sequence in range(12):
        label = "xyz"[sequence % 3]
        for time in range(1 + sequence % 4):
            value = f"{sequence * time % 7}.5"
            gap = "" if time == 1 else value
            leak = 10 * (sequence % 3)
            rows.append(f"s{sequence},{time},{value},{gap},{value},{leak},4,note,{label}")
    return write_table(path, "id,time,a,b,copy,leak,still,text,label", rows)


def test_a_long_table_with_everything_wrong(here):
    found, lines = inspect(made_table(here / "some data.csv"))
    assert list(found) == DATA_KEYS
    assert found["columns"] == {
        "id": ["id"],
        "time": ["time"],
        "target": ["label"],
        "inferred": ["id", "time", "target", "features"],
        "left_out": {"text": "text"},
    }
    assert (found["sequences"], found["rows"]) == (12, 30)
    assert found["features"] == ["a", "b", "copy", "leak", "still"]
    assert found["missing"] == {"b": 9}
    assert found["classes"] == {"x": 4, "y": 4, "z": 4}
    assert found["constant"] == ["still"]
    assert found["duplicate"] == [["a", "copy"]]
    assert [leak["feature"] for leak in found["leaks"]] == ["leak"]
    assert lines[3:8] == [
        f"            1 {'█' * 40} 3",
        f"            2 {'█' * 40} 3",
        f"            3 {'█' * 40} 3",
        f"            4 {'█' * 40} 3",
        "id          id (inferred)",
    ]
    assert lines[8:] == [
        "time        time (inferred)",
        "target      label (inferred)",
        "left out    text (text)",
        "missing     b 9",
        "classes     3: x 4 (33.3 %), y 4 (33.3 %), z 4 (33.3 %)",
        "constant    still",
        "equal       a = copy",
        f"suspicious  leak: constant within each sequence, one value a class; {LEAVE_OUT}",
        f"next        lstm-compile train '{here}/some data.csv' --missing forward",
    ]


def test_flags_choose_the_columns_and_are_given_again(here):
    data = made_table(here / "t.csv")
    flags = ["--target", "label", "--features", "a,still", "--missing", "zero"]
    found, lines = inspect(data, *flags)
    assert found["features"] == ["a", "still"]
    assert lines[-1] == f"next        lstm-compile train {data} {' '.join(flags)}"


def test_data_without_labels(here):
    rows = ["p,0,1.5", "p,1,2.5", "q,0,3.5"]
    found, lines = inspect(write_table(here / "t.csv", "id,time,a", rows))
    assert (found["classes"], found["targets"], found["leaks"]) == ({}, {}, [])
    assert "name the target column with --target" in found["unlabelled"]
    assert any(line.startswith("labels      none that can be read: ") for line in lines)
    assert lines[-1] == (
        f"next        lstm-compile predict RUN {here}/t.csv --output predictions.csv"
    )
    np.savez(here / "t.npz", x=np.ones((3, 1)), lengths=[2, 1])
    found, _ = inspect(here / "t.npz")
    assert found["unlabelled"] == f"{here}/t.npz: no array `y` (sequences, ...); found lengths, x"


def test_numbers_to_predict(here):
    x = np.arange(12.0)[:, None]
    np.savez(here / "t.npz", x=x, lengths=[3, 4, 5], y=np.array([1.5, 0.25, -2.0]))
    found, lines = inspect(here / "t.npz")
    assert found["targets"] == {"target": {"min": -2.0, "mean": pytest.approx(-1 / 12), "max": 1.5}}
    assert "target      target: min -2, mean -0.0833333, max 1.5" in lines


# ---- what looks wrong


def table(x, lengths, y, features=None):
    x = np.asarray(x, np.float32)
    return Table(Path("t"), x, np.array(lengths), y, features)


def leaks(x, lengths, y):
    return [(leak["feature"], leak["reason"]) for leak in profile(table(x, lengths, y)).leaks]


def noise(rows, columns=1):
    return np.random.default_rng(5).standard_normal((rows, columns))


LENGTHS = [2, 0, 1, 3, 2, 1]
LABELS = ["7", "5", "5", "7", "3", "3"]  # sorted: 3, 5, 7
PER_STEP = np.repeat([7, 5, 5, 7, 3, 3], LENGTHS)


def test_a_feature_with_one_value_a_class_is_suspicious():
    x = np.column_stack([noise(9), -2.5 * PER_STEP, noise(9)])
    reason = "constant within each sequence, one value a class"
    assert leaks(x, LENGTHS, LABELS) == [("feature_1", reason)]
    x[1, 1] += 1  # not constant within the first sequence
    assert leaks(x, LENGTHS, LABELS) == []


@pytest.mark.parametrize("values", [PER_STEP, (PER_STEP - 3) // 2])
def test_a_feature_whose_last_value_is_the_class_is_suspicious(values):
    x = np.column_stack([noise(9), values])
    x[0, 1] = 99  # the first step of two
    assert leaks(x, LENGTHS, LABELS) == [("feature_1", "its last value is the class")]
    x[1, 1] = 99
    assert leaks(x, LENGTHS, LABELS) == []


def test_one_sequence_a_class_and_two_classes_of_one_value_are_not_suspicious():
    assert leaks([[10], [20], [30]], [1, 1, 1], ["a", "b", "c"]) == []
    assert leaks([[10], [10], [20], [20]], [1, 1, 1, 1], ["a", "a", "b", "c"]) == []
    assert leaks([[10], [10], [10], [10]], [1, 1, 1, 1], ["a", "a", "b", "b"]) == []


def test_a_feature_that_ends_or_averages_at_the_target_is_suspicious():
    lengths = np.array([3, 1, 4, 2])
    y = np.array([[1.0, 10.0], [2.0, -5.0], [-3.0, 7.0], [4.5, 2.0]], np.float32)
    last = noise(10)
    last[lengths.cumsum() - 1, 0] = y[:, 0] * 3 + 1
    mean = np.repeat(-y[:, 1], lengths)[:, None]
    assert leaks(np.column_stack([noise(10), last, mean]), lengths, y) == [
        ("feature_1", "its last value is target 'target_0' (correlation 1.0000)"),
        ("feature_2", "its last value is target 'target_1' (correlation -1.0000)"),
    ]
    ramp = np.concatenate([np.arange(n) - (n - 1) / 2 for n in lengths])[:, None]
    (found,) = leaks(mean + ramp, lengths, y)
    assert found == ("feature_0", "its mean is target 'target_1' (correlation -1.0000)")
    assert leaks(np.ones((10, 1)), lengths, y) == []


def test_constant_and_equal_features():
    x = np.column_stack([noise(4), np.full(4, 2.0), np.zeros(4), -np.zeros(4), noise(4)])
    found = profile(table(x, [4], ["a"], ("p", "q", "r", "s", "t")))
    assert found.constant == ["q", "r", "s"]
    assert found.duplicate == [["p", "t"], ["r", "s"]]


@pytest.mark.parametrize("lengths", [[5], [0, 0], [1, 1000], list(range(30)), [3, 13]])
def test_the_histogram_counts_every_sequence_once(lengths):
    found = profile(table(np.zeros((sum(lengths), 1)), lengths, ["a"] * len(lengths)))
    assert len(found.histogram) <= 10
    for row in found.histogram:
        inside = [n for n in lengths if row["from"] <= n <= row["to"]]
        assert row["sequences"] == len(inside)
    assert sum(row["sequences"] for row in found.histogram) == len(lengths)
    assert found.lengths["empty"] == lengths.count(0)


# ---- models


def test_a_run(run):
    found, lines = inspect(run)
    assert list(found) == ["kind", "path", "bytes", *MODEL_KEYS, "files"]
    params, config, _, _ = load_model(run)
    learned = [value.numel() for name, value in params.items() if not name.startswith("scaler.")]
    assert (found["kind"], found["task"], found["parameters"]) == ("run", "classify", sum(learned))
    assert found["tensors"] == {name: [*params[name].shape] for name in sorted(params)}
    assert found["config"] == json.loads(config.to_json())
    assert found["schema"] == {"features": ["a", "b", "c"], "classes": ["no", "yes"], "targets": []}
    assert found["training"] == TRAINING
    assert list(found["files"]) == ["metrics.jsonl", "model.onnx", "model.safetensors"]
    size = (run / "model.safetensors").stat().st_size
    assert lines == [
        f"run         {run} ({size / 1000:.0f} kB)",
        "task        classify: no, yes",
        "features    3: a, b, c",
        "scaling     inside: features standard",
        f"shape       2 layers of 5, both directions, pooling attention, {sum(learned)} parameters",
        "files       metrics.jsonl, model.onnx, model.safetensors",
        "validation  accuracy 50.00 %, loss 1.25",
        f"trained     {TRAINED}",
        f"next        lstm-compile export {run} --onnx",
    ]


def test_a_safetensors_file(run):
    file = run / "model.safetensors"
    found, lines = inspect(file)
    assert list(found) == ["kind", "path", "bytes", *MODEL_KEYS]
    assert (found["kind"], found["bytes"]) == ("safetensors", file.stat().st_size)
    assert lines[0].startswith(f"safetensors {file} (")
    assert lines[-1] == f"next        lstm-compile evaluate {file}"


def test_an_onnx_file(run):
    found, lines = inspect(run / "model.onnx")
    assert list(found) == [
        *("kind", "path", "bytes", "interface_version", "profile", "runtimes"),
        *("selftest_sha256", "opset", "ir_version"),
        *MODEL_KEYS[:4],
        *("inputs", "outputs", "parameters", "nodes"),
    ]
    assert found["inputs"] == {
        "x": {"type": "float", "shape": ["batch", "time", 3]},
        "lengths": {"type": "int64", "shape": ["batch"]},
    }
    assert found["outputs"] == {"probabilities": {"type": "float", "shape": ["batch", 2]}}
    assert found["nodes"]["LSTM"] == 4
    own, _ = inspect(run)
    for key in ("parameters", "task", "schema", "config", "training"):
        assert found[key] == own[key]
    assert lines[5:10] == [
        "input       x float [batch, time, 3]",
        "input       lengths int64 [batch]",
        "output      probabilities float [batch, 2]",
        "format      interface_version 1, profile portable, opset 17, ir_version 8",
        "lengths     right in every runtime that loads it",
    ]


def test_a_model_that_says_nothing_of_its_training(run, here):
    params, config, schema, _ = load_model(run)
    save_model(here / "m.safetensors", params, config, schema)
    _, lines = inspect(here / "m.safetensors")
    assert lines[-2] == "trained     nothing is written down"


# ---- what is refused


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.npz", "absent.npz: cannot be read (No such file or directory)"),
        ("absent.csv", "absent.csv: cannot be read (No such file or directory)"),
        ("absent.onnx", "absent.onnx: cannot be read (No such file or directory); export it first"),
        ("absent.safetensors", "absent.safetensors: not a readable safetensors file ("),
        ("absent", "absent: neither a file nor a bundled data set ("),
        (
            "garbage.npz",
            "garbage.npz: not a complete .npz (zip) file; write it again with np.savez",
        ),
        ("garbage.onnx", "garbage.onnx: not a readable ONNX file ("),
        ("garbage.safetensors", "garbage.safetensors: not a readable safetensors file ("),
        (
            "foreign.safetensors",
            "foreign.safetensors: a safetensors file, but not one of this pack",
        ),
        ("half.safetensors", "half.safetensors: its metadata lack 'config'; train or export again"),
        ("text.csv", "text.csv"),
        ("empty", "empty: no file here; expected files that end in "),
    ],
)
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_inspect_refuses_in_one_line(here, name, message, more):
    for suffix in ("npz", "onnx", "safetensors"):
        (here / f"garbage.{suffix}").write_bytes(b"garbage")
    save_file({"w": np.ones(2)}, here / "foreign.safetensors")
    save_file({"w": np.ones(2)}, here / "half.safetensors", {"format": "lstm_compile"})
    write_table(here / "text.csv", "id,time,a", ["p,0,x", "p,1,y"])
    (here / "empty").mkdir()
    result = invoke("inspect", name, *more)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: {message}")


# ---- without torch

BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Block())
from lstm_compile.cli import main
main()
"""


@pytest.mark.parametrize(
    "kind", ["run", *map(slow, ["safetensors", "onnx", "csv", "spoken-digits"])]
)
def test_inspect_needs_no_torch(run, here, kind):
    made_table(here / "t.csv")
    shutil.copytree(run, here / "run")
    names = {"csv": "t.csv", "run": "run", "spoken-digits": kind}
    name = names.get(kind, f"run/model.{kind}")
    command = [sys.executable, "-c", BLOCK, "inspect", name]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("next        lstm-compile ")


def test_the_next_command_repeats_all_flags_that_were_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [f"{i},{i % 5},a,2024-01-{i:02d} 00:00:00\n" for i in range(1, 29)]
    (tmp_path / "t.csv").write_text('"x,y","a ""b""",id,time\n' + "".join(rows))
    asked = [
        "--target",
        '"x,y"',
        "--features",
        '"a ""b"""',
        "--time-zone",
        "UTC",
        "--jitter",
        "0.1",
    ]
    found = invoke("inspect", "t.csv", "--task", "forecast", *asked)
    assert found.exit_code == 0, found.output
    words = shlex.split(found.output.splitlines()[-1])[1:]
    assert words == ["lstm-compile", "train", "t.csv", "--task", "forecast", *asked]
