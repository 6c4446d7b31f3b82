import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import hypothesis
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hostile import CORPUS, mutated, originals
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from opening import FORMATS, Refused, open_file, ways_of
from safetensors.torch import save_file

from lstm_compile import init_params, load_model, save_model
from lstm_compile.cli.app import app
from lstm_compile.config import ModelConfig
from lstm_compile.data.tables.columns import ReadRequest
from lstm_compile.data.tables.read import read_table
from lstm_compile.errors import LONGEST, InputError
from lstm_compile.export.proof.onnx_file import read_onnx
from lstm_compile.export.runtime import ModelError, check_graph, load, open_streams
from lstm_compile.export.use.evaluate_file import evaluate_file
from lstm_compile.export.use.inspect import inspect_source

CONFIG = ModelConfig(task="classify", input_size=2, output_size=3, hidden_size=3, num_layers=1)


def refused(path, message):
    """Refused in one line that says so."""
    with pytest.raises(Refused, match=message) as caught:
        ways_of(path)[0](path)
    assert str(caught.value).isprintable()
    return str(caught.value)


# ---- thousands of them; `python tests/fuzz.py` takes all


@pytest.mark.slow
def test_hostile_files_crash_no_process_and_take_no_memory():
    program = Path(__file__).parents[1] / "fuzz.py"
    command = [sys.executable, "-W", "ignore", program, "--count", "60"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["format"] for row in rows] == list(FORMATS)
    assert all(row["refused"] > 30 and row["highest_mib"] < 256 for row in rows)
    assert sum(row["read"] for row in rows) > 10  # some changes do no harm


@pytest.mark.parametrize("kind", FORMATS)
@hypothesis.settings(
    deadline=None,
    derandomize=True,  # `fuzz.py` is for news
    max_examples=50,
    suppress_health_check=list(hypothesis.HealthCheck),  # a busy machine is slow
)
@given(st.data())
def test_a_changed_file_is_read_or_refused_in_one_line(tmp_path, kind, data):
    original = data.draw(st.sampled_from(originals(*FORMATS[kind])))
    path = tmp_path / f"changed{original.suffix}"
    path.write_bytes(mutated(original, data.draw(st.randoms(use_true_random=False))))
    error = error_of(path)
    assert len(error) <= LONGEST + 10
    assert not error or error.isprintable()


def error_of(path):
    try:
        open_file(path)
    except Refused as error:
        return str(error)
    return ""


@pytest.mark.parametrize("path", originals(*sum(FORMATS.values(), ())), ids=lambda p: p.name)
def test_the_corpus_itself_is_read(path):
    open_file(path)


# ---- safetensors


def with_header(path, header, data=b""):
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


@pytest.mark.parametrize("length", [1 << 62, 10**9, 9 << 20, 100])
def test_a_header_longer_than_its_file_or_than_any_is_refused_unread(tmp_path, length):
    path = tmp_path / "m.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}" + bytes(10 if length < 999 else 0))
    refused(path, rf"its header says {length} bytes, expected at most \d+")


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}},  # a gap before it
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 16]}},  # longer than its shape
        {"a": {"dtype": "F32", "shape": [10**18], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": {"dtype": "F32"}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}},
        {"__metadata__": {"config": 7}},
        {"__metadata__": ["config"]},
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path, header):
    path = with_header(tmp_path / "m.safetensors", json.dumps(header).encode(), bytes(8))
    refused(path, "not a readable safetensors file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 10**9}, "hidden_size must be at most 65536, got 1000000000"),
        ({"num_layers": 10**9}, "num_layers must be at most 64"),
        ({"hidden_size": 65536, "num_layers": 64}, "tensors do not fit the config"),
        ({"input_size": 1e300}, "input_size must be of type int"),
    ],
)
def test_an_absurd_config_is_refused_before_memory_is_taken(tmp_path, change, message):
    path, params = tmp_path / "m.safetensors", init_params(CONFIG, 0)
    save_model(path, params, CONFIG)
    metadata = {"format": "lstm_compile", "format_version": "1", "schema": "{}", "training": "{}"}
    metadata["config"] = json.dumps({**CONFIG.to_dict(), **change})
    save_file(params, path, metadata)
    refused(path, message)


@pytest.mark.parametrize("text", ["[" + "[]," * 200_000 + "[]]", '"' + "x" * (9 << 20) + '"'])
def test_metadata_that_blow_up_in_memory_are_refused(text):
    with pytest.raises(InputError, match="expected JSON of at most"):
        ModelConfig.from_json(text)


def test_names_that_nobody_could_load_are_not_saved(tmp_path, monkeypatch):
    monkeypatch.setattr("lstm_compile.model.header.HEADER_BYTES", 100)
    with pytest.raises(InputError, match=r"take \d+ bytes, expected at most 100; shorten"):
        save_model(tmp_path / "m.safetensors", init_params(CONFIG, 0), CONFIG)
    assert not list(tmp_path.iterdir())


# ---- run folders


@pytest.fixture
def folder(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    save_model(tmp_path / "elsewhere.safetensors", init_params(CONFIG, 0), CONFIG)
    return run


def test_a_link_in_a_run_folder_is_refused(folder):
    (folder / "model.safetensors").symlink_to("../elsewhere.safetensors")
    for way in (load_model, lambda path: inspect_source(str(path)), evaluate_file):
        with pytest.raises(InputError, match=r"model\.safetensors: is a link, and the files of a"):
            way(folder)
    assert load_model(folder.parent / "elsewhere.safetensors").config == CONFIG


def test_a_link_in_place_of_the_baselines_is_refused(folder):
    (folder / "model.safetensors").write_bytes((CORPUS / "classify.safetensors").read_bytes())
    (folder / "baselines.safetensors").symlink_to(CORPUS / "baselines.safetensors")
    data = folder.parent / "data.npz"
    np.savez(data, x=np.zeros((2, 2)), lengths=[1, 1], y=["class_0", "class_1"])
    with pytest.raises(InputError, match=r"baselines\.safetensors: is a link"):
        evaluate_file(folder, str(data))


def test_a_link_in_place_of_the_onnx_file_is_refused_unless_it_is_named(folder):
    (folder / "model.safetensors").write_bytes((CORPUS / "classify.safetensors").read_bytes())
    (folder / "model.onnx").symlink_to(CORPUS / "classify.onnx")
    done = CliRunner().invoke(app, ["verify", str(folder)])
    assert done.exit_code == 2
    assert "model.onnx: is a link, and the files of a run lie in its own folder" in done.stderr
    assert load(folder / "model.onnx").task == "classify"


def test_a_run_folder_that_is_a_link_itself_is_taken(folder):
    (folder.parent / "elsewhere.safetensors").rename(folder / "model.safetensors")
    (folder.parent / "newest").symlink_to(folder)
    assert load_model(folder.parent / "newest").config == CONFIG


# ---- ONNX


def edited(name, change):
    model = onnx.load_model_from_string((CORPUS / name).read_bytes())
    change(model)
    return model.SerializeToString()


def a_loop(model):
    body = helper.make_graph([], "body", [], [])
    model.graph.node.add(op_type="Loop", name="forever").attribute.append(
        helper.make_attribute("body", body)
    )


def a_function(model):
    model.functions.add(name="f", domain="there")


def another_domain(model):
    model.graph.node[0].domain = "com.example"


def a_sparse_tensor(model):
    model.graph.sparse_initializer.add()


def a_small_tensor(model):
    model.graph.initializer[0].dims[:] = [1 << 40]


def many_sizes(model):
    model.graph.initializer[0].dims[:] = [1 << 62] * 100_000


def a_path(model):
    tensor = model.graph.initializer[0]
    tensor.external_data.add(key="location", value="/etc/passwd")


def a_path_in_an_attribute(model):
    node = model.graph.node.add(op_type="Constant", name="c", output=["c"])
    tensor = TensorProto(data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    node.attribute.append(helper.make_attribute("value", tensor))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (a_loop, "a graph has graph, which is refused"),
        (a_function, "a graph has functions, which is refused"),
        (another_domain, "an operator is of another domain"),
        (a_sparse_tensor, "a graph has sparse_initializer, which is refused"),
        (a_small_tensor, "a tensor is smaller than it says"),
        (many_sizes, "a tensor is smaller than it says"),
        (a_path, "a tensor lies in another file, which is refused"),
        (a_path_in_an_attribute, "a tensor lies in another file, which is refused"),
    ],
)
def test_what_no_exported_file_has_is_refused(tmp_path, change, message):
    path = tmp_path / "m.onnx"
    path.write_bytes(edited("classify.onnx", change))
    for way, kind in ((load, ModelError), (read_onnx, InputError)):
        with pytest.raises(kind, match=rf"m\.onnx: .*{message}"):
            way(path)


def test_nothing_is_computed_while_a_file_is_opened():
    """A constant of 32 GiB, which a session that folds constants would make at once."""

    def absurd(model):
        size = helper.make_tensor("size", TensorProto.INT64, [1], [1 << 33])
        model.graph.initializer.append(size)
        model.graph.node.add(op_type="ConstantOfShape", name="c", input=["size"], output=["c"])
        model.graph.output.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, ["n"]))

    with pytest.raises(ModelError, match="expected inputs and output"):
        load(edited("classify.onnx", absurd))


@pytest.mark.parametrize(
    "data", [b"\0" * 100, b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x05x", b"\xff" * 9]
)
def test_what_is_no_message_is_refused(data):
    with pytest.raises(ModelError, match="not a readable ONNX file"):
        check_graph(data)


def test_a_pipe_is_no_model(tmp_path):
    path = tmp_path / "m.onnx"
    os.mkfifo(path)
    with pytest.raises(ModelError, match=r"no plain file"):
        load(path)
    with pytest.raises(InputError, match=r"no plain file"):
        read_onnx(path)


def test_a_file_that_does_not_stream_says_so():
    with pytest.raises(ModelError, match="this file does not stream: open it with `load`"):
        open_streams((CORPUS / "lm.onnx").read_bytes())


@pytest.mark.parametrize("size", [10**9, -1, 1.5, True, "8", None, float("inf")])
def test_an_absurd_horizon_is_refused(size):
    def change(model):
        (entry,) = [each for each in model.metadata_props if each.key == "config"]
        entry.value = json.dumps({**json.loads(entry.value), "horizon": size})

    with pytest.raises(ModelError, match="horizon must be a whole number up to 65536"):
        load(edited("forecast.onnx", change))


# ---- arrays


def npz(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def npy(array):
    buffer = BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


PARTS = {"x": npy(np.zeros((2, 2))), "lengths": npy(np.array([1, 1])), "y": npy(np.array([0, 1]))}


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("sprung"),)


def test_pickled_objects_are_refused_and_never_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    objects = npy(np.array([Trap(), None], dtype=object))
    refused(npz(tmp_path / "a.npz", **{**PARTS, "y": objects}), "pickled objects, which are never")
    refused(npz(tmp_path / "a.npz", **{**PARTS, "y": pickle.dumps(Trap())}), "`y` cannot be read")
    assert not Path("sprung").exists()


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296, 2), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999999999, 2), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-2, -2), }",
        "{'descr': '<U1000000000', 'fortran_order': False, 'shape': (4,), }",
        "{'descr': '|V0', 'fortran_order': False, 'shape': (1000000000000,), }",
        "(" * 9000,
        "[" * 60000,
    ],
)
def test_an_array_that_is_not_what_its_bytes_hold_is_refused(tmp_path, header):
    text = header.encode() + b"\n"
    content = b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text + bytes(32)
    refused(npz(tmp_path / "a.npz", **{**PARTS, "x": content}), "array `x` cannot be read")


def test_a_zip_bomb_is_refused(tmp_path):
    bomb = npy(np.zeros((1 << 22, 4)))  # 128 MiB of zeros in 128 kB
    message = refused(npz(tmp_path / "a.npz", **{**PARTS, "x": bomb}), "array `x` cannot be read")
    assert re.search(r"\(134217728 bytes packed into \d+\)", message)


def test_text_that_is_no_unicode_is_refused(tmp_path):
    for code in (0xFFFFFFFF, 0xD800):
        labels = npy(np.array(["a", "b"])).replace(b"a\0\0\0", code.to_bytes(4, "little"))
        refused(npz(tmp_path / "a.npz", **{**PARTS, "y": labels}), "text that is not Unicode")


# ---- tables


def text(path, content):
    path.write_text(content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            '{"a":' + "[" * 10**6 + "]" * 10**6 + "}\n",
            "row 1: not a JSON object",
        ),
        ("a.jsonl", '{"a":' * 10**5, "row 1: not a JSON object"),
        ("a.jsonl", '{"a": "' + "x" * (5 << 20) + '"}\n', "a row is longer than 4 MB"),
        (
            "a.jsonl",
            "{" + ",".join(f'"c{i}":1' for i in range(70000)) + "}",
            "70000 columns",
        ),
        ("a.jsonl", "".join(f'{{"c{i}":1}}\n' for i in range(70000)), "65537 columns or more"),
        ("a.csv", ",".join(map(str, range(70000))) + "\n1\n", "columns|found 1"),
        ("a.csv", "a,b\n" + "x" * (9 << 20), "a row is longer than 4 MB"),
        (
            "a.ts",
            "@univariate true\n@classLabel true a\n@data\n" + "1," * (9 << 20),
            "line 4: longer",
        ),
        (
            "a.ts",
            "@classLabel true a\n@data\n" + "1:" * 70000 + "a",
            "70000 dimensions",
        ),
    ],
)
def test_text_that_takes_time_or_memory_is_refused(tmp_path, name, content, message):
    refused(text(tmp_path / name, content), message)


def test_a_gigabyte_on_one_line_is_refused_unread(tmp_path):
    for name in ("a.csv", "a.jsonl", "a.ts"):
        with (tmp_path / name).open("wb") as file:
            file.write(b"a,b\n1,")
            file.truncate(1 << 30)  # sparse: it takes no room on the disk
        refused(tmp_path / name, "longer than|line 1: expected")


def test_deep_values_beyond_the_first_block_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("lstm_compile.data.tables.formats.BLOCK_BYTES", 2_100_000)
    rows = '{"id": "a", "x": 1, "label": "l"}\n' * 70_000
    deep = '{"id": "a", "x": ' + "[" * 10**6 + "]" * 10**6 + "}\n"
    path = text(tmp_path / "a.jsonl", rows + deep)
    with pytest.raises(InputError, match="row 70001: not a JSON object"):
        read_table(ReadRequest(path))


def test_a_page_that_says_it_is_large_is_refused(tmp_path):
    """A page says of itself what it unpacks to, and pyarrow makes room for that."""
    whole = bytearray((CORPUS / "plain.parquet").read_bytes())
    start = 4 + 1  # behind `PAR1`: field 1, the kind of page; then its unpacked size
    assert whole[start + 1] == 0x15
    path = tmp_path / "a.parquet"
    path.write_bytes(whole[: start + 2] + bytes([0x7F]) + whole[start + 3 :])
    refused(path, "a page is larger than its column|a page is longer than its column")


def test_more_rows_than_a_file_can_hold_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("lstm_compile.data.tables.pages.FEW_ROWS", 0)
    monkeypatch.setattr("lstm_compile.data.tables.pages.RATIO", 0.001)
    path = tmp_path / "a.parquet"
    path.write_bytes((CORPUS / "plain.parquet").read_bytes())
    refused(path, "12 rows in 1596 bytes")


def test_what_a_file_says_cannot_steer_a_terminal(tmp_path):
    path = text(tmp_path / "a.ts", "@classLabel true a\n@data\n\x1b[2Jred:\x1b]0;owned\x07\n")
    assert r"\x1b[2Jred" in refused(path, "expected a finite float32 number")


@pytest.mark.slow
@pytest.mark.parametrize("value", [0, 67, 255])
def test_no_byte_of_a_parquet_footer_ends_the_process(tmp_path, value):
    """pyarrow does so where a column's metadata contradict themselves, and it is asked for them."""
    content = (CORPUS / "plain.parquet").read_bytes()
    length, path = int.from_bytes(content[-8:-4], "little"), tmp_path / "changed.parquet"
    for place in range(len(content) - 8 - length, len(content)):
        path.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
        assert len(error_of(path)) <= LONGEST + 10
