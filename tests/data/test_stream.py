import json
import re
from dataclasses import replace
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_cases import FEATURES, table_of, write_parquet
from training_cases import QUICK, SMALL

from lstm_compile import load_model
from lstm_compile.cli.app import app
from lstm_compile.data import TableOptions, read_sequences
from lstm_compile.data.stream import Stream
from lstm_compile.errors import InputError
from lstm_compile.training.epoch_batches import AT_ONCE, Reader, Streamed
from lstm_compile.training.prepare import JobRequest, plan_job
from lstm_compile.training.processes import ProcessGroup
from lstm_compile.training.warm_start import initial_params

TRAINING = replace(QUICK, stream=1, batch_size=16)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_parquet(tmp_path_factory.mktemp("stream") / "set")


@pytest.fixture(scope="module")
def stream(folder):
    return parts_of(folder).train


def parts_of(path, training=TRAINING, table=None, **options):
    return plan_job(JobRequest(str(path), SMALL, training, table=table, **options)).parts


def write(folder, *tables, group=500):
    folder.mkdir(parents=True, exist_ok=True)
    for number, table in enumerate(tables):
        pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=group)
    return folder


# ---- what is read


def epoch_of(stream, rank=0, size=1, seed=0, training=TRAINING):
    processes = ProcessGroup(rank, size)
    return Streamed(stream, training, torch.Generator().manual_seed(seed), processes, CPU)


def fed(whole):
    return whole.feed([[rows] for rows in whole.batches])


def test_an_epoch_gives_every_sequence_once_as_it_is_in_memory(folder, stream):
    expected, seen = read_sequences(folder), []
    whole = epoch_of(stream)
    assert len(whole._units) > 3  # pools
    for rows, (batch,) in zip(whole.batches, fed(whole), strict=True):
        seen += rows.tolist()
        numbers = stream.kept[rows]
        for length, label, x in zip(batch.lengths, batch.y, batch.x, strict=True):
            matches = [
                number
                for number in numbers.tolist()
                if expected.lengths[number] == length
                and x[:length].equal(expected.x[expected.offsets[number] :][:length])
            ]
            assert len(matches) == 1
            assert label == expected.y[matches[0]]
            assert not x[length:].any()
    assert sorted(seen) == list(range(len(stream)))


def test_parts_are_those_of_data_in_memory(folder, stream):
    streamed, kept = parts_of(folder), parts_of(folder, replace(TRAINING, stream=0))
    assert streamed.train_rows.equal(kept.train_rows)
    assert streamed.train.y.equal(kept.train.y)
    assert streamed.train.lengths.equal(kept.train.lengths)
    assert streamed.validation.x.equal(kept.validation.x)
    assert streamed.validation.y.equal(kept.validation.y)
    assert stream.schema == kept.train.schema


@pytest.mark.parametrize("kind", ["standard", "minmax", "none"])
@pytest.mark.parametrize("missing", ["error", "forward", "mean", "zero"])
def test_scalers_are_those_of_data_in_memory(tmp_path, kind, missing):
    table = table_of(60)
    if missing != "error":
        holes = np.random.default_rng(0).random(len(table)) < 0.1
        column = pc.if_else(pa.array(holes), None, table["f3"])
        table = table.set_column(table.column_names.index("f3"), "f3", column)
    folder, options = write(tmp_path / "set", table), TableOptions(missing=missing)
    jobs = [
        plan_job(JobRequest(str(folder), {**SMALL, "scaling": kind}, training, table=options))
        for training in (TRAINING, replace(TRAINING, stream=0))
    ]
    streamed, kept = (initial_params(job.config, 0, job.parts.train) for job in jobs)
    for name, value in kept.items():
        torch.testing.assert_close(streamed[name], value, rtol=1e-6, atol=1e-6)
    roles = [job.parts.train.roles for job in jobs]
    assert roles[0].filled == roles[1].filled
    np.testing.assert_allclose(roles[0].means, roles[1].means, rtol=1e-6)
    held = [job.parts.validation.x for job in jobs]
    torch.testing.assert_close(held[0], held[1])


def test_targets_are_numbers_too(tmp_path):
    table = table_of(50)
    ids, first = np.unique(table["id"].to_numpy(), return_inverse=True)
    targets = np.random.default_rng(0).standard_normal((2, len(ids)))
    for name, values in zip("uv", targets, strict=True):
        table = table.append_column(name, pa.array(values[first]))
    folder, options = (
        write(tmp_path / "set", table.drop_columns("label")),
        TableOptions(target=("u", "v")),
    )
    streamed = parts_of(folder, table=options)
    kept = parts_of(folder, replace(TRAINING, stream=0), table=options)
    assert streamed.train.task == "regress"
    assert streamed.train.y.equal(kept.train.y)
    assert streamed.test.y.equal(kept.test.y)


def test_a_file_may_be_a_sequence_over_many_row_groups(tmp_path):
    tables = [table_of(1, number, number, (1200, 1300)) for number in range(6)]
    folder = write(tmp_path / "set", *(table.drop_columns("id") for table in tables), group=100)
    training, expected = replace(TRAINING, validation=0.4), read_sequences(folder)
    stream = parts_of(folder, training).train
    assert len(stream.index.steps) == 6
    for unit in range(6):
        x = torch.from_numpy(stream.index.read(unit)[0])
        assert x.equal(expected.x[expected.offsets[unit] : expected.offsets[unit + 1]])


def test_folders_called_name_value_give_columns(tmp_path):
    for label in "ab":
        table = table_of(20, seed=ord(label), first=ord(label) * 100).drop_columns("label")
        write(tmp_path / f"set/label={label}", table)
    streamed = parts_of(tmp_path / "set")
    assert streamed.train.y.equal(parts_of(tmp_path / "set", replace(TRAINING, stream=0)).train.y)


def test_an_address_is_read_through_pyarrow(folder, tmp_path):
    address = f"file://{quote(str(folder))}"
    found, expected = parts_of(address), parts_of(folder)
    assert found.validation.x.equal(expected.validation.x)
    assert found.train.moments.mean.equal(expected.train.moments.mean)


# ---- plans


@settings(deadline=None, max_examples=40)
@given(
    batch_size=st.integers(1, 200),
    pool_bytes=st.integers(64_000, 2_000_000),
    seed=st.integers(0, 99),
    most=st.sampled_from([0, 1, 17, 1000]),
    size=st.sampled_from([1, 2, 3, 5]),
)
def test_the_content_of_an_epoch_is_the_same_for_any_number_of_processes(
    stream, batch_size, pool_bytes, seed, most, size
):
    stream = replace(stream, pool_bytes=pool_bytes)
    training = replace(TRAINING, batch_size=batch_size, epoch_size=most)
    passes = [epoch_of(stream, rank, size, seed, training) for rank in range(size)]
    batches = passes[0].batches
    count = min(most or len(stream), len(stream))
    assert len(batches) == -(-count // batch_size)
    assert len(torch.cat(batches).unique()) == count == sum(map(len, batches))
    for each in passes[1:]:
        assert all(one.equal(other) for one, other in zip(each.batches, batches, strict=True))
    for rows in batches:
        shares = torch.cat([each.share(rows) for each in passes])
        assert shares.sort().values.equal(rows.sort().values)


def test_processes_read_units_of_their_own(stream):
    size, units = 2, []
    for rank in range(size):
        whole = epoch_of(stream, rank, size)
        assert all(len(pool) > 0 for pool in whole._units)
        units.append({unit for pool in whole._units for unit in pool})
    assert units[0] | units[1] == set(range(len(stream.index.steps)))
    assert len(units[0] & units[1]) < len(units[0]) / 2


def test_little_is_padded(stream):
    stream = replace(stream, pool_bytes=1 << 20)
    whole = epoch_of(stream)
    lengths = stream.lengths
    steps = sum(int(lengths[rows].max()) * len(rows) for rows in whole.batches)
    at_random = sum(int(part.max()) * len(part) for part in lengths.split(16))
    assert steps < 0.8 * at_random


def test_epochs_differ_and_repeat_by_their_seed(stream):
    plans = [stream.plan(16, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    firsts = [plan.batches[0].tolist() for plan in plans]
    assert firsts[0] == firsts[1] != firsts[2]


# ---- memory


def test_few_pools_are_in_memory_and_none_is_read_twice(stream, monkeypatch):
    rooms, read, load, room = [], [], Stream.load, Stream.room
    monkeypatch.setattr(Stream, "room", lambda self: rooms.append(room(self)) or rooms[-1])
    monkeypatch.setattr(
        Stream,
        "load",
        lambda self, units, *room: read.append(tuple(units)) or load(self, units, *room),
    )
    whole = epoch_of(stream)
    for _ in fed(whole):
        pass
    assert len(read) == len(set(read)) == len(whole._units)
    assert len(rooms) <= AT_ONCE + 1  # where a window takes rows of three


def test_a_resumed_epoch_reads_what_is_left_of_it(stream, monkeypatch):
    read = []
    whole = epoch_of(stream)
    original = Stream.load
    monkeypatch.setattr(Stream, "load", lambda *args: read.append(args[1]) or original(*args))
    left = [[rows] for rows in whole.batches[-1:]]
    assert len(list(whole.feed(left))) == 1
    assert len(read) <= AT_ONCE


def test_an_error_of_the_reader_reaches_the_step(folder, tmp_path):
    copied = tmp_path / "set"
    copied.mkdir()
    for file in folder.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    stream = parts_of(copied).train
    whole = epoch_of(stream)
    for file in copied.iterdir():
        pq.write_table(pq.read_table(file).slice(0, 10), file)
    with pytest.raises(InputError, match=r"part-\d\.parquet: changed while it was read"):
        list(fed(whole))


def test_reading_ends_with_the_epoch(stream):
    with Reader(stream, [[0], [1]], [[0], [1]]) as reader:
        assert len(reader.pool(0).sequences) == len(reader.pool(0).numbers)
    assert not reader._thread._threads or not any(t.is_alive() for t in reader._thread._threads)


# ---- what is wrong


def shuffled(table):
    return table.take(np.random.default_rng(0).permutation(len(table)))


def with_cell(table, column, row, value):
    values = table[column].to_pylist()
    values[row] = value
    return table.set_column(table.column_names.index(column), column, pa.array(values))


FOUR = pa.table(
    {
        "id": ["a", "a", "b", "b", "c", "c", "d", "d"],
        "time": [0, 1] * 4,
        "v": [0.0, 1, 2, 3, 4, 5, 6, 7],
        "label": list("xxyyxxyy"),
    }
)
SORT = "sort the rows by sequence and time, or leave --stream out"
WRONG = [
    (
        [FOUR.take([1, 0, 2, 3, 4, 5, 6, 7])],
        ("part-0.parquet, row 2, column 'time': found 0 after 1 in the sequence of id 'a', "
            f"expected times that rise; {SORT}"),
    ),
    (
        [FOUR.take([0, 2, 1, 3, 4, 5, 6, 7])],
        ("part-0.parquet, row 3, column 'id': found 'a' again, which began in part-0.parquet, row "
        f"1, expected the rows of a sequence together; {SORT}"),
    ),
    (
        [FOUR, FOUR.slice(0, 2)],
        ("part-1.parquet, row 1, column 'id': found 'a' again, which began in part-0.parquet, row "
        f"1, expected the rows of a sequence together; {SORT}"),
    ),
    (
        [with_cell(FOUR, "label", 3, "x")],
        ("part-0.parquet, row 4, column 'label': found 'x', expected 'y' as in part-0.parquet, row "
        "3 of the same sequence, id 'b'; give a sequence one label, or learn one a step with "
        "--task tag"),
    ),
    (
        [with_cell(FOUR, "id", 5, None)],
        ("part-0.parquet, row 6, column 'id': found an empty cell, expected a value; mend the cell "
        "or drop the row"),
    ),
    (
        [with_cell(FOUR, "time", 5, None)],
        ("part-0.parquet, row 6, column 'time': found an empty cell, expected a time; mend the "
        "cell or drop the row"),
    ),
    (
        [with_cell(FOUR, "v", 6, float("nan"))],
        ("part-0.parquet, row 7, column 'v': found an empty cell or NaN, expected a finite number; "
        "fill gaps with --missing forward, mean or zero"),
    ),
    ([FOUR.slice(0, 0)], "part-0.parquet: holds no row; expected at least one"),
    (
        [FOUR, FOUR.rename_columns(["id", "time", "w", "label"])],
        ("part-1.parquet: expected the columns of part-0.parquet, but only one of the files has v, "
        "w; give all files the same columns"),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("tables", "message"), WRONG)
def test_wrong_files_are_refused_in_one_line(tmp_path, tables, message):
    folder = write(tmp_path / "set", *tables, group=3)
    with pytest.raises(InputError) as error:
        parts_of(folder)
    assert str(error.value).replace(f"{folder}/", "") == message


def test_large_row_groups_are_refused_with_a_size_that_would_do(tmp_path):
    folder = write(tmp_path / "set", table_of(200), group=1 << 20)
    with pytest.raises(InputError, match=r"row group 0: its sequences take 1 MB, more than") as e:
        parts_of(folder)
    least = int(re.search(r"--stream (\d+) or more", str(e.value))[1])
    assert parts_of(folder, replace(TRAINING, stream=least)).train
    with pytest.raises(InputError):
        parts_of(folder, replace(TRAINING, stream=least - 1))


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ("spoken-digits", {}, "spoken-digits: --stream reads Parquet files, a folder or a glob"),
        ("set/nosuch.parquet", {}, "cannot be read"),
        ("file:///nosuch", {}, "file:///nosuch: cannot be opened (/nosuch"),
        ("nosuch://x/y", {}, "Unrecognized filesystem type in URI: nosuch://x/y"),
        ("set", {"task": "tag"}, "stream is for task classify or regress, the task is tag"),
        ("set", {"table": TableOptions(text="label")}, "--text does not go with --stream"),
        (
            "set",
            {"table": TableOptions(categories=("label",))},
            "leave --stream out, or write one column of 0 and 1 for each category",
        ),
        ("set", {"refit": True}, "refit needs all data in memory; leave --refit or --stream out"),
    ],
)  # fmt: skip
def test_what_does_not_go_with_stream_is_refused(tmp_path, monkeypatch, data, options, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "set", table_of(20))
    (tmp_path / "set/a.txt").write_text("abc")
    training = replace(TRAINING, refit=options.pop("refit", False))
    with pytest.raises(InputError, match=re.escape(message)):
        parts_of(data, training, **options)


def test_an_address_without_stream_is_refused():
    with pytest.raises(InputError, match="s3://a/b: only train --stream MB reads an address"):
        parts_of("s3://a/b", replace(TRAINING, stream=0))


def test_other_formats_are_refused(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a.csv").write_text("id,time,v,label\n1,0,0.5,a\n")
    with pytest.raises(InputError, match="--stream reads Parquet, and this is CSV; write it as"):
        parts_of(tmp_path / "set")


# ---- the command


def invoke(*words):
    result = CliRunner().invoke(app, list(map(str, words)), prog_name="lstm-compile")
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_streamed_run_is_a_run(tmp_path):
    folder = write_parquet(tmp_path / "set", files=2)
    words = ["--stream", 1, "--epochs", 9, "--learning-rate", 0.03, "--output", tmp_path / "run"]
    shown = invoke("train", folder, *words, "--device", "cpu", "--hidden-size", 6)
    assert f"{FEATURES} features, 2 classes" in shown
    assert "72 sequences to train, 8 to validate" in shown
    assert "stream = 1" in (tmp_path / "run/config.toml").read_text()
    assert load_model(tmp_path / "run").schema.classes == ("a", "b")
    found = json.loads(invoke("evaluate", tmp_path / "run", folder, "--json"))
    assert found["metrics"]["accuracy"] > 0.6
