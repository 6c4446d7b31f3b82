import json
import os
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from cli_cases import invoke
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lstm_compile import load_model
from lstm_compile.data import Schema, TableOptions, fingerprint, load_dataset, read_sequences
from lstm_compile.data.tables import long
from lstm_compile.data.tables.columns import ReadRequest
from lstm_compile.errors import InputError

QUICK = [
    *("--epochs", "1", "--hidden-size", "6", "--num-layers", "1", "--batch-size", "16"),
    *("--device", "cpu"),
]
GOOD = "id,time,u,v,label\na,0,1,2,no\na,1,3,4,no\nb,0,5,6,yes\n"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty working directory: `runs/` is relative."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_long(path, *args, **named):
    return long.read_long(ReadRequest(path, *args, **named))


def as_table(data, count=None):
    """A long table of the first `count` sequences, all columns as a person would write them."""
    count = len(data) if count is None else count
    lengths = data.lengths[:count].numpy()
    steps = np.concatenate([np.arange(length) for length in lengths])
    labels = np.array(data.classes)[data.y[:count].numpy()]
    return pa.table(
        {
            "sequence": np.repeat(np.arange(count), lengths),
            "step": steps,
            **{name: data.x[: len(steps), i].numpy() for i, name in enumerate(data.features)},
            "digit": np.repeat(labels, lengths),
        }
    )


def write(table, path):
    if path.suffix == ".csv":
        pa.csv.write_csv(table, path)
    elif path.suffix == ".parquet":
        pa.parquet.write_table(table, path, row_group_size=1000)
    elif path.suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=900)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    return path


def shuffled(table):
    """The first rows of all sequences, whose order is that of the sequences, then the rest."""
    first = np.unique(table["sequence"].to_numpy(), return_index=True)[1]
    rest = np.setdiff1d(np.arange(len(table)), first)
    return table.take(np.concatenate((first, np.random.default_rng(0).permutation(rest))))


def assert_same(found, expected):
    assert found.x.equal(expected.x)
    assert found.offsets.equal(expected.offsets)
    assert found.y.equal(expected.y)
    assert found.schema == expected.schema


# ---- the same data in every format

DIGITS = TableOptions(target=("digit",))


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".arrow", ".jsonl"])
@pytest.mark.parametrize("is_shuffled", [False, True])
def test_every_format_gives_the_bundled_data_bit_for_bit(here, suffix, is_shuffled):
    data = load_dataset("spoken-digits", "test")
    table = as_table(data)
    path = write(shuffled(table) if is_shuffled else table, here / f"digits{suffix}")
    calls = []
    found = load_dataset(
        path, "train", table=DIGITS, progress=lambda done, total: calls.append((done, total))
    )
    assert_same(found, data)
    assert fingerprint(found) == fingerprint(data)
    assert calls[-1] == (len(data.x), len(data.x))
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


@pytest.mark.parametrize("name", ["folder", "folder/*.parquet", "folder/**/*.parquet"])
def test_a_folder_and_a_glob_give_the_bundled_data(here, name):
    data = load_dataset("spoken-digits", "test")
    table = shuffled(as_table(data))
    (here / "folder/.hidden").mkdir(parents=True)
    (here / "folder/.hidden/other.csv").write_text("x\n")
    (here / "folder/_SUCCESS").touch()
    (here / "folder/README.md").write_text("of no format")
    for part in range(4):
        write(table.slice(part * 2000, 2000), here / f"folder/part-{part}.parquet")
    assert_same(load_dataset(name, "train", table=DIGITS), data)


def test_hive_folders_are_columns(here):
    data = load_dataset("spoken-digits", "test")
    table = as_table(data, 40)
    for digit in sorted(set(table["digit"].to_pylist())):
        folder = here / f"a=b/hive/digit={digit}"
        folder.mkdir(parents=True)
        rows = table.filter(pa.compute.equal(table["digit"], digit)).drop_columns(["digit"])
        write(rows, folder / "part.parquet")
    found = read_sequences(here / "a=b/hive", table=DIGITS)
    assert found.classes == tuple(sorted(set(table["digit"].to_pylist())))
    assert len(found) == 40
    assert found.x.sum(dtype=torch.float64) == pytest.approx(
        data.select(torch.arange(40)).x.sum(dtype=torch.float64).item()
    )


def test_files_without_ids_are_one_sequence_each(here):
    for name, label in (("b", "yes"), ("a", "no")):
        (here / f"{name}.csv").write_text(f"time,u,label\n1,3,{label}\n0,2,{label}\n")
    found = read_long("*.csv")
    assert (found.ids, found.x.tolist(), found.y) == (
        ["a.csv", "b.csv"],
        [[2], [3]] * 2,
        ["no", "yes"],
    )
    assert "id: one sequence a file" in found.roles.description


@pytest.mark.slow
def test_the_same_seed_trains_the_same_model_on_a_table_and_on_npz(here):
    data = load_dataset("spoken-digits", "train").select(torch.arange(0, 2700, 45))
    arrays = {"x": data.x, "lengths": data.lengths, "features": np.array(data.features)}
    np.savez("d.npz", **arrays, y=np.array(data.classes)[data.y])
    write(shuffled(as_table(data)), here / "d.csv")
    assert invoke("train", "d.npz", *QUICK, "--output", "npz").exit_code == 0
    result = invoke("train", "d.csv", *QUICK, "--output", "csv", "--target", "digit")
    assert result.exit_code == 0, result.output
    ours, theirs = (load_file(f"{name}/model.safetensors") for name in ("csv", "npz"))
    assert all(theirs[name].equal(value) for name, value in ours.items())
    assert result.stdout.splitlines()[1].startswith(
        "columns     id: sequence (inferred); time: step (inferred); target: digit; features: mfc",
    )
    again = invoke("train", "--config", "csv/config.toml", "--output", "again")
    assert again.exit_code == 0, again.output
    assert Path("csv/config.toml").read_bytes() == Path("again/config.toml").read_bytes()
    assert load_model("csv").training["table"]["target"] == ["digit"]
    write(
        as_table(data).rename_columns(["sequence", "step", *data.features, "digit"]), here / "e.csv"
    )
    shown = invoke("evaluate", "csv", "e.csv")
    assert shown.exit_code == 0, shown.output
    assert "columns     id: sequence; time: step; target: digit;" in shown.stdout
    assert invoke("evaluate", "csv", "d.npz", "--json").stdout == (
        invoke("evaluate", "csv", "e.csv", "--json").stdout
    )


def test_a_glob_names_its_run_after_its_folder(here):
    (here / "folder").mkdir()
    lines = [f"s{i},{t},{i + t},{'ab'[i % 2]}\n" for i in range(20) for t in range(3)]
    (here / "folder/one.csv").write_text("id,t,u,class\n" + "".join(lines))
    result = invoke("train", "folder/*.csv", *QUICK)
    assert result.exit_code == 0, result.output
    assert "run         runs/folder-1\n" in result.stdout


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.integers(0, 99), st.booleans())
def test_shuffled_rows_change_nothing(tmp_path_factory, lengths, seed, is_float):
    random = np.random.default_rng(seed)
    ids = np.repeat(np.arange(len(lengths)), lengths)
    times = np.concatenate([np.sort(random.choice(99, n, replace=False)) for n in lengths])
    table = pa.table(
        {
            "id": [f"s {i}" for i in ids],
            "t": times / 7 if is_float else times,
            "u": random.standard_normal(len(ids), dtype=np.float32),
            "y": (ids % 3) / 4 + 0.1,  # in CSV, whole numbers only would be classes
        }
    )
    folder = tmp_path_factory.mktemp("shuffled")
    mixed = table.take(random.permutation(len(ids)))
    first = read_long(write(table, folder / "a.csv"))
    second = read_long(write(mixed, folder / "b.parquet"))
    order = [first.ids.index(name) for name in second.ids]
    expected = np.split(first.x, np.cumsum(first.lengths)[:-1])
    assert np.array_equal(np.concatenate([expected[i] for i in order]), second.x)
    assert np.array_equal(first.y[order] if is_regression(first) else first.y, second.y)


def is_regression(table):
    return not isinstance(table.y, list)


# ---- kinds of columns


def table_of(here, text, name="t.csv", **options):
    (here / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_long(here / name, TableOptions(**options))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_csv_dialects(here, separator, start, ending):
    found = table_of(here, start + GOOD.replace(",", separator).replace("\n", ending))
    assert (found.x.tolist(), found.y) == ([[1, 2], [3, 4], [5, 6]], ["no", "yes"])
    assert (found.ids, found.lengths.tolist()) == (["a", "b"], [2, 1])


def test_dates_order_the_rows_and_other_columns_are_left_out(here):
    text = 'id,when,u [km/h],note,label\na,2024-01-02,1,"x, y",1\na,2024-01-01T12:00:00,2,z,1\n'
    found = table_of(here, text)
    assert found.x.tolist() == [[2], [1]]
    assert found.y == ["1"]
    assert found.roles.description == (
        "id: id (inferred); time: when (inferred); target: label (inferred); "
        "features: u [km/h] (inferred); left out: note (text)"
    )


def test_units_go_to_the_schema_and_old_files_need_none(here):
    text = "id,time [s],u [km/h],v,y [m]\na,0,1,2,0.5\n"
    data = read_sequences(write_text(here / "t.csv", text))
    assert data.schema == Schema(("u [km/h]", "v"), (), ("y [m]",), ("km/h", "", "m"))
    assert Schema.from_json(data.schema.to_json()) == data.schema
    plain = Schema(("u",), (), ("y",))
    assert plain.units == ()
    assert "units" not in plain.to_json()
    with pytest.raises(InputError, match="units must be 2, one a feature and target, found 1"):
        Schema(("u",), (), ("y",), ("m",))


def outcome(path):
    try:
        return "finite" if np.isfinite(read_long(path).x).all() else "not finite"
    except InputError as error:
        return str(error)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([".csv", ".jsonl", ".parquet", ".arrow"]), st.data())
def test_flipped_bytes_are_read_or_refused_in_one_line(tmp_path_factory, suffix, data):
    folder = tmp_path_factory.mktemp("flipped")
    path = write(pa.csv.read_csv(write_text(folder / "good.csv", GOOD)), folder / f"t{suffix}")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    assert re.fullmatch(r"finite|.*t\.(csv|jsonl|parquet|arrow).*", outcome(path))  # one line


def write_text(path, text):
    path.write_text(text)
    return path


def test_labels_of_every_type(here):
    cases = {
        "text": (["x", "y"], ["x", "y"]),
        "integer": ([3, 12], ["3", "12"]),
        "bool": ([True, False], ["True", "False"]),
        "dictionary": (pa.array(["x", "y"]).dictionary_encode(), ["x", "y"]),
    }
    for kind, (labels, expected) in cases.items():
        table = pa.table({"id": [0, 1], "t": [0, 0], "u": [1.0, 2.0], "label": labels})
        assert read_long(write(table, here / f"{kind}.parquet")).y == expected
    table = pa.table({"id": [0, 1], "t": [0, 0], "u": [1.0, 2.0], "a": [1.5, 2], "b": [3, 4]})
    found = read_long(write(table, here / "targets.parquet"), TableOptions(target=("b", "a")))
    assert found.y.dtype == np.float32
    assert (found.y.tolist(), found.targets) == ([[3, 1.5], [4, 2]], ("b", "a"))
    assert is_regression(table_of(here, "id,t,u,y\na,0,1,3\nb,0,1,2.5\n"))
    assert not is_regression(table_of(here, "id,t,u,y\na,0,1,3\nb,0,1,2\n"))


def test_a_schema_picks_columns_by_name(here):
    schema = Schema(("v", "u"), ("yes", "no"), ())
    data = read_sequences(write_text(here / "t.csv", GOOD), schema=schema)
    assert (data.x.tolist(), data.y.tolist()) == ([[2, 1], [4, 3], [6, 5]], [1, 0])
    unlabelled = re.sub(r",\w+$", "", GOOD, flags=re.MULTILINE)
    for text in (GOOD, unlabelled):
        found = read_long(write_text(here / "t.csv", text), schema=schema, labelled=False)
        assert (found.x.tolist(), found.y.shape) == ([[2, 1], [4, 3], [6, 5]], (2, 0))
    regress = Schema(("u",), (), ("v",))
    data = read_sequences(write_text(here / "t.csv", "id,t,u,v\na,0,1,2\n"), schema=regress)
    assert data.y.tolist() == [[2]]


GAPS = "id,t,u,label\na,0,,x\na,1,4,x\na,2,NaN,x\nb,0,inf,x\nb,1,2,x\n"


@pytest.mark.parametrize(
    ("missing", "expected"),
    [("zero", [0, 4, 0, 0, 2]), ("mean", [3, 4, 3, 3, 2]), ("forward", [3, 4, 4, 3, 2])],
)
def test_gaps_are_filled(here, missing, expected):
    found = table_of(here, GAPS, missing=missing)
    assert found.x[:, 0].tolist() == expected
    assert found.roles.description.endswith(f"missing: {missing} (3 values filled)")
    table = pa.csv.read_csv(here / "t.csv")
    for suffix in (".parquet", ".arrow", ".jsonl"):
        path = write(table, here / f"t{suffix}")
        assert read_long(path, TableOptions(missing=missing)).x[:, 0].tolist() == expected


def test_gaps_in_later_data_take_the_means_of_training(here):
    write_text(here / "train.csv", "id,t,u,label\n" + "".join(
        f"{name},{step},{value},{name[0]}\n"
        for name, value in {"x0": 10, "x1": 20, "y0": 30, "y1": ""}.items()
        for step in range(2)
    ))  # fmt: skip
    result = invoke("train", "train.csv", *QUICK, "--missing", "mean", "--output", "run")
    assert result.exit_code == 0, result.output
    stored = load_model("run").training["table"]
    assert stored["means"] == [20.0]
    write_text(here / "new.csv", "id,t,u,label\nq,0,,x\nq,1,100,x\n")
    assert read_long("new.csv", TableOptions(missing="mean")).x.tolist() == [[100], [100]]
    later = read_long("new.csv", TableOptions().over(stored), schema=load_model("run").schema)
    assert later.x.tolist() == [[20], [100]]
    again = invoke("train", "--config", "run/config.toml", "--output", "again")
    assert again.exit_code == 0, again.output
    strict = invoke("evaluate", "run", "new.csv", "--missing", "error")
    assert (strict.exit_code, strict.stdout) == (2, "")
    assert "new.csv" in strict.stderr
    assert "column 'u'" in strict.stderr


def test_row_numbers_that_pandas_writes_are_no_feature(here):
    found = table_of(here, ",id,t,u,label\n0,a,0,1,x\n1,a,1,2,x\n")
    assert found.features == ("u",)
    assert found.roles.description.endswith("left out: Unnamed: 0 (number)")
    names = ["__index_level_0__", "id", "t", "u", "label"]
    table = pa.csv.read_csv(here / "t.csv").rename_columns(names)
    assert read_long(write(table, here / "t.parquet")).features == ("u",)


def test_types_of_columns(here):
    when = pa.array([2, 1, 3], pa.timestamp("ns", "Europe/Berlin"))
    columns = {
        "id": pa.array(["a", "a", "b"], pa.large_string()),
        "when": when,
        "a.b": pa.array([1.5, 2.5, 3.5], pa.float16()),
        "a": pa.array([{"b": 1}] * 3),
        "c": pa.array([True, False, True]),
        "d": pa.array(["1.25", "2", "3"]).cast(pa.decimal128(5, 2)),
        "e": pa.array([1, 2, 3], pa.uint8()).dictionary_encode(),
        "f": pa.array([1, 2, 1 << 63], pa.uint64()),
        "y": pa.array(["p", "p", "q"]).dictionary_encode(),
    }
    expected = [[2.5, 0, 2, 2, 2], [1.5, 1, 1.25, 1, 1], [3.5, 1, 3, 3, float(1 << 63)]]
    for suffix in (".parquet", ".arrow"):
        found = read_long(write(pa.table(columns), here / f"t{suffix}"))
        assert found.features == ("a.b", "c", "d", "e", "f")
        assert (found.x.tolist(), found.y, found.ids) == (expected, ["p", "q"], ["a", "b"])
        assert found.roles.left_out == (("a", "other"),)
    with pytest.raises(
        InputError, match=r"column 'when': found '1970-01-01 .*2\+0100' .*, expected a num"
    ):
        read_long(here / "t.parquet", TableOptions(id="id", time="e", features=("when",)))
    same = pa.table({**columns, "when": when.take([0, 0, 0])})
    with pytest.raises(InputError, match=r"column 'when': found 1970-01-01T.*2 again in the seq"):
        read_long(write(same, here / "t.parquet"))


def test_an_arrow_stream_is_read_as_a_file_is(here):
    table = pa.csv.read_csv(write_text(here / "t.csv", GOOD))
    with pa.OSFile("t.arrow", "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    assert read_long("t.arrow").x.tolist() == read_long("t.csv").x.tolist()


def test_json_lines_of_changing_numbers(here, monkeypatch):
    monkeypatch.setattr("lstm_compile.data.tables.formats.BLOCK_BYTES", 50)
    rows = [("a", 0, None, 3), ("a", 1, 2, 3), ("b", 0.5, 2.5, 3.5), ("b", 1, 1, 3.5)]
    lines = [json.dumps(dict(zip(("id", "t", "u", "y"), row, strict=True))) for row in rows]
    write_text(here / "t.jsonl", "\n".join(lines))
    found = read_long("t.jsonl", TableOptions(missing="zero"))
    assert found.x[:, 0].tolist() == [0, 2, 2.5, 1]
    assert found.y.tolist() == [[3], [3.5]]


def test_a_sequence_of_one_row_is_legal(here):
    assert table_of(here, "id,t,u,label\na,0,1,x\n").lengths.tolist() == [1]


def test_rows_together_need_no_time(here):
    found = table_of(here, "id,u,label\nb,1,x\nb,0,x\na,2,y\n")
    assert (found.ids, found.x.tolist()) == (["b", "a"], [[1], [0], [2]])
    assert "time: none, the order of the rows counts" in found.roles.description


# ---- what is refused


def parquet_of(**columns):
    sink = pa.BufferOutputStream()
    base = {"id": ["a", "b"], "t": [0, 0], "u": [1.0, 2.0], "label": ["x", "y"]}
    pa.parquet.write_table(pa.table({**base, **columns}), sink)
    return sink.getvalue().to_pybytes()


def row(line):
    """A good table with one more row, its fourth."""
    return GOOD + line + "\n"


MEND = "mend the cell or drop the row"
REFUSED = [
    # columns
    (
        "t.csv",
        GOOD,
        ["--id", "idd"],
        "t.csv: no column 'idd' for --id; found id, time, u, v, label; did you mean 'id'?",
    ),
    (
        "t.csv",
        GOOD,
        ["--time", "tiem"],
        "no column 'tiem' for --time; found id, time, u, v, label; did you mean 'time'?",
    ),
    (
        "t.csv",
        GOOD,
        ["--target", "lable"],
        "no column 'lable' for --target; found id, time, u, v, label; did you mean 'label'?",
    ),
    (
        "t.csv",
        GOOD,
        ["--features", "u,w"],
        "no column 'w' for --features; found id, time, u, v, label",
    ),
    (
        "t.csv",
        GOOD,
        ["--features", "u,u"],
        "column 'u' is asked for as --features and as --features; a column has one role",
    ),
    (
        "t.csv",
        GOOD,
        ["--target", "u", "--features", "u"],
        "column 'u' is asked for as --target and as --features; a column",
    ),
    (
        "t.csv",
        GOOD,
        ["--id", "time", "--time", "time"],
        "column 'time' is asked for as --id and as --time; a column has",
    ),
    (
        "t.csv",
        GOOD,
        ["--features", ""],
        "Invalid value for '--features': expected names of columns separated by commas, got ''",
    ),
    ("t.csv", GOOD, ["--id", ""], "id must be the name of a column, got ''"),
    (
        "t.csv",
        GOOD,
        ["--missing", "forwrd"],
        "Invalid value for '--missing': 'forwrd' is not one of 'error', 'forward', ",
    ),
    ("t.csv", "id,u,u,label\na,1,2,x\n", [], "t.csv: two columns are called 'u'"),
    (
        "t.csv",
        "u,v,label\n1,2,x\n",
        [],
        "no column called id, sequence, sequence_id, series, series_id, seq, seq_id, unit_id, uni",
    ),
    (
        "t.csv",
        "id,t,u\na,0,1\n",
        [],
        "no column called target, label, class, y, found id (text), t (number), u (number); name ",
    ),
    (
        "t.csv",
        "id,t,n,label\na,0,x,x\n",
        [],
        "no column of numbers left, found id (text), t (number), n (text), label (text); name the",
    ),
    (
        "t.csv",
        "id,t,u,label,y\na,0,1,2,3\n",
        [],
        "columns label, y could all be the target; choose with --target",
    ),
    (
        "t.csv",
        "id,t,frame,u,label\na,0,1,2,3\n",
        [],
        "columns t, frame could all be the time; choose with --time",
    ),
    # cells
    (
        "t.csv",
        row("b,1,x,6,yes"),
        [],
        "t.csv, row 4, column 'u': found 'x', expected a number; mend the cell, or choose columns",
    ),
    (
        "t.csv",
        row("b,1,1_000,6,yes"),
        [],
        "t.csv, row 4, column 'u': found '1_000', expected a number",
    ),
    (
        "t.csv",
        row("b,1,\x006,6,yes"),
        [],
        "t.csv, row 4, column 'u': found '\\x006', expected a number",
    ),
    (
        "t.csv",
        "id,t,u,note,label\na,0,1,so,x\n",
        ["--features", "u,note"],
        "t.csv, row 1, column 'note': found 'so', expected a number",
    ),
    (
        "t.csv",
        "id,t,u,note,label\na,0,1,2024-01-01,x\n",
        ["--features", "u,note"],
        "t.csv, row 1, column 'note': found '2024-01-01', expected a number",
    ),
    (
        "t.csv",
        row("b,1,,6,yes"),
        [],
        "t.csv, row 4, column 'u': found an empty cell or NaN, expected a finite number; fill gap",
    ),
    (
        "t.csv",
        row("b,1,1,NA,yes"),
        [],
        "t.csv, row 4, column 'v': found an empty cell or NaN, expected a finite number",
    ),
    (
        "t.csv",
        row("b,1,1,-inf,yes"),
        [],
        "t.csv, row 4, column 'v': found -inf, expected a finite number",
    ),
    (
        "t.csv",
        row("b,1,1e39,6,yes"),
        [],
        "t.csv, row 4, column 'u': found 1e+39, expected a number within float32",
    ),
    (
        "t.csv",
        row("b,1,-1e999,6,yes"),
        ["--missing", "zero"],
        "t.csv, row 4, column 'u': found '-1e999', expected a number within float32",
    ),
    (
        "t.csv",
        row("b,1,6,yes"),
        [],
        "t.csv, row 4: expected 5 columns, found 4; mend or drop the row",
    ),
    (
        "t.csv",
        row("b,1,6,7,yes,9"),
        [],
        "t.csv, row 4: expected 5 columns, found 6; mend or drop the row",
    ),
    (
        "t.csv",
        row(",1,6,7,yes"),
        [],
        f"t.csv, row 4, column 'id': found an empty cell, expected a value; {MEND}",
    ),
    (
        "t.csv",
        row("b,0,6,7,yes"),
        [],
        "t.csv, row 4, column 'time': found 0 again in the sequence of id 'b', first in t.csv, ro",
    ),
    (
        "t.csv",
        row("b,,6,7,yes"),
        [],
        f"t.csv, row 4, column 'time': found an empty cell, expected a time; {MEND}",
    ),
    (
        "t.csv",
        row("b,soon,6,7,yes"),
        [],
        "t.csv, row 4, column 'time': found 'soon', expected a number or an ISO 8601 date",
    ),
    (
        "t.csv",
        row("b,2024-01-01,6,7,yes"),
        [],
        "t.csv, row 4, column 'time': found '2024-01-01', expected a number or an ISO 8601 date",
    ),
    (
        "t.csv",
        row("b,nan,6,7,yes"),
        [],
        "t.csv, row 4, column 'time': found nan, expected a finite time",
    ),
    (
        "t.csv",
        row("b,1,6,7,no"),
        [],
        "t.csv, row 4, column 'label': found 'no', expected 'yes' as in t.csv, row 3 of the same ",
    ),
    (
        "t.csv",
        row("b,1,6,7,"),
        [],
        "row 4, column 'label': found an empty cell, expected a value; write the label of the seq",
    ),
    (
        "t.csv",
        "id,t,u,a,b\na,0,1,2.5,x\n",
        ["--target", "a,b"],
        "t.csv, row 1, column 'b': found 'x', expected a finite float32 number to predict; mend i",
    ),
    (
        "t.csv",
        "id,t,u,a,b\na,0,1,2.5,1e39\n",
        ["--target", "a,b"],
        "t.csv, row 1, column 'b': found '1e39', expected a finite float32",
    ),
    (
        "t.csv",
        "id,u,label\na,1,x\nb,2,x\na,3,x\n",
        [],
        "t.csv, row 3: the sequence of id 'a' goes on after another began; expected its rows toge",
    ),
    (
        "t.csv",
        "id,t,u,label\na,0,,x\nb,0,,x\n",
        ["--missing", "mean"],
        "t.csv, column 'u': found no value in any row, expected one to fill gaps with (--missing ",
    ),
    # files
    ("t.csv", "", [], "t.csv: the file is empty; expected a table"),
    (
        "t.csv",
        "\n",
        [],
        "t.csv: no names of columns; expected a line of them",
    ),
    ("t.csv", "id,t,u,label\n", [], "t.csv: no row below the header; expected at least one"),
    (
        "t.csv",
        row("b,1,6,7,yes").encode() + b"c,0,1,2,\xe9t\xe9\n",
        [],
        "t.csv, line 6: byte 72 is not UTF-8; save the file as UTF-8",
    ),
    (
        "t.csv",
        GOOD.encode().replace(b"yes", b"\xff"),
        [],
        "t.csv, line 4: byte 48 is not UTF-8; save the file as UTF-8",
    ),
    (
        "t.csv",
        GOOD.encode("utf-16"),
        [],
        "t.csv: its text is UTF-16 and not utf-8; read it with --encoding utf-16",
    ),
    (
        "t.csv",
        row("b,1," + "6" * (9 << 20) + ",6,yes"),
        [],
        "t.csv: a row is longer than 4 MB; is a quote not closed?",
    ),
    ("t.csv", row('b,1,"6,6,yes'), [], "t.csv, row 4: expected 5 columns, found 3"),
    (
        "t.parquet",
        GOOD,
        [],
        "t.parquet: not a complete .parquet file (Parquet magic bytes not found in footer",
    ),
    (
        "t.parquet",
        parquet_of()[:-100],
        [],
        "t.parquet: not a complete .parquet file (Parquet magic bytes not found",
    ),
    ("t.parquet", parquet_of()[:40] + b"\xff" * 300 + parquet_of()[340:], [], "t.parquet: "),
    (
        "t.parquet",
        parquet_of(w=[[1.0], [2.0]]),
        ["--features", "w"],
        "t.parquet, row 1, column 'w': found [1.0] (list<element: double>), expected a number",
    ),
    (
        "t.parquet",
        parquet_of(id=["a", None]),
        [],
        f"t.parquet, row 2, column 'id': found an empty cell, expected a value; {MEND}",
    ),
    (
        "t.parquet",
        parquet_of(id=[1.0, float("nan")]),
        [],
        "t.parquet, row 2, column 'id': found an empty cell, expected a value",
    ),
    (
        "t.parquet",
        parquet_of(t=[0.0, float("inf")]),
        [],
        "t.parquet, row 2, column 't': found inf, expected a finite time",
    ),
    (
        "t.parquet",
        parquet_of(t=pa.array([0, 1 << 63], pa.uint64())),
        [],
        "t.parquet, row 2, column 't': found 9223372036854775808, expected a time",
    ),
    (
        "t.parquet",
        parquet_of(label=[["x"], ["y"]]),
        [],
        "t.parquet, row 1, column 'label': found ['x'] (list<element: string>), expected text or ",
    ),
    (
        "t.parquet",
        parquet_of(label=[1.0, None]),
        [],
        "t.parquet, row 2, column 'label': found an empty cell, expected a value",
    ),
    (
        "t.parquet",
        parquet_of(label=[1.0, float("inf")]),
        [],
        "t.parquet, row 2, column 'label': found inf, expected a finite float32 number to predict",
    ),
    (
        "t.parquet",
        parquet_of(u=[1.0, None]),
        [],
        "t.parquet, row 2, column 'u': found an empty cell or NaN, expected a finite number",
    ),
    ("t.arrow", GOOD, [], "t.arrow: not a complete .arrow file ("),
    ("t.feather", "short", [], "t.feather: not a complete .feather file (Expected to read "),
    (
        "t.jsonl",
        '{"id":"a","t":0,"u":1,"label":"x"}\n{"id":"b","t":0,"u":"1","label":"x"}\n',
        [],
        "t.jsonl, row 2, column 'u': found '1', text, but the rows before hold numbers; give a co",
    ),
    (
        "t.jsonl",
        '{"id":"a","t":0,"u":1,"label":"x"}\n\n{"id":"b"\n',
        [],
        "t.jsonl, row 2: not a JSON object (",
    ),
    (
        "t.jsonl",
        '{"id":"a","t":0,"u":1,"label":"x"}\n[1]\n',
        [],
        "t.jsonl, row 2: expected a JSON object, found b'[1]\\n'",
    ),
    (
        "t.jsonl",
        '{"id":"a","t":0,"u":1,"label":"x"}\n{"id":"b","t":0,"label":"x"}\n',
        [],
        "t.jsonl, row 2, column 'u': found an empty cell or NaN, expected a finite number",
    ),
    (
        "t.jsonl",
        b'{"id":"\xff","t":0,"u":1,"label":"x"}\n',
        [],
        "t.jsonl, line 1: byte 7 is not UTF-8; save the file as UTF-8",
    ),
    (
        "t.jsonl",
        '{"id":"a","t":0,"u":{"v":1},"label":"x"}\n',
        ["--features", "u"],
        "t.jsonl, row 1, column 'u': found {'v': 1} (struct<v: int64>), expected a number",
    ),
]


@pytest.mark.parametrize(("name", "content", "args", "message"), REFUSED)
def test_train_refuses_in_one_line_and_writes_nothing(here, name, content, args, message):
    (here / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    before = sorted(here.rglob("*"))
    assert_refused(invoke("train", name, *QUICK, *args), message)
    assert sorted(here.rglob("*")) == before


def assert_refused(result, message):
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    error = result.stderr.splitlines()[-1]
    assert error.startswith("Error: ")
    assert message in error
    assert "Traceback" not in result.output
    usage = "Usage: lstm-compile"
    assert len(result.stderr.splitlines()) == 1 or result.stderr.startswith(usage)


SETS = [
    ({}, "folder", [], "folder: no file here; expected files that end in .csv, .parquet, .arrow, "),
    ({}, "absent/*.csv", [], "absent/*.csv: no file here; expected files that end in .csv, .parqu"),
    ({}, "absent.csv", [], "absent.csv: cannot be read (No such file or directory)"),
    (
        {"a.csv": GOOD, "b.jsonl": "{}"},
        "folder",
        [],
        "folder: files of 2 formats: CSV, JSON Lines; e",
    ),
    (
        {"a.csv": GOOD, "b.txt": "x"},
        "folder/*",
        [],
        "folder/*: files of 2 formats: .txt, CSV; expect",
    ),
    (
        {"a.txt": "x"},
        "folder/*",
        [],
        "folder/a.txt: expected a file that ends in .csv, .parquet, .arr",
    ),
    (
        {"a.csv": GOOD, "b.csv": GOOD.replace("v", "w", 1)},
        "folder",
        [],
        "folder/b.csv: expected the columns of folder/a.csv, but only one of the files has v, w; ",
    ),
    (
        {"a.parquet": parquet_of(id=[1, 2]), "b.parquet": parquet_of()},
        "folder",
        [],
        "folder/b.parquet, column 'id': found string, expected int64 as in folder/a.parquet; give",
    ),
    (
        {"a.csv": GOOD, "b.csv": "id,time,u,v,label\n"},
        "folder",
        [],
        "folder/b.csv: no row below the header; expected at least one",
    ),
    (
        {"a.csv": GOOD, "b.csv": GOOD},
        "folder",
        [],
        "folder/b.csv, row 1, column 'time': found 0 again in the sequence of id 'a', first in fo",
    ),
    (
        {"a.csv": "id,u,label\na,1,x\n", "b.csv": "id,u,label\na,2,x\n"},
        "folder",
        [],
        "folder/b.csv, row 1: the sequence of id 'a' began in another file; expected it in one fi",
    ),
    (
        {"a.csv": GOOD, "b.csv": "id,time,u,v,label\nc,2024-01-01,1,2,no\n"},
        "folder",
        [],
        "folder/b.csv, row 1, column 'time': found dates, expected numbers; one kind in all rows",
    ),
]


@pytest.mark.parametrize(("contents", "data", "args", "message"), SETS)
def test_train_refuses_sets_of_files(here, contents, data, args, message):
    (here / "folder").mkdir()
    for name, content in contents.items():
        (here / "folder" / name).write_bytes(
            content if isinstance(content, bytes) else content.encode()
        )
    assert_refused(invoke("train", data, *QUICK, *args), message)
    assert not (here / "runs").exists()


@pytest.mark.parametrize("name", ["spoken-digits", "d.npz"])
def test_flags_of_tables_are_refused_for_other_formats(here, name):
    np.savez(here / "d.npz", x=np.ones((2, 1)), lengths=[1, 1], y=["a", "b"])
    result = invoke("train", name, *QUICK, "--id", "x", "--decimal", ",")
    assert_refused(result, "--id, --decimal says how to read a long table; leave it out, or name a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,time,u,label\na,0,1,no\n", "no column 'v' for --features; found id, time, u, label"),
        (GOOD.replace("yes", "yse"), "sequence 1 (id 'b'): unknown class 'yse'; known are no, yes"),
        (
            GOOD.replace("time", "tiem"),
            "no column 'time' for --time; found id, tiem, u, v, label; d",
        ),
    ],
)
def test_evaluate_refuses_tables_that_do_not_fit(here, text, message):
    rows = "".join(f"s{i},{t},{i},{t},{('no', 'yes')[i % 2]}\n" for i in range(20) for t in (0, 1))
    (here / "t.csv").write_text("id,time,u,v,label\n" + rows)
    assert invoke("train", "t.csv", *QUICK, "--output", "run").exit_code == 0
    (here / "e.csv").write_text(text)
    assert_refused(invoke("evaluate", "run", "e.csv"), message)
    renamed = write_text(here / "f.csv", GOOD.replace("time", "tiem"))
    assert invoke("evaluate", "run", renamed, "--time", "tiem").exit_code == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[table]\nidd = 'x'",
            "unknown keys ['idd'] in [table]; known are ['id', 'time', 'target', ",
        ),
        ("[table]\nid = 3", "[table] id must be the name of a column, got 3"),
        ("[table]\nfeatures = 'u'", "[table] features must be a list of column names, got 'u'"),
        (
            "[table]\nmissing = 'no'",
            "[table] missing must be one of error, forward, mean, zero; got",
        ),
        (
            "[tabel]\nid = 'x'",
            "unknown key 'tabel'; known are data, test, task, [model], [training], [table",
        ),
    ],
)
def test_a_wrong_table_section_is_refused(here, text, message):
    (here / "some.toml").write_text(text)
    (here / "t.csv").write_text(GOOD)
    assert_refused(invoke("train", "t.csv", "--config", "some.toml"), message)


def test_a_file_that_cannot_be_opened(here):
    (here / "t.csv").write_text(GOOD)
    os.chmod(here / "t.csv", 0)
    if os.access(here / "t.csv", os.R_OK):
        pytest.skip("root reads everything")
    assert_refused(invoke("train", "t.csv"), "t.csv: cannot be read (Permission denied)")
