import pickle
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from marks import slow

import lstm_compile.export.runtime as runtime
from lstm_compile.config import ModelConfig
from lstm_compile.data.schema import Schema
from lstm_compile.export.runtime import ModelError, load
from lstm_compile.export.write.onnx import to_onnx
from lstm_compile.model.checkpoint import Model, numbered_schema
from lstm_compile.model.model import init_params, predict

CLASSES = ("no", "yes", "péut-être", "")
FEATURES = ("pitch", "loudness [dB]", "x")


def make_model(task="classify", outputs=4):
    config = ModelConfig(task=task, input_size=3, output_size=outputs, hidden_size=5)
    params = init_params(config, 3)
    params["scaler.shift"] += 20.0
    params["scaler.scale"] *= torch.tensor([0.5, 2.0, 300.0])
    if task in ("classify", "tag"):
        schema = Schema(FEATURES, CLASSES, ())
    else:
        schema = Schema(FEATURES, (), numbered_schema(config).targets)
        params["target_scaler.shift"] += 70.0
    return Model(params, config, schema, {"seed": 3})


@cache
def exported(task, outputs):
    return to_onnx(make_model(task, outputs)).SerializeToString()


@pytest.fixture(scope="module", params=["classify", slow("regress")])
def trained(request):
    """A model of each task and the bytes of its file."""
    outputs = 4 if request.param == "classify" else 2
    return make_model(request.param, outputs), exported(request.param, outputs)


@pytest.fixture(scope="module")
def data():
    return exported("classify", 4)


@pytest.fixture(scope="module")
def model(data):
    return load(data)


def ragged(*lengths, seed=0, features=3):
    generator = np.random.default_rng(seed)
    scale, shift = np.array([0.5, 2.0, 300.0])[:features], 20.0
    return [generator.standard_normal((n, features)) * scale + shift for n in lengths]


def expected(model, sequences):
    """One row at a time, by eager PyTorch."""
    rows = []
    for sequence in sequences:
        x = torch.tensor(np.array(sequence), dtype=torch.float32)[None]
        x = x if x.shape[1] else torch.zeros(1, 1, 3)
        lengths = torch.tensor([len(sequence)])
        rows.append(predict(model.params, model.config, x, lengths, backend="vendor")[0])
    return torch.stack(rows).detach().numpy()


# ---- answers


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_ragged_lists_are_answered_in_their_order(trained, batch_size):
    model, data = trained
    sequences = ragged(5, 0, 17, 1, 9, 0, 2, 17)
    found = load(data).predict(sequences, batch_size)
    assert (found.dtype, found.shape) == (np.float32, (8, model.config.output_size))
    np.testing.assert_allclose(found, expected(model, sequences), atol=1e-5, rtol=1e-6)
    assert np.abs(found[0] - found[2]).max() > 1e-3


def test_an_empty_list_and_sequences_without_steps(trained):
    model, data = trained
    ready = load(data)
    assert ready.predict([]).shape == (0, model.config.output_size)
    assert ready.predict([]).dtype == np.float32
    empty = [np.zeros((0, 3))] * 2
    np.testing.assert_allclose(ready.predict(empty), expected(model, empty), atol=1e-5)


def test_padded_batches_answer_as_ragged_lists(trained):
    model, data = trained
    ready, sequences = load(data), ragged(4, 0, 7)
    x = np.full((3, 9, 3), np.nan)
    for row, sequence in zip(x, sequences, strict=True):
        row[: len(sequence)] = sequence
    found = ready.predict_padded(x, [4, 0, 7])
    np.testing.assert_array_equal(found, ready.predict(sequences))
    assert ready.predict_padded(x[:0], np.zeros(0, int)).shape == (0, model.config.output_size)
    assert ready.predict_padded(x[:, :0], [0, 0, 0]).shape == (3, model.config.output_size)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, np.int64, np.uint8, bool])
def test_all_types_of_numbers_are_taken(model, dtype):
    steps = np.array([[1, 0, 1], [0, 0, 1]], dtype)
    found = model.predict([steps, steps.tolist()])
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[:1], model.predict([steps.astype(np.float32)]))


def test_more_threads_give_the_same_answers(data, model):
    sequences = ragged(5, 30)
    np.testing.assert_allclose(
        load(data, threads=2).predict(sequences), model.predict(sequences), atol=1e-6
    )


# ---- what a file says


def test_the_model_carries_its_names(trained, tmp_path):
    model, data = trained
    (tmp_path / "m.onnx").write_bytes(data)
    for source in (data, tmp_path / "m.onnx", str(tmp_path / "m.onnx")):
        ready = load(source)
        assert ready.task == model.config.task
        assert ready.schema == (FEATURES, model.schema.classes, model.schema.targets, None, None)
        assert ready.outputs == model.config.output_size
        assert ready.metadata["config"] == model.config.to_json()


@pytest.mark.parametrize(
    ("task", "outputs", "output"),
    [
        ("classify", 4, "probabilities"),
        slow("regress", 2, "value"),
        slow("tag", 4, "step_probabilities"),
    ],
)
def test_a_file_of_an_unknown_task_is_answered_by_what_it_says(task, outputs, output):
    model = make_model(task, outputs)
    data, sequences = to_onnx(model).SerializeToString(), ragged(4, 0, 7)
    file = changed(data, task="dream", outputs='["dreams"]')
    file.graph.output[0].name = "dreams"
    for node in file.graph.node:
        node.output[:] = ["dreams" if name == output else name for name in node.output]
    ready, same = load(file.SerializeToString()), load(data)
    assert (ready.task, ready.stepwise) == ("dream", task == "tag")
    method = "predict_steps" if ready.stepwise else "predict"
    for found, wanted in zip(
        getattr(ready, method)(sequences), getattr(same, method)(sequences), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)
    with pytest.raises(ModelError, match=f"the task of this file is dream: call model.{method}"):
        ready.forecast(sequences)


def test_labels_are_the_most_probable_classes(model):
    probabilities = [[0.1, 0.2, 0.6, 0.1], [0.7, 0.1, 0.1, 0.1], [0, 0, 0, 1]]
    assert model.labels(probabilities) == ["péut-être", "no", ""]
    assert model.labels(np.zeros((0, 4))) == []
    with pytest.raises(ModelError, match=r"probabilities must be \(rows, 4\), found \(4,\)"):
        model.labels(probabilities[0])
    ready = load(exported("regress", 2))
    with pytest.raises(
        ModelError, match="labels need a file with classes; the task of this file is regress"
    ):
        ready.labels([[1.0, 2.0]])


# ---- wrong inputs


def bad(value, step=1, feature=1):
    sequence = ragged(3)[0]
    sequence[step, feature] = value
    return sequence


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        (np.zeros((4, 2)), r"sequence 1: 2 features, but the model was trained on 3: 'pitch', 'lo"),
        (np.zeros(3), r"sequence 1: expected numbers of shape \(time, 3\), found float64 \(3,\)"),
        (np.zeros((1, 4, 3)), r"sequence 1: expected numbers of shape \(time, 3\), found float64 "),
        (np.array([["a", "b", "c"]]), r"sequence 1: expected numbers of shape .*, found <U1"),
        (np.zeros((2, 3), complex), r"sequence 1: expected numbers of .*, found complex128 \(2, 3"),
        ([[1, 2, 3], [1, 2]], r"sequence 1: not one array \("),
        (
            bad(np.nan),
            r"sequence 1, step 1, feature 'loudness \[dB\]': expected a finite float32 n",
        ),
        (bad(-np.inf, 2, 0), r"sequence 1, step 2, feature 'pitch': .*, found -inf; fill the gap"),
        (bad(1e39, 0, 2), r"sequence 1, step 0, feature 'x': .*, found 1e\+39; fill the gap first"),
    ],
)
def test_a_wrong_sequence_is_refused_in_one_line(model, sequence, message):
    with pytest.raises(ModelError, match=message) as caught:
        model.predict([ragged(2)[0], sequence])
    assert "\n" not in str(caught.value)


def test_the_names_of_the_columns_are_checked(model):
    sequences = ragged(3)
    np.testing.assert_array_equal(
        model.predict(sequences, features=list(FEATURES)), model.predict(sequences)
    )
    order = r"features are in another order: found 'x', 'pitch', .*; the model was trained on 'pit"
    with pytest.raises(ModelError, match=order):
        model.predict(sequences, features=("x", "pitch", "loudness [dB]"))
    others = r"features are others: found 'pitch', 'x'; the model was trained on 'pitch', 'loudn"
    with pytest.raises(ModelError, match=others):
        model.predict(sequences, features=("pitch", "x"))


@pytest.mark.parametrize(
    ("x", "lengths", "message"),
    [
        (np.zeros((2, 4, 3)), [4, 5], r"lengths must be numbers in \[0, 4\], found 5 in row 1"),
        (np.zeros((2, 4, 3)), [-1, 4], r"lengths must be numbers in \[0, 4\], found -1 in row 0"),
        (np.zeros((2, 4, 3)), [4], r"expected x \(batch, time, 3\) and integer lengths \(batch,\)"),
        (np.zeros((2, 4, 3)), [1.0, 2.0], r"found float64 \(2, 4, 3\) and float64 \(2,\)"),
        (np.zeros((4, 3)), [4], r"expected x \(batch, time, 3\).*, found float64 \(4, 3\)"),
        (np.zeros((2, 4, 2)), [4, 1], r"sequence 0: 2 features, but the model was trained on 3"),
        (np.full((2, 4, 3), np.nan), [0, 1], r"sequence 1, step 0, feature 'pitch': expected a fi"),
    ],
)
def test_a_wrong_padded_batch_is_refused(model, x, lengths, message):
    with pytest.raises(ModelError, match=message):
        model.predict_padded(x, lengths)


def test_sizes_below_1_are_refused(model, data):
    with pytest.raises(ModelError, match="batch_size must be a whole number of at least 1, got 0"):
        model.predict(ragged(3), 0)
    with pytest.raises(ModelError, match="threads must be a whole number of at least 1, got 0"):
        load(data, threads=0)
    with pytest.raises(ModelError, match=r"threads must be a whole number of at least 1, got 1\.5"):
        load(data, threads=1.5)
    with pytest.raises(ModelError, match="batch must be a whole number of at least 1, got 0"):
        model.warm_up(0, 1)  # would end the process
    with pytest.raises(ModelError, match="time must be a whole number of at least 1, got 0"):
        model.warm_up(1, 0)


def test_bytes_of_any_kind_are_opened(data, model):
    sequences = ragged(3)
    for source in (bytearray(data), memoryview(data)):
        np.testing.assert_array_equal(load(source).predict(sequences), model.predict(sequences))


def test_answers_that_are_no_numbers_are_refused():
    trained = make_model("regress", 2)
    trained.params["target_scaler.scale"] += 1e38
    trained.params["head.bias"] += 10.0
    model = load(to_onnx(trained).SerializeToString())
    with pytest.raises(ModelError, match="sequence 0: the answer is no finite number, as its val"):
        model.predict(ragged(3))


def test_too_many_threads_are_refused(data):
    with pytest.raises(ModelError, match=r"threads must be at most 1024, got 100000"):
        load(data, threads=100_000)


@pytest.mark.parametrize("source", [None, 7, "a\0b"])
def test_what_is_no_path_is_refused(source):
    with pytest.raises(ModelError, match="cannot be read"):
        load(source)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda model: model.predict(ragged(3), features=[None]), "features are others: found No"),
        (lambda model: model.predict(ragged(3), features=7), "features must be a list, got 7"),
        (lambda model: model.predict(7), "sequences must be a list, got 7"),
        (lambda model: model.predict({"a": ragged(3)[0]}), "sequences must be a list, got {'a'"),
        (lambda model: model.predict([np.ma.zeros((2, 3))]), "sequence 0: masked values would be"),
        (lambda model: model.predict_padded(np.ma.zeros((1, 2, 3)), [2]), "x: masked values would"),
        (lambda model: model.predict_padded([[1], [1, 2]], [1, 1]), r"x: not one array \("),
        (lambda model: model.labels([[1.0], [1.0, 2.0]]), r"labels: not one array \("),
        (lambda model: model.predict(ragged(3), features=[np.ones(2)]), "features are others"),
        (lambda model: model.warm_up(1 << 20, 1 << 20), "warm_up takes at most 2147483647 steps"),
        (lambda model: runtime.ask(model.session, [[["a"]]], [1]), "x and lengths must be numbers"),
        (lambda model: runtime.calendar(["no"], ["hour"]), "stamps must be datetime64 or texts"),
        (lambda model: runtime.calendar(["2020-01-01"], ["year"]), "no calendar column 'year'; kn"),
        (lambda model: runtime.pad([]), r"arrays must be \(time, features\), all alike"),
        (lambda model: runtime.pad([1.5]), r"arrays must be \(time, features\), all alike"),
        (lambda model: runtime.series_levels([[1.0]], 1), "histories must be arrays"),
        (lambda model: runtime.check_graph("a"), "a file's bytes are needed, got str"),
        (lambda model: runtime.from_json(7, "config"), "metadata `config` is damaged"),
        (pickle.dumps, "an open file cannot be pickled; open it in each process, by its path"),
    ],
)
def test_every_wrong_call_is_refused_in_one_line(model, ask, message):
    with pytest.raises(ModelError, match=message) as caught:
        ask(model)
    assert "\n" not in str(caught.value)


# ---- wrong files


def changed(data, **metadata):
    model = onnx.load_model_from_string(data)
    for entry in model.metadata_props:
        entry.value = metadata.get(entry.key, entry.value)
    return model


def bare(data):
    model = changed(data)
    del model.metadata_props[:]
    return model


def renamed(data):
    model = changed(data)
    model.graph.input[1].name = "sizes"
    for node in model.graph.node:
        node.input[:] = ["sizes" if name == "lengths" else name for name in node.input]
    return model


def elsewhere(data):
    model = changed(data)
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    return model


FEWER = Schema(FEATURES[:2], CLASSES, ()).to_json()
WRONG_FILES = [
    (bare, r"not exported by lstm-compile \(its metadata have no such format\)"),
    (lambda d: changed(d, format="other"), "not exported by lstm-compile"),
    (
        lambda d: changed(d, interface_version="2"),
        "interface_version is '2', this program reads '1'; export the model again or copy the new",
    ),
    (lambda d: changed(d, schema="{"), "metadata `schema` is damaged; export it again"),
    (lambda d: changed(d, schema="[]"), "metadata `schema` is damaged; export it again"),
    (
        lambda d: changed(d, schema='{"features": [1], "classes": [], "targets": []}'),
        "metadata `schema` must hold lists of strings; export it again",
    ),
    (lambda d: changed(d, task="regress"), "task 'regress' does not fit its schema; export it ag"),
    (lambda d: changed(d, schema=FEWER), r"expected inputs and output .*3, 2\).*, found .*3, 3\)"),
    (renamed, "expected inputs and output .*'lengths'.*, found .*'sizes'.*; export it again"),
    (elsewhere, "a tensor lies in another file, which is refused; export it again"),
]


@pytest.mark.parametrize(("change", "message"), WRONG_FILES)
def test_a_wrong_file_is_refused_in_one_line(data, tmp_path, change, message):
    path = tmp_path / "m.onnx"
    path.write_bytes(change(data).SerializeToString())
    with pytest.raises(ModelError, match=rf"m\.onnx: {message}") as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [b"", b"not an ONNX file at all", "cut"])
def test_a_corrupt_file_is_refused_in_one_line(data, damage):
    with pytest.raises(
        ModelError, match=r"^model: not a readable ONNX file \(.*copy it again$"
    ) as c:
        load(data[:2000] if damage == "cut" else damage)
    assert "\n" not in str(c.value)


def test_an_absent_file_is_refused(tmp_path):
    message = (
        r"no\.onnx: cannot be read \(No such file or directory\); export it first: `lstm-compile"
    )
    with pytest.raises(ModelError, match=message):
        load(tmp_path / "no.onnx")


# ---- copied into another program

BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError("blocked: " + name)

sys.meta_path.insert(0, Block())
"""


def test_the_one_file_works_in_another_program(trained, tmp_path):
    model, data = trained
    shutil.copy(Path(runtime.__file__), tmp_path / "runtime.py")
    (tmp_path / "m.onnx").write_bytes(data)
    sequences = ragged(4, 0, 11)
    np.savez(tmp_path / "in.npz", *sequences)
    code = BLOCK.format(blocked=("lstm_compile", "onnx", "torch")) + (
        "import numpy as np\n"
        "from runtime import load\n"
        "file = np.load('in.npz')\n"
        "np.save('out.npy', load('m.onnx').predict([file[name] for name in file.files]))\n"
    )
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, '.')\n{code}"]
    subprocess.run(command, cwd=tmp_path, check=True)
    found = np.load(tmp_path / "out.npy")
    np.testing.assert_allclose(found, expected(model, sequences), atol=1e-5, rtol=1e-6)


def test_it_imports_nothing_else():
    lines = Path(runtime.__file__).read_text("utf-8").splitlines()
    imported = {line.split()[1] for line in lines if line.startswith(("import ", "from "))}
    tops = {name.partition(".")[0] for name in imported}
    assert tops - sys.stdlib_module_names == {"numpy", "onnxruntime"}
