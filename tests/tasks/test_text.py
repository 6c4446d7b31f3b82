"""Task `lm`: text in lanes, training with carried state, and text written again."""

import json
import math
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from cli_cases import invoke
from model_cases import text_model
from torch.nn.functional import cross_entropy

from lstm_compile import ModelConfig, forward, init_params
from lstm_compile.data.corpus import Corpus, read_corpus, split_corpus
from lstm_compile.data.lanes import carried, chunks, steps_of
from lstm_compile.data.schema import Vocabulary
from lstm_compile.data.sequences import IGNORED
from lstm_compile.data.tables.folders import is_text
from lstm_compile.errors import InputError
from lstm_compile.evaluation.perplexity import evaluate_text, fit_text_baselines, score_text
from lstm_compile.export import export_onnx, export_streaming
from lstm_compile.export.runtime import load, open_streams
from lstm_compile.export.use.evaluate_file import evaluate_file
from lstm_compile.export.use.generate import Sampling, draw_token, generate
from lstm_compile.export.use.score_text import score_exported
from lstm_compile.export.write.onnx import to_onnx
from lstm_compile.export.write.streaming import to_streaming
from lstm_compile.model.batch import Batch
from lstm_compile.model.checkpoint import load_model, save_model
from lstm_compile.recurrence.cell import LSTMState
from lstm_compile.tasks.metrics import text_metrics
from lstm_compile.training.loop import fit
from lstm_compile.training.settings import TrainingConfig
from lstm_compile.training.step import init_adam, train_step

VERSE = "the cat sat on the mat, and the rat sat on the cat.\n" * 60


def corpus_of(*texts, vocabulary=None):
    whole = "".join(texts)
    vocabulary = vocabulary or Vocabulary("char", tuple(sorted(set(whole))))
    starts = torch.tensor([0, *np.cumsum([len(text) for text in texts])])
    return Corpus(torch.tensor(vocabulary.encode(whole), dtype=torch.uint8), starts, vocabulary)


@pytest.mark.parametrize(("lanes", "time"), [(1, 7), (3, 4), (5, 100), (40, 3)])
def test_every_pair_of_a_document_is_seen_once(lanes, time):
    corpus = corpus_of("abcdefghij", "k", "lm", "nopqrstuvwxyz", "0123456789")
    seen = []
    found = list(chunks(corpus, lanes, time))
    assert len(found) == steps_of(corpus, lanes, time)
    for batch, _ in found:
        assert batch.x.shape[1] <= time
        for x, y, length in zip(batch.x, batch.y, batch.lengths.tolist(), strict=True):
            seen += list(zip(x[:length].tolist(), y[:length].tolist(), strict=True))
            assert (y[length:] == IGNORED).all()
    tokens, ends = corpus.tokens.tolist(), set(corpus.starts.tolist())
    pairs = [(a, b) for i, (a, b) in enumerate(pairwise(tokens)) if i + 1 not in ends]
    assert sorted(seen) == sorted(pairs)


def test_a_lane_begins_anew_with_each_document_and_only_there():
    corpus = corpus_of("abcdefgh", "i", "jklm")

    found = list(chunks(corpus, 1, 3))
    rows = []
    for batch, _ in found:
        resets = torch.zeros_like(batch.x) if batch.resets is None else batch.resets
        letters = [corpus.vocabulary.characters[token] for token in batch.x[0].tolist()]
        marks = ["." * int(reset) for reset in resets[0]]
        rows.append("".join(map("".join, zip(marks, letters, strict=True))))
    assert rows == [".abc", "def", "g.jk", "l"]
    assert [bool(fresh[0]) for _, fresh in found] == [True, False, False, False]
    assert [b.resets is None for b, _ in found] == [False, True, False, True]


def told(params, config, corpus, lanes, time):
    """The sum of -log p of a text in lanes, and how many tokens that is."""
    state, total, count = None, 0.0, 0
    for batch, fresh in chunks(corpus, lanes, time):
        logits, state = forward(
            params, config, batch.x, batch.lengths, carried(state, fresh), resets=batch.resets
        )
        total += float(cross_entropy(logits.mT, batch.y, ignore_index=IGNORED, reduction="sum"))
        count += int(batch.lengths.sum())
    return total, count


@pytest.mark.parametrize("time", [1, 4, 7, 100])
def test_documents_in_one_lane_are_told_as_if_each_stood_alone(time):
    texts = VERSE[:31], "a", VERSE[7:9], VERSE[11:60], VERSE[20:33]
    whole = corpus_of(*texts)
    params, config, *_ = text_model(len(whole.vocabulary))
    params = {name: value.double() for name, value in params.items()}
    alone = [
        told(params, config, corpus_of(text, vocabulary=whole.vocabulary), 1, 100) for text in texts
    ]
    expected = tuple(map(sum, zip(*alone, strict=True)))
    assert told(params, config, whole, 1, time) == pytest.approx(expected, abs=1e-9)


def test_a_training_step_learns_nothing_across_the_end_of_a_document():
    texts = VERSE[:9], VERSE[11:20]
    both = corpus_of(*texts)
    params, config, *_ = text_model(len(both.vocabulary))
    training = TrainingConfig(label_smoothing=0.0, backend="vendor", clip_norm=0.0)
    ((batch, _),) = chunks(both, 1, 100)
    rows = Batch(batch.x.view(2, 8), torch.tensor([8, 8]), batch.y.view(2, 8))
    one, other = (
        train_step(params, init_adam(params), each, 0.1, config, training) for each in (batch, rows)
    )
    assert float(one.loss) == pytest.approx(float(other.loss), abs=1e-6)
    for name, gradient in one.optimizer.mean.items():
        torch.testing.assert_close(gradient, other.optimizer.mean[name], atol=1e-6, rtol=1e-4)


def test_the_carried_loss_is_that_of_one_long_unrolled_run():
    corpus = corpus_of(VERSE[:200])
    params, config, *_ = text_model(len(corpus.vocabulary))
    params = {name: value.double() for name, value in params.items()}
    tokens = corpus.tokens.long()[None]
    logits, _ = forward(params, config, tokens[:, :-1], backend="reference")
    expected = float(cross_entropy(logits[0], tokens[0, 1:]))

    def chunked(carry):
        state, total, count = None, 0.0, 0
        for batch, fresh in chunks(corpus, 1, 16):
            before = carried(state, fresh) if carry else None
            logits, state = forward(params, config, batch.x, batch.lengths, before)
            total += float(cross_entropy(logits[0], batch.y[0], reduction="sum"))
            count += int(batch.lengths)
        return total / count

    assert chunked(carry=True) == pytest.approx(expected, abs=1e-9)
    assert abs(chunked(carry=False) - expected) > 1e-3


def test_a_training_step_goes_on_from_the_state_it_is_given():
    corpus = corpus_of(VERSE[:64])
    params, config, *_ = text_model(len(corpus.vocabulary))
    training = TrainingConfig(label_smoothing=0.0, backend="vendor")
    (first, _), (second, _) = list(chunks(corpus, 2, 16))[:2]
    one = train_step(params, init_adam(params), first, 0.0, config, training)
    assert not any(part.requires_grad for part in one.state)
    two = train_step(params, one.optimizer, second, 0.0, config, training, state=one.state)
    logits, _ = forward(params, config, torch.cat([first.x, second.x], 1))
    length = second.x.shape[1]
    expected = cross_entropy(
        logits[:, -length:].flatten(0, 1), second.y.flatten(), ignore_index=IGNORED
    )
    assert float(two.loss) == pytest.approx(float(expected), abs=1e-5)
    alone = train_step(params, one.optimizer, second, 0.0, config, training)
    assert float(alone.loss) != pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_training_run_has_the_loss_of_whole_documents(lanes):
    corpus = corpus_of(VERSE[:150], "a", VERSE[7:90])
    params, config, *_ = text_model(len(corpus.vocabulary))
    training = TrainingConfig(
        epochs=1, batch_size=lanes, unroll=16, learning_rate=0.0, label_smoothing=0.0
    )
    (epoch,) = fit(params, config, training, corpus).epochs
    whole, alone = [], []  # the cost of each pair: lanes read at once, and in chunks without a past
    for found, time in ((whole, len(corpus)), (alone, 16)):
        for batch, _ in chunks(corpus, lanes, time):
            double = {name: value.double() for name, value in params.items()}
            logits, _ = forward(
                double, config, batch.x, batch.lengths, resets=batch.resets, backend="reference"
            )
            cost = cross_entropy(logits.mT, batch.y, ignore_index=IGNORED, reduction="none")
            found += cost[batch.y != IGNORED].tolist()
    assert epoch.train_loss == pytest.approx(np.mean(whole), abs=1e-6)
    assert abs(epoch.train_loss - np.mean(alone)) > 1e-3


def test_gradients_end_where_a_chunk_begins():
    corpus = corpus_of(VERSE[:64])
    params, config, *_ = text_model(len(corpus.vocabulary))
    training = TrainingConfig(
        epochs=1, batch_size=1, unroll=21, learning_rate=1e-3, label_smoothing=0.0, clip_norm=0.0,
        weight_decay=0.0, schedule="constant", warmup=0.0,
    )  # fmt: skip
    found = fit(params, config, training, corpus)
    expected = {name: value.clone().requires_grad_() for name, value in params.items()}
    adam, state = torch.optim.Adam(expected.values(), lr=1e-3), None
    for batch, _ in chunks(corpus, 1, 21):
        logits, state = forward(expected, config, batch.x, None, state, backend="reference")
        adam.zero_grad()
        cross_entropy(logits[0], batch.y[0]).backward()
        adam.step()
        state = LSTMState(*(part.detach() for part in state))
    for name, value in expected.items():
        torch.testing.assert_close(found.params[name], value.detach(), atol=1e-5, rtol=0)


def test_scores_of_baselines_are_those_of_counting():
    corpus = corpus_of("abababab" * 50)
    baselines = fit_text_baselines(corpus)
    assert math.exp(baselines["bigram frequencies"].weight[0, 1]) == pytest.approx(201 / 202)
    params, config, *_ = text_model(2)
    scores = score_text(params, config, corpus)
    found = evaluate_text(scores, "lm", corpus, baselines)
    assert found.rows == 399
    assert found.baselines["character frequencies"]["bits_per_character"] == pytest.approx(
        1, abs=1e-3
    )
    assert found.metrics["perplexity"] == pytest.approx(math.exp(found.metrics["loss"]))
    assert found.metrics == text_metrics(scores)
    assert found.verdict.startswith("worse")


def test_pairs_of_two_documents_are_not_counted():
    corpus = corpus_of("aab", "ba", "b")
    table = fit_text_baselines(corpus)["bigram frequencies"].weight.exp()
    counts = torch.tensor([[2.0, 2.0], [2.0, 1.0]], dtype=torch.float64)  # aa, ab, ba, each + 1
    torch.testing.assert_close(table, counts / counts.sum(1, True))


def test_files_become_documents(tmp_path):
    (tmp_path / "b.txt").write_text("bcé", encoding="utf-8")
    (tmp_path / "a.txt").write_text("ab", encoding="utf-8")
    (tmp_path / "c.csv").write_text("x")
    found = read_corpus(tmp_path)
    assert found.vocabulary.characters == ("a", "b", "c", "é")
    assert found.tokens.tolist() == [0, 1, 1, 2, 3]
    assert found.starts.tolist() == [0, 2, 5]
    again = read_corpus(str(tmp_path / "*.txt"), "byte")
    assert bytes(again.tokens.tolist()).decode() == "abbcé"
    train, validation = split_corpus(found, 0.5)
    assert train.starts.tolist() == [0, 2]
    assert validation.starts.tolist() == [0, 3]


@pytest.mark.parametrize("tokens", ["char", "byte"])
def test_a_byte_order_mark_is_no_text(tmp_path, tokens):
    plain, marked = tmp_path / "plain.txt", tmp_path / "marked.txt"
    plain.write_bytes("äb\n".encode())
    marked.write_bytes("äb\n".encode("utf-8-sig"))
    one, other = (read_corpus(path, tokens) for path in (plain, marked))
    assert one.vocabulary == other.vocabulary
    assert one.tokens.equal(other.tokens)
    both = read_corpus(tmp_path, tokens)
    assert both.starts.tolist() == [0, len(one), 2 * len(one)]
    assert both.tokens.tolist() == 2 * one.tokens.tolist()
    marked.write_bytes(b"\xef\xbb\xbf")
    with pytest.raises(InputError, match=r"marked\.txt: the file is empty; expected text"):
        read_corpus(marked, tokens)


def test_many_characters_take_wider_codes(tmp_path):
    text = "".join(chr(0x4E00 + index) for index in range(600)) + "😀"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    found = read_corpus(tmp_path / "a.txt")
    assert found.tokens.dtype == torch.int32
    assert "".join(found.vocabulary.characters[code] for code in found.tokens.tolist()) == text


@pytest.mark.parametrize(
    ("content", "tokens", "message"),
    [
        (b"", "char", "the file is empty; expected text"),
        (b"abc\n\xff\xfe", "char", "line 2: byte 4 is not UTF-8; save the file as UTF-8"),
        (b"ab\xc3", "char", "byte 2 is not UTF-8|ends within a character"),
    ],
)
def test_files_that_are_no_text_are_refused(tmp_path, content, tokens, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_corpus(tmp_path / "a.txt", tokens)
    if content:
        assert len(read_corpus(tmp_path / "a.txt", "byte")) == len(content)


def test_a_character_outside_the_vocabulary_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("abcabz", encoding="utf-8")
    with pytest.raises(InputError, match="character 5: 'z' is not in the vocabulary of 3"):
        read_corpus(tmp_path / "a.txt", vocabulary=Vocabulary("char", ("a", "b", "c")))
    with pytest.raises(InputError, match="no such text file"):
        read_corpus(tmp_path / "absent.txt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bidirectional": True}, "task lm needs --no-bidirectional"),
        ({"tie": True, "embedding_size": 5}, "tie needs embedding_size = hidden_size"),
        ({"pooling": "mean"}, "pooling is for task"),
        ({"vocabulary_size": 3}, "vocabulary_size must be output_size"),
    ],
)
def test_models_of_text_that_cannot_be(changes, message):
    sizes = {"input_size": 1, "output_size": 9, "vocabulary_size": 9, "bidirectional": False}
    with pytest.raises(InputError, match=message):
        ModelConfig(task="lm", **{**sizes, **changes})


@pytest.mark.slow
@pytest.mark.parametrize("tie", [False, True])
def test_exported_files_agree_and_do_not_read_the_padding(tmp_path, tie):
    model = text_model(9, tie=tie, embedding_size=12)
    runtimes = ["eager", "onnxruntime", "openvino"]
    assert export_onnx(model, tmp_path / "m.onnx", runtimes).parity.passed
    for cells in ("node", "plain"):
        assert export_streaming(model, tmp_path / "s.onnx", cells, runtimes).parity.passed
    found = load(tmp_path / "m.onnx")
    logits = found.predict_steps(["!!#", [1, 2], ""])
    assert [part.shape for part in logits] == [(3, 9), (2, 9), (0, 9)]
    streams = open_streams(tmp_path / "s.onnx")
    step = streams.push(["a"], np.array([[0, 0, 2]]))
    np.testing.assert_allclose(step[0], logits[0], atol=1e-4)
    with pytest.raises(ValueError, match=r"must be tokens in \[0, 8\]"):
        streams.push(["a"], np.array([[9]]))


def test_the_sampler_draws_what_it_says():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    draws = np.linspace(0, 1, 1000, endpoint=False)

    def shares(**how):
        tokens = [draw_token(logits, uniform, Sampling(**how)) for uniform in draws]
        return [tokens.count(token) / 1000 for token in range(4)]

    assert shares() == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=2e-3)
    assert shares(top_k=2) == pytest.approx([0.625, 0.375, 0, 0], abs=2e-3)
    assert shares(top_p=0.8) == pytest.approx([0.625, 0.375, 0, 0], abs=2e-3)
    assert shares(temperature=0) == [1, 0, 0, 0]
    square = np.array([0.25, 0.09, 0.0225, 0.0025])
    assert shares(temperature=0.5) == pytest.approx(square / square.sum(), abs=2e-3)


@pytest.fixture(scope="module")
def poet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("poet")
    (folder / "verse.txt").write_text(VERSE, encoding="utf-8")
    found = invoke(
        "train", folder / "verse.txt", "--hidden-size", 32, "--epochs", 20, "--batch-size", 4,
        "--unroll", 32, "--learning-rate", 0.02, "--device", "cpu", "--output", folder / "run",
        "--json",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    export_streaming(folder / "run", folder / "run" / "streaming.onnx", runtimes=["onnxruntime"])
    return folder / "run", json.loads(found.stdout)


def text_of(source, prompts, length, how, stop=""):
    texts = [""] * len(prompts)
    for index, piece in generate(source, prompts, length, how, stop):
        texts[index] += piece
    return texts


def test_training_learns_the_verse(poet):
    run, found = poet
    assert found["task"] == "lm"
    assert found["metrics"]["bits_per_character"] < 0.8
    assert set(found["baselines"]) == {"character frequencies", "bigram frequencies"}
    (text,) = text_of(run, ["the "], 60, Sampling(temperature=0))
    assert "sat on the" in text
    result = invoke("evaluate", run, run.parent / "verse.txt", "--json")
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_the_same_seed_gives_the_same_text_from_both(poet):
    run, _ = poet
    prompts, how = ["the ", "rat", "\n"], Sampling(seed=3)
    ours = text_of(run, prompts, 1000, how)
    assert ours == text_of(run / "streaming.onnx", prompts, 1000, how)
    assert all(len(text) == 1000 for text in ours)
    assert ours != text_of(run, prompts, 1000, Sampling(seed=4))
    assert text_of(run, prompts[:1], 200, how)[0] == ours[0][:200]  # whoever else is asked


@pytest.mark.slow
def test_exported_files_are_measured_as_the_run_is(poet, tmp_path):
    run, _ = poet
    for name, text in {"a": VERSE[:700], "b": "t", "c": VERSE[:91]}.items():
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    model = load_model(run)
    sequences = tmp_path / "model.onnx"
    sequences.write_bytes(to_onnx(model).SerializeToString())
    plain = tmp_path / "plain.onnx"
    plain.write_bytes(to_streaming(model, "plain").SerializeToString())
    ours = evaluate_file(run, str(tmp_path)).metrics
    for file in (sequences, run / "streaming.onnx", plain):
        assert evaluate_file(file, str(tmp_path)).metrics == pytest.approx(ours, abs=1e-5)
    found = invoke("evaluate", run / "streaming.onnx", tmp_path)
    assert found.exit_code == 0, found.output
    assert "perplexity" in found.output
    with pytest.raises(InputError, match="one character cannot be scored"):
        evaluate_file(run, str(tmp_path / "b.txt"))
    found = invoke("generate", sequences)
    assert found.exit_code == 2
    assert "takes whole sequences; name the run folder" in found.output
    found = invoke("predict", run / "streaming.onnx", tmp_path, "--output", tmp_path / "a.csv")
    assert found.exit_code == 2
    assert "this file streams" in found.output


@pytest.mark.slow
def test_a_text_too_long_for_the_sequence_file_is_refused(monkeypatch, tmp_path, poet):
    monkeypatch.setattr("lstm_compile.export.use.score_text.LARGEST", 1000)
    model = load(to_onnx(load_model(poet[0])).SerializeToString())
    with pytest.raises(InputError, match="a text of 3120 tokens is too long for the sequence"):
        score_exported(model, corpus_of(VERSE))


def test_inspect_shows_what_a_text_is_made_of(tmp_path, poet):
    (tmp_path / "a.txt").write_text("aab\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("é" * 4, encoding="utf-8")
    found = invoke("inspect", tmp_path)
    assert found.exit_code == 0, found.output
    assert "2 documents, 8 characters (0 kB)" in found.output
    assert "vocabulary  4: é 4 (50.0 %), a 2 (25.0 %), b 1 (12.5 %)" in found.output
    assert "7 characters to train, the last 1 to validate; 1 steps an epoch" in found.output
    values = json.loads(invoke("inspect", tmp_path / "b.txt", "--json").stdout)
    assert values["kind"] == "text"
    assert values["bytes"] == 8
    found = invoke("inspect", poet[0] / "streaming.onnx")
    assert found.output.splitlines()[-1].split()[1:3] == ["lstm-compile", "generate"]


def test_columns_are_not_of_whole_files(tmp_path, poet):
    path = poet[0].parent / "verse.txt"
    for command in (["train", path, "--output", tmp_path / "run"], ["evaluate", poet[0], path]):
        found = invoke(*command, "--text", "review")
        assert found.exit_code == 2
        assert "--text says how to read a table, and task lm reads whole files" in found.output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_reader_that_goes_away_ends_it_quietly(poet):
    command = [sys.executable, "-m", "lstm_compile", "generate", poet[0], "--length", "20000"]
    with subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.read(5)
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 1


def test_a_folder_of_texts_alone_is_text(tmp_path):
    (tmp_path / "a.md").write_text("a")
    assert is_text(tmp_path)
    (tmp_path / "b.csv").write_text("a")
    assert not is_text(tmp_path)


def test_tied_models_train(tmp_path):
    (tmp_path / "verse.txt").write_text(VERSE, encoding="utf-8")
    found = invoke(
        "train", tmp_path / "verse.txt", "--tie", "--hidden-size", 8, "--embedding-size", 8,
        "--epochs", 1, "--output", tmp_path / "run",
    )  # fmt: skip
    assert found.exit_code == 0, found.output


def test_a_stop_ends_the_text(poet):
    run, _ = poet
    (text,) = text_of(run, ["the "], 500, Sampling(), stop=".\n")
    assert text.endswith(".\n")
    assert ".\n" not in text[:-2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", ""], "prompt 0 is empty; expected one character at least"),
        (["--prompt", "quiz"], "prompt 0, character 0: 'q' is not in the vocabulary"),
        (["--temperature", "-1"], "temperature must be a number from 0 on"),
        (["--top-p", "0"], "top_p must be above 0"),
    ],
)
def test_generate_refuses(poet, arguments, message):
    found = invoke("generate", poet[0], *arguments)
    assert found.exit_code == 2
    assert message in found.output


def test_generate_prints_the_prompt_and_goes_on(poet):
    found = invoke("generate", poet[0], "--prompt", "the ", "--length", 20)
    assert found.exit_code == 0, found.output
    assert found.stdout.startswith("the ")
    assert len(found.stdout) == 25
    found = invoke("generate", poet[0], "--prompt", "a", "--prompt", "c", "--length", 5, "--json")
    assert [text[0] for text in json.loads(found.stdout)["texts"]] == ["a", "c"]


def test_models_of_other_tasks_write_no_text(tmp_path):
    config = ModelConfig(task="classify", input_size=2, output_size=2)
    save_model(tmp_path / "model.safetensors", init_params(config, 0), config)
    found = invoke("generate", tmp_path)
    assert found.exit_code == 2
    assert "its task is classify, and text comes from task lm" in found.output
