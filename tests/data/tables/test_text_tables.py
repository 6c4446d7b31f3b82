"""Texts in tables: read as tokens, for tasks `classify` and `tag`, to the exported file."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from cli_cases import invoke

from lstm_compile import ModelConfig, init_params
from lstm_compile.data.readers import read_sequences
from lstm_compile.data.schema import Schema, Vocabulary
from lstm_compile.data.tables.columns import ReadRequest, TableOptions
from lstm_compile.data.tables.read import read_table
from lstm_compile.errors import InputError
from lstm_compile.evaluation.baselines import baseline_predictions, fit_baselines
from lstm_compile.export import export_onnx, export_streaming
from lstm_compile.export.runtime import ModelError, load, open_streams
from lstm_compile.model.checkpoint import Model, load_model
from lstm_compile.model.model import predict
from lstm_compile.training.augment import crop_time

FAST = ["eager", "onnxruntime", "openvino"]
TEXTS = ["good day", "bye", "hello\nyou", "a, b"]
LABELS = ["in", "out", "in", "out"]
REVIEW = TableOptions(text="review", target=("label",))
VOCABULARY = Vocabulary("char", ("a", "b", "c"))


def save(path, columns):
    table = pa.table(columns)
    if path.suffix == ".csv":
        pa.csv.write_csv(table, path)
    elif path.suffix == ".parquet":
        pa.parquet.write_table(table, path)
    else:
        rows = "\n".join(map(json.dumps, table.to_pylist()))
        path.write_text(rows + "\n", encoding="utf-8")
    return path


def texts_of(data):
    characters = np.array(data.vocabulary.characters)
    return ["".join(characters[row]) for row in data.x.split(data.lengths.tolist())]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_each_row_is_a_text(tmp_path, suffix):
    path = save(tmp_path / f"t{suffix}", {"review": TEXTS, "label": LABELS})
    data = read_sequences(path, table=REVIEW)
    assert texts_of(data) == TEXTS
    assert data.x.dtype == torch.uint8
    assert [data.classes[code] for code in data.y] == LABELS
    assert data.task == "classify"
    assert data.schema == Schema(("review",), ("in", "out"), (), vocabulary=data.vocabulary)
    batch = data.gather(torch.tensor([1, 0]))
    assert batch.x.dtype == torch.int64
    assert batch.x.shape == (2, 8)
    assert not batch.x[0, 3:].any()


def test_rows_of_one_id_are_pieces_of_a_text(tmp_path):
    columns = {
        "id": ["x", "y", "x", "x"], "time": [3, 0, 1, 2], "word": ["sat", "no", "the ", "cat "],
        "label": ["verb", "verb", "rest", "noun"],
    }  # fmt: skip
    path, options = save(tmp_path / "t.csv", columns), TableOptions(text="word")
    data = read_sequences(path, table=options, per_step=True)
    assert texts_of(data) == ["the cat sat", "no"]
    labels = [data.classes[code] for code in data.y]
    assert labels == ["rest"] * 4 + ["noun"] * 4 + ["verb"] * 5
    with pytest.raises(InputError, match="of the same sequence, id"):
        read_sequences(path, table=options)


@pytest.mark.parametrize("tokens", ["char", "byte"])
def test_a_label_may_have_a_character_for_each_of_its_text(tmp_path, tokens):
    path = save(tmp_path / "t.parquet", {"review": ["a1é", "1"], "label": ["LDL", "D"]})
    data = read_sequences(path, table=REVIEW, per_step=True, tokens=tokens)
    expected = "LDLLD" if tokens == "byte" else "LDLD"
    assert "".join(data.classes[code] for code in data.y) == expected
    assert data.lengths.tolist() == [4, 1] if tokens == "byte" else [3, 1]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (
            {"review": ["ab", "abc"], "label": ["XY", "XY"]}, {},
            r"row 2, column 'label': found 2 labels for the 3 characters of 'review', expected one",
        ),
        ({"review": ["ab", None], "label": ["XY", "X"]}, {}, "row 2, column 'review': found an em"),
        ({"review": [1, 2], "label": ["X", "Y"]}, {}, r"found 1 \(int64\), expected text"),
        ({"review": ["a"], "label": ["X"]}, {"text": "revue"}, "no column 'revue' for --text"),
        ({"review": ["a"], "label": [0.5]}, {}, "the target label is of numbers, expected classes"),
        ({"review": ["a"], "mark": ["X"]}, {"target": ()}, "no column called target, label"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_read(tmp_path, columns, options, message):
    path = save(tmp_path / "t.parquet", columns)
    table = TableOptions(**{"text": "review", "target": ("label",), **options})
    with pytest.raises(InputError, match=message):
        read_sequences(path, table=table, per_step=True)


def test_a_character_outside_the_vocabulary_is_named(tmp_path):
    path = save(tmp_path / "t.csv", {"review": ["abc", "abz"]})
    schema = Schema(("review",), ("in", "out"), (), vocabulary=VOCABULARY)
    message = r"row 2, column 'review': found 'z' \(character 2\), expected characters in the"
    with pytest.raises(InputError, match=message):
        read_table(ReadRequest(path, schema=schema, labelled=False))


def test_empty_texts_are_asked_for(tmp_path):
    path = save(tmp_path / "t.parquet", {"review": ["ab", None, ""], "label": ["x", "y", "y"]})
    options = TableOptions(text="review", missing="zero")
    assert read_sequences(path, table=options).lengths.tolist() == [2, 0, 0]


def test_a_model_of_text_and_one_of_features_are_told_apart(tmp_path):
    numbers = save(tmp_path / "n.csv", {"id": [1, 2], "u": [0.5, 1.5], "label": ["in", "out"]})
    schema = Schema(("u",), ("in", "out"), ())
    with pytest.raises(InputError, match="the model was trained on the features u; leave --text"):
        read_table(ReadRequest(numbers, TableOptions(text="id"), schema))
    with pytest.raises(InputError, match="text replaces features"):
        TableOptions(text="a", features=("b",))
    found = invoke("train", numbers, "--tokens", "byte", "--output", tmp_path / "run")
    assert found.exit_code == 2
    assert "name a column with --text" in found.output


def test_baselines_of_texts_count_characters(tmp_path):
    path = save(tmp_path / "t.csv", {"review": ["aab", "bb"] * 20, "label": ["x", "y"] * 20})
    data = read_sequences(path, table=REVIEW)
    shares = baseline_predictions(fit_baselines(data), data)
    assert (shares["logistic regression on character shares"].argmax(1) == data.y).all()
    path = save(tmp_path / "s.csv", {"review": ["abba"] * 9, "label": ["XYYX"] * 9})
    data = read_sequences(path, table=REVIEW, per_step=True)
    found = baseline_predictions(fit_baselines(data), data)["frequencies by character"]
    np.testing.assert_allclose(found[0].exp(), [19 / 20, 1 / 20])


def test_cropping_takes_tokens(tmp_path):
    path = save(tmp_path / "t.csv", {"review": ["abcdefgh"] * 4, "label": LABELS})
    batch = read_sequences(path, table=REVIEW).gather(torch.arange(4))
    found = crop_time(batch, 0.9, torch.Generator().manual_seed(0))
    for row, length in zip(found.x, found.lengths.tolist(), strict=True):
        assert not row[length:].any()
        assert (row[1:length] - row[: length - 1] == 1).all()


def make_model(task, **changes):
    config = ModelConfig(
        task=task, input_size=1, output_size=3, vocabulary_size=3,
        **{"hidden_size": 5, "embedding_size": 4, "num_layers": 1, **changes},
    )  # fmt: skip
    schema = Schema(("text",), ("x", "y", "z"), (), vocabulary=VOCABULARY)
    return Model(init_params(config, 0), config, schema, {})


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classify", "tag"])
def test_exported_files_take_tokens_and_lengths(tmp_path, task):
    model = make_model(task)
    assert export_onnx(model, tmp_path / "m.onnx", FAST).parity.passed
    found = load(tmp_path / "m.onnx")
    x, lengths = torch.tensor([[0, 1, 2, 2], [2, 0, 99, -1]]), torch.tensor([4, 2])
    expected = predict(*model[:2], x, lengths).numpy()
    np.testing.assert_allclose(found.predict_padded(x, lengths), expected, atol=1e-5)
    if task == "classify":
        answers = found.predict(["abcc", "ca"])
    else:
        answers = np.stack([np.pad(a, ((0, 4 - len(a)), (0, 0))) for a in
                            found.predict_steps(["abcc", "ca"])])  # fmt: skip
    np.testing.assert_allclose(answers, expected, atol=1e-5)
    with pytest.raises(ModelError, match="sequence 0, character 1: 'q' is not in the vocabulary"):
        (found.predict if task == "classify" else found.predict_steps)(["aq"])
    with pytest.raises(ModelError, match=r"expected x \(batch, time\)"):
        found.predict_padded(x[..., None], lengths)


@pytest.mark.slow
@pytest.mark.parametrize("cells", ["node", "plain"])
def test_a_tagger_of_text_streams(tmp_path, cells):
    model = make_model("tag", bidirectional=False)
    assert export_streaming(model, tmp_path / "s.onnx", cells, FAST).parity.passed
    streams = open_streams(tmp_path / "s.onnx")
    parts = [streams.push(["a"], np.array([tokens])) for tokens in ([0, 1], [2], [2, 0])]
    expected = predict(*model[:2], torch.tensor([[0, 1, 2, 2, 0]])).numpy()
    np.testing.assert_allclose(np.concatenate(parts, 1), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classify", "tag"])
def test_the_command_line_from_a_table_to_predictions(tmp_path, task):
    texts = ["good day to you", "bye and farewell", "hello you", "so long, bye"] * 12
    labels = ["in", "out", "in", "out"] * 12
    if task == "tag":
        labels = ["".join("V" if each in "aeiou" else "C" for each in text) for text in texts]
    path = save(tmp_path / "t.csv", {"review": texts, "label": labels})
    run = tmp_path / "run"
    found = invoke(
        "train", path, "--text", "review", "--task", task, "--epochs", 12, "--hidden-size", 16,
        "--batch-size", 8, "--learning-rate", 0.02, "--dropout", 0, "--head-dropout", 0,
        "--label-smoothing", 0, "--device", "cpu", "--output", run,
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    assert "text, a vocabulary of" in found.output
    assert export_onnx(run, run / "model.onnx", FAST).parity.passed
    ours = json.loads(invoke("evaluate", run, path, "--json").stdout)
    theirs = json.loads(invoke("evaluate", run / "model.onnx", path, "--json").stdout)
    assert ours["metrics"]["accuracy"] > 0.95
    assert theirs["metrics"] == pytest.approx(ours["metrics"], abs=1e-4)
    fresh = save(tmp_path / "new.csv", {"review": ["bye", "hello"]})
    answers = {}
    for source in (run, run / "model.onnx"):
        found = invoke("predict", source, fresh, "--output", tmp_path / "answers.csv")
        assert found.exit_code == 0, found.output
        answers[source] = pa.csv.read_csv(tmp_path / "answers.csv").to_pydict()
    first, second = answers.values()
    assert first["prediction"] == second["prediction"]
    assert len(first["prediction"]) == (2 if task == "classify" else 8)
    assert load_model(run).training["table"]["text"] == "review"
    found = invoke("inspect", run / "model.onnx")
    assert "text        " in found.output
    strange = save(tmp_path / "strange.csv", {"review": ["x§"]})
    found = invoke("predict", run / "model.onnx", strange, "--output", tmp_path / "a.csv")
    assert found.exit_code == 2
    assert "row 1, column 'review': found" in found.output


def test_inspect_shows_the_characters_of_a_table(tmp_path):
    path = save(tmp_path / "t.csv", {"review": TEXTS, "label": LABELS})
    found = invoke("inspect", path, "--text", "review")
    assert found.exit_code == 0, found.output
    assert "vocabulary  " in found.output
    assert "constant" not in found.output
    assert "--text review" in found.output.splitlines()[-1]
