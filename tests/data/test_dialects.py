"""Tables as other programs write them; pandas reads the same files, and each cell is compared."""

import csv
import json
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from cli_cases import invoke, invoke_small
from hypothesis import given, settings
from hypothesis import strategies as st

from lstm_compile import load_model
from lstm_compile.data import Schema, TableOptions
from lstm_compile.data.series.reader import read_series
from lstm_compile.data.tables.columns import ReadRequest
from lstm_compile.data.tables.long import read_long
from lstm_compile.errors import InputError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty working directory: `runs/` is relative."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table_of(path, text, written="utf-8", **options):
    path.write_bytes(text.encode(written))
    return read_long(ReadRequest(path, TableOptions(**options)))


def refused(path, text, written="utf-8", **options):
    with pytest.raises(InputError) as caught:
        table_of(path, text, written, **options)
    assert str(caught.value).isprintable()
    return str(caught.value)


def hourly(count=120):
    times = pd.date_range("2024-01-01", periods=count, freq="h")
    return pd.DataFrame({"y": np.round(50 + 10 * np.sin(np.arange(count) / 4), 3)}, index=times)


# ---- what pandas compares: every cell of random tables in random dialects

CELL = st.text("aZß\"',;|\t\n0é 1.-", min_size=1, max_size=6)
NUMBERS = st.one_of(
    st.lists(st.integers(-(10**6), 10**6), min_size=12, max_size=12),
    st.lists(st.booleans(), min_size=12, max_size=12),
    st.lists(
        st.floats(-1e6, 1e6) | st.sampled_from([1e-7, 2.5e12, None]), min_size=12, max_size=12
    ).filter(lambda values: sum(value is not None for value in values) > 0),
)
NAMES = ["u", " v ", "größe", 'a "b"', "x,y", "x;y", "p|q"]
DIALECTS = st.fixed_dictionaries(
    {
        "sep": st.sampled_from([",", ";", "\t", "|"]),
        "decimal": st.sampled_from([".", ","]),
        "encoding": st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252", "latin-1"]),
        "quoting": st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
        "lineterminator": st.sampled_from(["\n", "\r\n"]),
        "index": st.booleans(),
    }
)
ABOVE_NAMES = st.sampled_from(["", "sep={sep}\n", "# one, two; {sep}\n\n", '"sep={sep}"\r\n#\n'])


@settings(deadline=None, max_examples=150)
@given(
    DIALECTS,
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True),
    st.lists(CELL, min_size=3, max_size=3, unique=True),
    ABOVE_NAMES,
    st.data(),
)
def test_every_cell_is_what_pandas_reads(tmp_path_factory, dialect, names, ids, above, data):
    rows = 12
    path = tmp_path_factory.mktemp("dialects") / "t.csv"
    columns = {"id": np.repeat(ids, 4), " t": np.tile(np.arange(4), 3)}
    columns |= {name: data.draw(NUMBERS) for name in names}
    frame = pd.DataFrame(columns | {"label ": np.repeat(["ja", "n;ein, so", "ä"], 4)})
    above = above.format(**dialect)
    with path.open("w", encoding=dialect["encoding"], newline="") as file:
        file.write(above)
        frame.to_csv(file, **dialect)
    known = {key: dialect[key] for key in ("sep", "decimal", "encoding")}
    known["skiprows"] = above.count("\n")
    texts = {"id": str, "label ": str}
    expected = pd.read_csv(path, **known, dtype=texts, keep_default_na=False, na_values=[""])
    options = TableOptions(
        features=tuple(name.strip() for name in names), missing="zero", decimal=known["decimal"],
        encoding=None if known["encoding"].startswith("utf-8") else known["encoding"],
    )  # fmt: skip
    found = read_long(ReadRequest(path, options))
    assert found.ids == expected["id"].unique().tolist()
    assert found.lengths.tolist() == [4] * (rows // 4)
    assert found.y == expected["label "].iloc[::4].tolist()
    values = expected[names].astype(np.float64).fillna(0).to_numpy()
    assert np.array_equal(found.x, values.astype(np.float32))


@settings(deadline=None, max_examples=40)
@given(
    DIALECTS,
    st.sampled_from(["h", "D", "15min", "MS"]),
    st.sampled_from([None, "", "date", " when "]),
    st.lists(st.floats(-1e5, 1e5, width=32), min_size=12, max_size=12),
)
def test_every_cell_of_a_series_is_what_pandas_reads(
    tmp_path_factory, dialect, freq, title, values
):
    path = tmp_path_factory.mktemp("dialects") / "t.csv"
    times = pd.date_range("2023-12-30" if freq != "MS" else "2023-11-01", periods=12, freq=freq)
    dialect = {**dialect, "index": True}
    pd.DataFrame({"wert ": values}, index=times).to_csv(path, **dialect, index_label=title)
    known = {key: dialect[key] for key in ("sep", "decimal", "encoding")}
    expected = pd.read_csv(path, **known, index_col=0, parse_dates=[0])
    encoding = None if known["encoding"].startswith("utf-8") else known["encoding"]
    table = read_series(path, TableOptions(decimal=known["decimal"], encoding=encoding))
    assert table.roles.options.time == (title or "time").strip()
    stamps = table.stamps(table.ticks).astype("M8[s]")
    assert np.array_equal(stamps, expected.index.to_numpy().astype("M8[s]"))
    assert np.array_equal(
        table.x[:, 0].astype(np.float32), expected["wert "].to_numpy().astype(np.float32)
    )


TYPES = {
    "categories": lambda values: pd.Categorical(values),
    "nullable": lambda values: pd.array(values, "Int32"),
    "arrow": lambda values: pd.array(values, "int64[pyarrow]"),
    "small": lambda values: np.array(values, np.int8),
    "half": lambda values: np.array(values, np.float16),
    "decimal": lambda values: [Decimal(value) / 4 for value in values],
    "bool": lambda values: np.array(values) > 0,
    "texts": lambda values: pd.array(list(map(str, values)), "string"),
}


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from(sorted(TYPES)), st.lists(st.integers(-9, 9), min_size=6, max_size=6),
        min_size=1,
    ),
    st.sampled_from(["parquet", "feather", "arrow"]),
)  # fmt: skip
def test_every_type_is_what_pandas_reads(tmp_path_factory, columns, suffix):
    path = tmp_path_factory.mktemp("types") / f"t.{suffix}"
    made = {name: TYPES[name](values) for name, values in columns.items()}
    frame = pd.DataFrame(
        {"id": pd.Categorical(["a", "b"] * 3), "t": pd.date_range("2024", periods=6), **made}
    )
    frame["y"] = pd.array(list("pqpqpq"), "string")
    write, read = (
        (frame.to_parquet, pd.read_parquet) if suffix == "parquet" else (frame.to_feather, None)
    )
    write(path)
    expected = (read or pd.read_feather)(path)
    found = read_long(ReadRequest(path, TableOptions(features=tuple(columns))))
    assert (found.ids, found.y) == (["a", "b"], ["p", "q"])
    for index, name in enumerate(columns):
        cells = [float(cell) for cell in expected[name]]
        assert found.x[:, index].tolist() == [*cells[::2], *cells[1::2]]


# ---- the first line


def test_a_series_as_pandas_writes_it_is_forecast_under_its_own_names(here):
    hourly().to_csv("t.csv")
    settings = ("--task", "forecast", "--context", 12, "--horizon", 3)
    result = invoke_small("train", "t.csv", *settings, "--output", "run")
    assert result.exit_code == 0, result.output
    assert "time: time (inferred); target: y (inferred)" in result.stdout
    assert load_model("run").training["table"]["time"] == "time"
    assert invoke("evaluate", "run").exit_code == 0
    done = invoke("predict", "run", "t.csv", "--output", "f.csv")
    assert done.exit_code == 0, done.output
    assert pd.read_csv("f.csv").columns.tolist() == ["time", "y"]


def test_nameless_columns_get_names_that_flags_can_name(here):
    path = here / "t.csv"
    found = table_of(path, ",t,u,label\ns,0,1,x\ns,1,2,x\n", id="Unnamed: 0")
    assert (found.ids, found.x[:, 0].tolist()) == (["s"], [1, 2])
    twice = table_of(path, ",Unnamed: 0,id,t,u,label,\n0,0,a,0,7,x,\n1,1,a,1,8,x,\n")
    assert (twice.features, twice.x.tolist()) == (("u",), [[7], [8]])
    names = [name for name, _ in twice.roles.left_out]
    assert names == ["Unnamed: 0_", "Unnamed: 0", "Unnamed: 6"]
    both = ",time,id,u,label\n2024-01-02,0,a,1,x\n"
    assert "columns time_, time could all be" not in refused(path, both, time="tim")
    assert table_of(path, both).roles.left_out == (("time_", "date"),)


def test_blanks_around_names_are_left_out(here):
    text = "id , time, u [m] ,label\na, 1, 2.5,x\na, 0, 1.5 ,x\n"
    found = table_of(here / "t.csv", text, time="time", features=("u [m]",))
    assert (found.features, found.x.tolist()) == (("u [m]",), [[1.5], [2.5]])
    kept = table_of(here / "t.csv", text, id="id ")  # as in models that were trained before
    assert kept.roles.id == "id "
    schema = Schema((" v",), ("x",), ())
    old = ReadRequest(here / "t.csv", TableOptions(), schema)
    (here / "t.csv").write_text("id, v,label\na,1,x\n")
    assert read_long(old).features == (" v",)
    dates = text.replace(" 1,", " 2024-01-02 ,").replace(" 0,", " 2024-01-01,")
    assert table_of(here / "t.csv", dates).x.tolist() == [[1.5], [2.5]]
    assert "two columns are called 'u'" in refused(here / "t.csv", "id,u , u,label\na,1,2,x\n")
    assert "two columns are called 'u'" in refused(here / "t.csv", "id,u,u,label\na,1,2,x\n")


@pytest.mark.parametrize(
    "text",
    [
        "2024-01-01,5.3\n2024-01-02,5.4\n",
        "2024-01-01,5.3,note\n2024-01-02,5.4,other\n",
        "a,0,1.5,x\na,1,2.5,x\nb,0,2,y\n",
        "20240101,5.3\n20240102,5.4\n",
        "a;0,5;x\na;1,5;x\n",
    ],
)
def test_a_file_without_names_of_columns_is_noticed(here, text):
    message = refused(here / "t.csv", text)
    first = text.split("\n")[0].replace(";", ",").split(",")[0]
    assert f"t.csv: the first line holds values ({first}, " in message
    assert "expected the names of the columns; write a line of names above it" in message


def test_names_may_be_numbers(here):
    pd.DataFrame(np.arange(8.0).reshape(4, 2) / 4).assign(id="a", label="x").to_csv("t.csv")
    found = read_long(ReadRequest(here / "t.csv", TableOptions()))
    assert (found.features, found.x[1].tolist()) == (("0", "1"), [0.5, 0.75])


def test_lines_above_and_a_second_row_tell_the_separator(here):
    text = '\n\n"id";t;"a;b,c";label\nq;0;1,5;x\nq;1;2,5;x\n'
    found = table_of(here / "t.csv", text, decimal=",")
    assert (found.features, found.x[:, 0].tolist()) == (("a;b,c",), [1.5, 2.5])
    assert "t.csv, row 3: expected 4 columns, found 1" in refused(
        here / "t.csv", text + "q\n", decimal=","
    )


ABOVE = [
    "sep=;\n",
    "SEP=;\r\n",
    '"sep=;"\n\n',
    "# made by, a; logger\n",
    "#it's a \"comment\n\n# of, two; lines\n",
    "# a comment\nsep=;\n#;;; with as many columns\n",
]


@pytest.mark.parametrize("above", ABOVE)
@pytest.mark.parametrize("written", ["utf-8", "utf-8-sig", "utf-16"])
def test_lines_of_excel_and_comments_above_the_names(here, above, written):
    encoding = written if written == "utf-16" else None
    text = above + "id;t;u;label\na;0;1,5;x\na;1;2;x\n"
    found = table_of(here / "t.csv", text, written, encoding=encoding, decimal=",")
    assert (found.ids, found.features, found.x[:, 0].tolist()) == (["a"], ("u",), [1.5, 2])
    wrong = refused(here / "t.csv", text + "a;z;1;x\n", written, encoding=encoding, decimal=",")
    assert "row 3, column 't': found 'z'" in wrong
    wrong = refused(here / "t.csv", text + "a;1\n", written, encoding=encoding, decimal=",")
    assert "row 3: expected 4 columns, found 2" in wrong


def test_any_mark_may_part_columns_if_the_first_line_says_so(here):
    found = table_of(here / "t.csv", "sep=^\nid^t^u,v^label\na^0^1.5^x\n")
    assert (found.features, found.x.tolist()) == (("u,v",), [[1.5]])


def test_names_may_begin_with_a_hash(here):
    text = "# made by hand\n# id,t,u,label\na,0,1,x\n"
    assert table_of(here / "t.csv", text, id="# id").features == ("u",)
    assert "found # id (text), t (number)" in refused(here / "t.csv", text)


def test_other_lines_above_the_names_are_told(here):
    text = "Station: Berlin\nid,t,u,label\na,0,1,x\n"
    message = refused(here / "t.csv", text)
    assert "row 1: expected 1 columns, found 4; mend or drop the row; is the first line" in message
    assert "that of the names? Begin those above with #" in message
    assert table_of(here / "t.csv", "#" + text).features == ("u",)
    assert "no names of columns" in refused(here / "t.csv", "# a\n\n")


# ---- true and false


def test_true_and_false_are_1_and_0_and_nothing_beside_other_numbers(here):
    text = "id,t,u,label\na,0,true,x\na,1,0,x\na,2,False,x\na,3,1,x\na,4,NA,x\n"
    found = table_of(here / "t.csv", text, missing="zero")
    assert found.x[:, 0].tolist() == [1, 0, 0, 1, 0]
    for other in ("3", "0.5", "-1"):
        message = refused(here / "t.csv", text.replace("a,1,0", f"a,1,{other}"), missing="zero")
        assert "row 1, column 'u': found 'true', expected a number as in the other rows" in message


def test_labels_true_and_false_among_other_numbers_are_no_numbers(here):
    rows = [f"{i},0,{i / 2},{['true', '0', '1', 'False'][i % 4]}\n" for i in range(8)]
    read = ReadRequest(here / "t.csv", TableOptions(), has_classes=False)
    (here / "t.csv").write_text("id,t,u,label\n" + "".join(rows))
    assert read_long(read).y[:, 0].tolist() == [1, 0, 1, 0] * 2
    (here / "t.csv").write_text("id,t,u,label\n" + "".join(rows) + "8,0,1,3\n")
    with pytest.raises(InputError, match=r"row 1, column 'label': found 'true', expected a fini"):
        read_long(read)


@pytest.mark.parametrize("word", ["NA", "nan", "?", "#N/A"])
def test_words_for_nothing_among_numbers_are_no_class(here, word):
    rows = [f"{i},0,{i / 2},{word if i == 3 else i % 2}\n" for i in range(8)]
    message = refused(here / "t.csv", "id,t,u,label\n" + "".join(rows))
    assert f"row 4, column 'label': found '{word}', expected a number or a class; write" in message
    words = [row.replace(",0\n", ",low\n").replace(",1\n", ",high\n") for row in rows]
    found = table_of(here / "t.csv", "id,t,u,label\n" + "".join(words))
    assert set(found.y) == {"low", "high", word}


# ---- decimal commas


def test_decimal_commas_are_read_or_named_with_their_row(here):
    text = "id;t;u;y\na;0;1;0,5\na;1;2,25;0,5\nb;0,5;-3;1,5e1\n"
    found = table_of(here / "t.csv", text, decimal=",")
    assert (found.x[:, 0].tolist(), found.y.tolist()) == ([1, 2.25, -3], [[0.5], [15]])
    advice = "if the comma is the decimal mark, add --decimal ,; if it parts thousands, write "
    target = "id;t;u;v;y\na;0;1;7;0\na;1;2;7;0\nb;0;3;7;1,5\nc;0;3;7;2,5\n"
    for options in ({}, {"target": ("y", "v")}):
        message = refused(here / "t.csv", target, **options)
        assert "t.csv, row 3, column 'y': found '1,5', expected a" in message
        assert advice in message
    message = refused(here / "t.csv", text.replace("0,5", "1"))
    assert f"row 2, column 'u': found '2,25', expected a number; {advice}" in message
    series = "time;y\n2024-01-01;1,5\n2024-01-02;2,5\n2024-01-03;3,5\n"
    (here / "s.csv").write_text(series)
    with pytest.raises(InputError, match=rf"row 1, column 'y': found '1,5', .*{advice}"):
        read_series(here / "s.csv")
    table = read_series(here / "s.csv", TableOptions(decimal=","))
    assert table.x[:, 0].tolist() == [1.5, 2.5, 3.5]


@pytest.mark.parametrize("number", ["1,234,567", "1.234,5", "1,234.5", "1 234", "1\u202f234,5"])
@pytest.mark.parametrize("decimal", [None, ","])
def test_marks_between_thousands_are_refused(here, number, decimal):
    text = f"id;t;u;label\na;0;{number};x\na;1;{number};x\n"
    message = refused(here / "t.csv", text, decimal=decimal)
    assert "row 1, column 'u': found " in message
    assert "write the number without marks between thousands" in message
    assert "--decimal ." not in message


def test_a_decimal_point_after_decimal_commas_is_refused(here):
    message = refused(here / "t.csv", "id;t;u;label\na;0;1,5;x\na;1;1.5;x\n", decimal=",")
    assert "row 2, column 'u': found '1.5', expected a decimal comma and no point; " in message
    advice = "if the point is the decimal mark, add --decimal .; if it parts thousands, write the"
    assert advice in message


def test_ids_and_words_keep_their_commas(here):
    text = "id;t;u;label\n1,5;0;1;x,y\n1,5;1;2;x,y\n2,5;0;3;z\n"
    found = table_of(here / "t.csv", text, decimal=",")
    assert (found.ids, found.y) == (["1,5", "2,5"], ["x,y", "z"])


def test_missing_words_do_not_make_a_column_of_text(here):
    text = "id,t,u,label\na,0,NA,x\na,1,NA,x\na,2,-,x\nb,0,1.5,y\n"
    found = table_of(here / "t.csv", text, missing="zero")
    assert (found.features, found.x[:, 0].tolist()) == (("u",), [0, 0, 0, 1.5])


# ---- encodings


def test_decimal_and_encoding_of_training_are_remembered(here):
    rows = [f"ß{i};{t};{i},{t};{'jä' if i % 2 else 'nö'}" for i in range(12) for t in range(3)]
    text = "\n".join(["id;t;größe;label", *rows])
    (here / "t.csv").write_bytes(text.encode("cp1252"))
    (here / "utf8.csv").write_bytes(text.encode())
    flags = ("--encoding", "cp1252", "--decimal", ",")
    result = invoke_small("train", "t.csv", *flags, "--output", "run", "--seed", 1)
    assert result.exit_code == 0, result.output
    stored = load_model("run").training["table"]
    assert (stored["encoding"], stored["decimal"]) == ("cp1252", ",")
    assert load_model("run").schema.features == ("größe",)
    done = invoke("predict", "run", "t.csv", "--output", "p.csv")
    assert done.exit_code == 0, done.output
    assert pd.read_csv("p.csv")["id"].tolist() == [f"ß{i}" for i in range(12)]
    wrong = invoke("predict", "run", "utf8.csv", "--output", "q.csv")
    assert "its text is UTF-8 and not cp1252; read it with --encoding utf-8" in wrong.stderr
    again = invoke("predict", "run", "utf8.csv", "--output", "q.csv", "--encoding", "utf-8")
    assert again.exit_code == 0, again.output
    assert (here / "p.csv").read_bytes() == (here / "q.csv").read_bytes()
    figures = [
        json.loads(invoke("evaluate", "run", name, *more, "--json").stdout)["metrics"]
        for name, more in (("t.csv", ()), ("utf8.csv", ("--encoding", "utf-8")))
    ]
    assert figures[0] == figures[1]
    shown = invoke("inspect", "t.csv", *flags)
    assert "lstm-compile train t.csv --decimal , --encoding cp1252" in shown.stdout


ROW = "id,t,u,label\né,0,1,x\n"


@pytest.mark.parametrize(
    ("text", "written", "encoding", "message"),
    [
        (ROW, "latin-1", None, "t.csv, line 2: byte 13 is not UTF-8; save the file as UTF-8, or"),
        (ROW, "latin-1", "ascii", "t.csv, line 2: byte 13 is not ASCII; save the file as UTF-8"),
        (ROW, "utf-8", "latin-1", "its text is UTF-8 and not iso8859-1; read it with --enc"),
        (ROW, "utf-8", "utf-16", "its text is UTF-8 and not utf-16; read it with --encoding utf-8"),
        (ROW, "latin-1", "utf-16", "its text is not utf-16; name its encoding with --encoding, su"),
        (ROW.replace("é", "e"), "utf-8", "cp037", "again; is its encoding cp037?"),
        (ROW + "äöüßñç", "utf-8", "gbk", "its text is UTF-8 and not gbk; read it with --encod"),
        (ROW, "utf-8", "klingon", "encoding must be one that Python knows, such as cp1252"),
        (ROW, "utf-8", "base64", "encoding must be one that Python knows"),
        (ROW, "utf-8", "", "encoding must be one that Python knows"),
    ],
)
def test_a_wrong_encoding_is_refused(here, text, written, encoding, message):
    assert message in refused(here / "t.csv", text, written, encoding=encoding)


@pytest.mark.parametrize("written", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("encoding", [None, "latin-1", "utf-16", "utf-16-be", "utf-32", "gbk"])
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_encodings_of_several_bytes_are_named_and_the_advice_works(here, name, encoding, written):
    text = '{"id": "é", "t": 0, "u": 1, "label": "x"}\n' if name == "t.jsonl" else ROW
    if encoding != written:
        message = refused(here / name, text, written, encoding=encoding)
        assert f"its text is {written.upper()} and not {encoding or 'utf-8'}; " in message.replace(
            "iso8859-1", "latin-1"
        )
        encoding = message.rpartition(" ")[2]
    found = table_of(here / name, text, written, encoding=encoding)
    assert (found.ids, found.x.tolist(), found.y) == (["é"], [[1]], ["x"])


@pytest.mark.parametrize("start", [b"PK\3\4", b"\x1f\x8b", b"PAR1"])
def test_files_that_are_packed_are_named(here, start):
    (here / "t.csv").write_bytes(start + bytes(range(256)))
    with pytest.raises(InputError, match=r"t\.csv: expected text, and this is a (zip|gzip|Parq)"):
        read_long(ReadRequest(here / "t.csv", TableOptions()))


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252", "utf-8-sig", "gbk"])
def test_json_lines_in_other_encodings(here, encoding):
    name = "äb" if encoding != "gbk" else "联通"  # whose bytes in GBK are UTF-8 too
    rows = [{"id": name, "t": t, "u": t / 2, "label": "x"} for t in range(2)]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (here / "t.jsonl").write_bytes(text.encode(encoding))
    options = TableOptions(encoding=None if encoding == "utf-8-sig" else encoding)
    found = read_long(ReadRequest(here / "t.jsonl", options))
    assert (found.ids, found.x[:, 0].tolist()) == ([name], [0, 0.5])


# ---- Arrow


def dictionary(values):
    return pa.DictionaryArray.from_arrays(pa.array([0, 0, 1, 1], pa.uint32()), values)


NUMBERS_OF_ARROW = {
    "runs": pc.run_end_encode(pa.array([1, 1, 2.5, 2.5])),
    "views": pa.array(["1", " 1 ", "2.5", "2.5"], pa.string_view()),
    "decimal32": pa.array([Decimal(1), Decimal(1), Decimal("2.5"), Decimal("2.5")]).cast(
        pa.decimal32(5, 2)
    ),
    "decimal256": pa.array([Decimal(1), Decimal(1), Decimal("2.5"), Decimal("2.5")]).cast(
        pa.decimal256(50, 2)
    ),
    "dictionary": dictionary(pa.array([1, 2.5])),
    "half": pa.array([1, 1, 2.5, 2.5], pa.float16()),
}
NAMES_OF_ARROW = {
    "polars": dictionary(pa.array(["p", "q"], pa.string_view())),
    "runs": pc.run_end_encode(pa.array(["p", "p", "q", "q"])),
    "views": pa.array(["p", "p", "q", "q"], pa.string_view()),
    "json": pa.ExtensionArray.from_storage(pa.json_(), pa.array(["p", "p", "q", "q"])),
}
NESTED = {
    "list": pa.array([[1]] * 4),
    "struct": pa.array([{"a": 1}] * 4),
    "map": pa.array([[("a", 1)]] * 4, pa.map_(pa.string(), pa.int64())),
    "bytes": pa.array([b"a"] * 4),
    "interval": pa.array([(0, 1, 0)] * 4, pa.month_day_nano_interval()),
}


def arrow_of(path, **columns):
    base = {"id": list("aabb"), "t": [0, 1, 0, 1], "u": [1.0, 1, 2.5, 2.5], "y": list("ppqq")}
    table = pa.table({**base, **columns})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return path


@pytest.mark.parametrize("kind", NUMBERS_OF_ARROW)
def test_numbers_of_every_arrow_type(here, kind):
    path = arrow_of(here / "t.arrow", u=NUMBERS_OF_ARROW[kind])
    found = read_long(ReadRequest(path, TableOptions(features=("u",))))
    assert found.x[:, 0].tolist() == [1, 1, 2.5, 2.5]


@pytest.mark.parametrize("kind", NAMES_OF_ARROW)
def test_names_of_every_arrow_type(here, kind):
    path = arrow_of(here / "t.arrow", y=NAMES_OF_ARROW[kind], id=NAMES_OF_ARROW[kind])
    found = read_long(ReadRequest(path, TableOptions()))
    assert (found.ids, found.y) == (["p", "q"], ["p", "q"])
    table = read_series(path, TableOptions(target=("u",), static=("y",)))
    assert (table.ids, table.statics[:, 0].tolist()) == (("p", "q"), [0, 1])


@pytest.mark.parametrize("kind", NESTED)
@pytest.mark.parametrize("role", ["id", "time", "target", "features"])
def test_nested_types_are_left_out_or_refused_in_one_line(here, kind, role):
    path = arrow_of(here / "t.arrow", c=NESTED[kind])
    found = read_long(ReadRequest(path, TableOptions()))
    assert ("c", "other") in found.roles.left_out
    options = TableOptions(**{role: "c" if role in ("id", "time") else ("c",)})
    with pytest.raises(InputError, match=r"t\.arrow, row 1, column 'c': found .* expected ") as e:
        read_long(ReadRequest(path, options))
    assert str(e.value).isprintable()


# ---- names that are made


def test_a_column_with_the_name_of_a_calendar_column(here):
    frame = hourly().rename_axis("time").assign(hour_sin=lambda f: np.sin(f.index.hour / 4))
    frame.to_csv("t.csv")
    table = read_series("t.csv", TableOptions(target=("y",), known=("hour_sin",)))
    assert table.schema.features == ("y", "hour_sin")
    assert table.info.calendar == ()
    asked = TableOptions(target=("y",), features=("hour_sin",), calendar=("hour",))
    with pytest.raises(InputError, match=r"column 'hour_sin': has the name of a column that --cal"):
        read_series("t.csv", asked)
    frame.rename(columns={"hour_sin": "gap"}).to_csv("t.csv")
    asked = TableOptions(target=("y",), features=("gap",), gaps="indicate")
    with pytest.raises(InputError, match=r"column 'gap': has the name .* --gaps indicate makes"):
        read_series("t.csv", asked)
