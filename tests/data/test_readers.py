import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from cli_cases import invoke, invoke_small
from hypothesis import given, settings
from hypothesis import strategies as st

from lstm_compile import load_model
from lstm_compile.data import (
    BUNDLED,
    Schema,
    TableOptions,
    fingerprint,
    load_dataset,
    read_sequences,
)
from lstm_compile.data.tables.columns import ReadRequest
from lstm_compile.data.tables.read import read_table
from lstm_compile.data.tables.table import sorted_labels
from lstm_compile.errors import InputError

HEADER = "# a comment\n@problemName Tiny\n@dimensions 2\n@classLabel true b a\n@data\n"
GOOD = HEADER + "1,2,3:4,5,6:a\n-1.5e1:0.25:b\n"
CLASSES = Schema(("feature_0", "feature_1"), ("a", "b", "c"), ())
TARGETS = Schema(("feature_0", "feature_1"), (), ("height",))


def write_ts(folder, text):
    path = folder / "tiny.ts"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def write_npz(folder, leave_out=(), **changes):
    arrays = {
        "x": np.arange(10, dtype=np.float32).reshape(5, 2),
        "lengths": np.array([2, 0, 3]),
        "y": np.array(["a", "b", "a"]),
    }
    arrays.update(changes)
    path = folder / "tiny.npz"
    np.savez_compressed(path, **{k: v for k, v in arrays.items() if k not in leave_out})
    return path


def assert_refused(path, message, **options):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_sequences(path, **options)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


# ---- .ts


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_ts_values_labels_and_names(tmp_path, ending):
    data = read_sequences(write_ts(tmp_path, "\ufeff" + GOOD.replace("\n", ending)))
    assert data.x.dtype == torch.float32
    assert data.x.tolist() == [[1, 4], [2, 5], [3, 6], [-15, 0.25]]
    assert data.offsets.tolist() == [0, 3, 4]
    assert data.y.tolist() == [0, 1]
    assert data.schema == Schema(("feature_0", "feature_1"), ("a", "b"), ())
    assert data.task == "classify"


def test_ts_without_dimensions_and_without_last_line_break(tmp_path):
    text = "@univariate true\n@classLabel true x\n@data\n\n1,2:x\n# comment\n3:x"
    data = read_sequences(write_ts(tmp_path, text))
    assert (data.x.tolist(), data.lengths.tolist()) == ([[1], [2], [3]], [2, 1])


def test_ts_regression(tmp_path):
    text = "@univariate false\n@targetLabel true\n@data\n1,2:3,4:0.5\n5:6:-2\n"
    data = read_sequences(write_ts(tmp_path, text))
    assert data.y.dtype == torch.float32
    assert (data.y.tolist(), data.targets, data.task) == ([[0.5], [-2]], ("target",), "regress")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("1,?:3,4:a", "line 6, dimension 1, step 2: missing value '?'; fill the gap"),
        ("1,2:3,NaN:a", "line 6, dimension 2, step 2: missing value 'NaN'"),
        ("1,2:3,:a", "line 6, dimension 2, step 2: missing value ''"),
        ("1,2:3,x4:a", "line 6, dimension 2, step 2: expected a finite float32 number, found 'x4'"),
        ("1,1_0:3,4:a", "dimension 1, step 2: expected a finite float32 number, found '1_0'"),
        ("1,inf:3,4:a", "dimension 1, step 2: expected a finite float32 number, found 'inf'"),
        ("1,1e39:3,4:a", "dimension 1, step 2: expected a finite float32 number, found '1e39'"),
        ("1,2:3,4:a\n1,2:3:a", "line 7, dimension 2: 1 steps, but dimension 1 has 2"),
        ("1,2:3,4:5,6:a", "line 6: expected 2 dimensions and a label, separated by `:`, found 3"),
        (
            "1,2:3,4:a\n\n1,2:3",
            "line 8: expected 2 dimensions and a label, separated by `:`, found 1",
        ),
        ("1,2:3,4:a\n1,2", "line 7: expected 2 dimensions and a label, separated by `:`, found 0"),
        ("1,2:3,4:", "line 6: no class after the last `:`"),
        ("1,2:3,4:a\n1,2:3,4:d", "line 7: unknown class 'd'; known are a, b"),
        ("", "line 5: no case follows `@data`"),
    ],
)
def test_ts_refuses_bad_cases(tmp_path, lines, message):
    assert_refused(write_ts(tmp_path, HEADER + lines), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("@classLabel true a\n1:a\n@data\n1:a", "line 2: expected `@key value` before `@data`"),
        ("@classLabel true a\n", "no `@data` line, so this is not a complete .ts file"),
        ("@\n@data\n1:a", "the header needs `@classLabel true` or `@targetlabel true`, and only"),
        ("@data\n1:a", "the header needs `@classLabel true` or"),
        (
            "@classLabel false\n@data\n1",
            "its header says that it has no labels; only predict reads",
        ),
        ("@classLabel true a\n@targetLabel true\n@data\n1:a", "and only one"),
        ("@classLabel true a\n@data\n", "no case follows `@data`"),
        ("@timeStamps true\n@data\n(0,1):a", "line 1: `@timeStamps true` is not supported"),
        ("@dimensions two\n@classLabel true a\n@data\n1:a", "whole number above 0, found 'two'"),
        ("@dimensions 0\n@classLabel true a\n@data\n1:a", "whole number above 0, found '0'"),
        ("@classLabel true a\n@data\na", "line 3: expected 1 dimensions and a label"),
        ("@targetLabel true\n@data\n1:a", "line 3: expected one finite number after the last `:`"),
        ("@targetLabel true\n@data\n1:2\n1:nan", "line 4: expected one finite number after"),
        (b"\xff\xfe1", "line 1: byte 0 is not UTF-8; save the file as UTF-8"),
        ("", "the file is empty"),
    ],
)
def test_ts_refuses_bad_headers(tmp_path, text, message):
    assert_refused(write_ts(tmp_path, text), message)


GAPS = "% a comment\n" + HEADER + "1,?,3:4,5,:a\n?:0.25:b\n"


@pytest.mark.parametrize(
    ("missing", "expected", "means"),
    [
        ("zero", [[1, 4], [0, 5], [3, 0], [0, 0.25]], ()),
        ("mean", [[1, 4], [2, 5], [3, 37 / 12], [2, 0.25]], (2, 37 / 12)),
        ("forward", [[1, 4], [1, 5], [3, 5], [2, 0.25]], (2, 37 / 12)),
    ],
)
def test_gaps_of_files_without_names_are_filled(tmp_path, missing, expected, means):
    x = np.array([[1, 4], [np.nan, 5], [3, np.inf], [np.nan, 0.25]])
    npz = write_npz(tmp_path, x=x, lengths=np.array([3, 1]), y=np.array(["a", "b"]))
    for path in (write_ts(tmp_path, GAPS), npz):
        data = read_sequences(path, table=TableOptions(missing=missing))
        assert data.x.numpy() == pytest.approx(np.array(expected))
        assert data.roles.description == f"missing: {missing} (3 values filled)"
        assert data.roles.options.means == pytest.approx(means)
        later = read_sequences(path, table=TableOptions(missing="mean", means=(7.0, 8.0)))
        assert later.x[1].tolist() == [7, 5]
        assert_refused(path, "with --missing forward, mean or zero")
    big = write_npz(tmp_path, x=np.array([[1e39], [np.nan]]), lengths=[2], y=np.array(["a"]))
    assert_refused(big, "found 1e+39", table=TableOptions(missing="zero"))
    text = GAPS.replace("0.25", "x")
    assert_refused(write_ts(tmp_path, text), "step 1: expected", table=TableOptions(missing="zero"))


UNLABELLED = "@dimensions 2\n@classLabel false\n@data\n1,2,3:4,5,6\n-15:0.25\n"


def test_ts_without_labels(tmp_path):
    path = write_ts(tmp_path, UNLABELLED)
    table = read_table(ReadRequest(path, labelled=False))
    assert table.x.tolist() == [[1, 4], [2, 5], [3, 6], [-15, 0.25]]
    assert (table.lengths.tolist(), table.y.shape) == ([3, 1], (2, 0))
    assert_refused(path, "its header says that it has no labels; only predict reads it")
    path = write_ts(tmp_path, UNLABELLED + "1,2\n")
    with pytest.raises(InputError, match="line 6: expected 2 dimensions, separated by `:`, found"):
        read_table(ReadRequest(path, labelled=False))


@pytest.mark.slow
def test_ts_with_gaps_from_training_to_predictions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases = [f"{i % 2}.5,?,{i}:1,2,{i % 2}:{'ab'[i % 2]}" for i in range(20)]
    write_ts(tmp_path, HEADER + "\n".join(cases)).rename("train.ts")
    write_ts(tmp_path, UNLABELLED.replace("4,5", "4,?")).rename("new.ts")
    done = invoke_small("train", "train.ts", "--missing", "mean", "--output", "run")
    assert done.exit_code == 0, done.output
    assert "missing: mean (20 values filled)" in done.stdout
    assert load_model("run").training["table"]["means"] == [5.25, pytest.approx(3.5 / 3)]
    again = invoke(
        "train", "--config", "run/config.toml", "--output", "again", "--test", "train.ts"
    )
    assert again.exit_code == 0, again.output
    assert invoke("evaluate", "run", "train.ts").exit_code == 0
    assert invoke("export", "run", "--onnx").exit_code == 0
    for model in ("run", "run/model.onnx"):
        done = invoke("predict", model, "new.ts", "--output", "p.csv")
        assert done.exit_code == 0, done.output
        assert len((tmp_path / "p.csv").read_text().splitlines()) == 3
    refused = invoke("evaluate", "run", "new.ts")
    assert "new.ts: its header says that it has no labels; only predict reads it" in refused.stderr


# ---- .npz


def test_npz_values_labels_and_an_empty_sequence(tmp_path):
    data = read_sequences(write_npz(tmp_path, features=np.array(["u", "v"])))
    assert data.x.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert (data.offsets.tolist(), data.y.tolist()) == ([0, 2, 2, 5], [0, 1, 0])
    assert data.schema == Schema(("u", "v"), ("a", "b"), ())


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float16, np.float64, np.bool_])
def test_npz_takes_any_numbers_for_x(tmp_path, dtype):
    x = np.array([[0, 1]] * 5, dtype=dtype)
    data = read_sequences(write_npz(tmp_path, x=x))
    assert data.x.dtype == torch.float32
    assert data.x.tolist() == [[0, 1]] * 5


def test_npz_integer_labels_sort_by_value(tmp_path):
    data = read_sequences(write_npz(tmp_path, y=np.array([10, -1, 9], dtype=np.int8)))
    assert (data.classes, data.y.tolist()) == (("-1", "9", "10"), [2, 0, 1])


@pytest.mark.parametrize(
    ("y", "names", "expected"),
    [
        ([0.5, 1, 2], None, ("target",)),
        ([[0.5], [1], [2]], ["height"], ("height",)),
        ([[0.5, 1], [2, 3], [4, 5]], None, ("target_0", "target_1")),
    ],
)
def test_npz_regression(tmp_path, y, names, expected):
    changes = {} if names is None else {"targets": np.array(names)}
    data = read_sequences(write_npz(tmp_path, y=np.array(y, dtype=np.float64), **changes))
    assert data.y.dtype == torch.float32
    assert (data.y.tolist(), data.targets) == (np.reshape(y, (3, -1)).tolist(), expected)


def broken_x(row, column, value):
    x = np.arange(10, dtype=np.float64).reshape(5, 2)
    x[row, column] = value
    return x


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"leave_out": ["lengths"]}, "no array `lengths` (sequences,); found x, y"),
        ({"leave_out": ["x", "lengths", "y"]}, "no array `x` (total_steps, features); found none"),
        ({"x": np.ones(5)}, "x must be numbers of shape (total_steps, features), found float64 (5"),
        ({"x": np.ones((5, 0))}, "x must be numbers of shape (total_steps, features), found"),
        ({"x": np.ones((5, 2), complex)}, "x must be numbers of shape (total_steps, features)"),
        ({"x": np.array([[1, None]] * 5)}, "array `x` cannot be read (it holds pickled objects"),
        ({"x": broken_x(3, 1, np.nan)}, "sequence 2, step 1, feature 'feature_1': expected a fin"),
        ({"x": broken_x(2, 0, -np.inf)}, "sequence 2, step 0, feature 'feature_0': expected a fin"),
        ({"x": broken_x(0, 0, 1e39)}, "sequence 0, step 0, feature 'feature_0': expected a finite"),
        ({"lengths": np.array([2.0, 0, 3])}, "lengths must be integers of shape (sequences,), at"),
        ({"lengths": np.array([[2, 0, 3]])}, "at least one, found int64 (1, 3)"),
        ({"lengths": np.zeros(0, int)}, "at least one, found int64 (0,)"),
        ({"lengths": np.array([2, -1, 4])}, "sequence 1: length -1 is not between 0 and the 5 row"),
        ({"lengths": np.array([2**62] * 4)}, "sequence 0: length 4611686018427387904 is not betw"),
        ({"lengths": np.array([2, 0, 2])}, "lengths add up to 4, but x has 5 rows"),
        ({"y": np.array([1, 2])}, "y has 2 rows, but lengths has 3"),
        ({"y": np.array([[1], [2], [3]])}, "y must be integers or strings (sequences,), or floats"),
        ({"y": np.ones((3, 0))}, "y must be integers or strings (sequences,), or floats"),
        ({"y": np.array([b"a", b"b", b"c"])}, "(sequences, targets), found |S1 (3,)"),
        ({"y": np.array([1.0, np.nan, 2])}, "sequence 1, target 0: expected a finite float32 num"),
        ({"features": np.array(["u"])}, "features must be 2 strings, one name a column, found <U1"),
        ({"features": np.array([1, 2])}, "features must be 2 strings, one name a column, found in"),
        ({"features": np.array(["u", "u"])}, "features must differ, found 'u' twice"),
        ({"targets": np.array(["t"])}, "targets must be 0 strings, one name a column, found <U1"),
    ],
)
def test_npz_refuses(tmp_path, changes, message):
    assert_refused(write_npz(tmp_path, **changes), message)


def test_npz_refuses_damage(tmp_path):
    path = write_npz(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:-30])
    assert_refused(path, "not a complete .npz (zip) file; write it again with np.savez")
    path.write_bytes(content[:60] + b"\x00\xff\x00\xff" + content[64:])
    assert_refused(path, "array `x` cannot be read (")
    listed = content.rindex(b"PK\x01\x02")
    path.write_bytes(content[: listed + 6] + b"\xff" + content[listed + 7 :])
    assert_refused(path, "not a complete .npz (zip) file")


def test_npz_refuses_a_pickle_and_a_bare_array(tmp_path):
    path = tmp_path / "tiny.npz"
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    assert_refused(path, "not a complete .npz (zip) file")
    np.array([{"a": 1}], dtype=object).dump(path)
    assert_refused(path, "not a complete .npz (zip) file")


def outcome(path):
    try:
        return f"{len(read_sequences(path))} sequences"
    except InputError as error:
        return str(error)


@settings(deadline=None)
@given(st.data())
def test_npz_with_flipped_bytes_is_read_or_refused_in_one_line(tmp_path_factory, data):
    path = write_npz(tmp_path_factory.mktemp("flipped"))
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    assert re.fullmatch(r"3 sequences|.*tiny\.npz.*", outcome(path))  # no dot matches a line break


# ---- files, names and schemas


def test_paths_that_are_no_readable_file(tmp_path):
    assert_refused(tmp_path / "none.npz", "none.npz: cannot be read (No such file or directory)")
    assert_refused(tmp_path / "x.txt", "expected a file that ends in .npz, .ts, .csv, .parquet, ")
    assert_refused(tmp_path / "x", ".jsonl, .ndjson, found no ending")
    (tmp_path / "folder.ts").mkdir()
    assert_refused(tmp_path / "folder.ts", "no file here; expected files that end in .csv")
    (tmp_path / "empty.npz").touch()
    assert_refused(tmp_path / "empty.npz", "the file is empty")


def test_a_schema_fixes_the_codes(tmp_path):
    schema = Schema(("u", "v"), ("c", "b", "a"), ())
    data = read_sequences(write_npz(tmp_path), schema=schema)  # no names of its own
    assert (data.schema, data.y.tolist()) == (schema, [2, 1, 2])
    assert read_sequences(write_ts(tmp_path, GOOD), schema=schema).y.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("changes", "schema", "message"),
    [
        ({"y": np.array(["a", "spam", "a"])}, CLASSES, "sequence 1: unknown class 'spam'; known a"),
        ({"x": np.ones((5, 3))}, CLASSES, "3 features, but the model was trained on 2: feature_0,"),
        ({"features": np.array(["feature_1", "feature_0"])}, CLASSES, "name 0 of the features is "),
        ({"y": np.ones(3)}, CLASSES, "holds number targets, but the model was trained on class l"),
        ({}, TARGETS, "holds class labels, but the model was trained on number targets"),
        ({"y": np.ones((3, 2))}, TARGETS, "2 targets, but the model was trained on 1: height"),
        (
            {"y": np.ones(3), "targets": np.array(["width"])},
            TARGETS,
            "name 0 of the targets is 'width', but the model was trained on 'height'; give the",
        ),
    ],
)
def test_a_schema_refuses_what_the_model_cannot_take(tmp_path, changes, schema, message):
    assert_refused(write_npz(tmp_path, **changes), message, schema=schema)


def test_an_unknown_class_comes_with_the_nearest_known_one(tmp_path):
    schema = Schema(("u", "v"), tuple(f"class {i}" for i in range(20)), ())
    path = write_npz(tmp_path, y=np.array(["class 1", "clas 7", "class 2"]))
    assert_refused(path, "class 11 and 8 more; did you mean 'class 7'?", schema=schema)


@given(st.permutations(["1e1", "-2", "3.5", "03"]), st.permutations(["b", "10", "9", "nan"]))
def test_labels_sort_by_value_only_where_all_are_numbers(numbers, words):
    assert sorted_labels(numbers + numbers) == ("-2", "03", "3.5", "1e1")
    assert sorted_labels(words) == ("10", "9", "b", "nan")


names = st.lists(st.text(), min_size=1, unique=True).map(tuple)


@given(names, names, st.booleans())
def test_a_schema_survives_json(features, others, is_classification):
    schema = Schema(features, *((others, ()) if is_classification else ((), others)))
    assert Schema.from_json(schema.to_json()) == schema


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": "uv"}, "Schema: features must be a list of strings, found 'uv'"),
        ({"classes": ["a", 1]}, r"Schema: classes must be a list of strings, found \['a', 1\]"),
        ({"features": []}, "Schema: features must hold at least one name, found none"),
        ({"classes": []}, "exactly one of classes and targets must hold names, found 0 classes"),
        ({"targets": ["t"]}, "must hold names, found 3 classes and 1 targets"),
        ({"classes": ["a", "a"]}, "Schema: classes must differ, found 'a' twice"),
        ({"more": 1}, r"Schema: unknown keys \['more'\]"),
    ],
)
def test_a_schema_refuses_bad_json(change, message):
    with pytest.raises(InputError, match=message):
        Schema.from_json(json.dumps(json.loads(CLASSES.to_json()) | change))


def test_the_schema_loads_no_torch():
    code = "import sys, lstm_compile.data.schema as s; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- bundled


@pytest.mark.parametrize(
    ("name", "part", "sequences", "steps", "features", "longest", "digest"),
    [
        ("spoken-digits", "train", 2700, 69889, 13, 141, "1dc413a83b7652a6"),
        ("spoken-digits", "test", 300, 7631, 13, 70, "7d62d23474e67225"),
        ("japanese-vowels", "train", 270, 4274, 12, 26, "6e211e0138636666"),
        ("japanese-vowels", "test", 370, 5687, 12, 29, "4b2c19f3c0bc5a38"),
    ],
)
def test_bundled_data(name, part, sequences, steps, features, longest, digest):
    data = load_dataset(name, part)
    assert (len(data), *data.x.shape) == (sequences, steps, features)
    assert (data.lengths.min(), data.lengths.max()) == (7, longest)
    assert data.y.unique().tolist() == list(range(len(data.classes)))
    assert fingerprint(data).startswith(digest)


def test_bundled_names():
    assert set(BUNDLED) == {"spoken-digits", "japanese-vowels", "airline"}
    assert load_dataset("spoken-digits", "test").features[12] == "mfcc_12"
    message = r"spoken-digit: neither a file nor a bundled .*; did you mean 'spoken-digits'\?"
    with pytest.raises(InputError, match=message):
        load_dataset("spoken-digit", "train")
    with pytest.raises(InputError, match="part must be one of train, test; got 'validation'"):
        load_dataset("spoken-digits", "validation")


def test_load_dataset_reads_a_path(tmp_path):
    assert len(load_dataset(write_npz(tmp_path), "test")) == 3
    with pytest.raises(InputError, match=r"none\.ts: cannot be read"):
        load_dataset(tmp_path / "none.ts", "train")
