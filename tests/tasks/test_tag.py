"""Task `tag`: a class for every step, from the file to the exported model and back."""

import csv
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional
from training_cases import SMALL, do, ragged, save_npz, seeded

from lstm_compile import ModelConfig, init_params
from lstm_compile.cli.app import app
from lstm_compile.data import Sequences, gather, read_sequences
from lstm_compile.data.sequences import IGNORED
from lstm_compile.errors import InputError
from lstm_compile.evaluation.baselines import fit_baselines, neighbour_features
from lstm_compile.evaluation.predict import predict_all
from lstm_compile.evaluation.verdict import grouped_interval, paired_interval
from lstm_compile.export import export_onnx
from lstm_compile.export.runtime import ModelError, load
from lstm_compile.model.model import forward, predict
from lstm_compile.tasks.losses import row_weight, training_loss
from lstm_compile.training.augment import crop_time
from lstm_compile.training.settings import TrainingConfig

PLAIN = TrainingConfig(label_smoothing=0.0)


def steps_above(count=60, seed=0):
    """The class of a step is whether the running sum of the first feature is above 0."""
    x, offsets, owner = ragged(count, seed)
    y = torch.zeros(len(x), dtype=torch.int64)
    for index in range(count):
        rows = owner == index
        y[rows] = (x[rows, 0].cumsum(0) > 0).long()
    return Sequences(x, offsets, y, ("u", "v"), ("down", "up"), (), per_step=True)


def small_model(**changes):
    config = ModelConfig(task="tag", input_size=2, output_size=2, **{**SMALL, **changes})
    return init_params(config, 0), config


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tag")
    data = save_npz(folder, steps_above())
    return data, do(data, folder / "run", test=save_npz(folder, steps_above(30, 9), "test"))


def save_table(path, data, order=None):
    owner = torch.arange(len(data)).repeat_interleave(data.lengths).tolist()
    rows = [
        [f"s{who}", step, *map(float, x), data.classes[y]]
        for step, (who, x, y) in enumerate(
            zip(owner, data.x.tolist(), data.y.tolist(), strict=True)
        )
    ]
    rows = rows if order is None else [rows[index] for index in order]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "time", "u", "v", "label"], *rows])
    return str(path)


def test_a_batch_has_a_class_for_every_step_and_none_in_the_padding():
    data = steps_above()
    batch = gather(data, torch.tensor([3, 0]))
    for row, index in enumerate((3, 0)):
        length = int(data.lengths[index])
        own = data.y[data.offsets[index] : data.offsets[index + 1]]
        assert batch.y[row, :length].equal(own)
        assert (batch.y[row, length:] == IGNORED).all()
    some = data.select(torch.tensor([3, 0]))
    assert some.y.equal(torch.cat([batch.y[row][batch.y[row] >= 0] for row in (0, 1)]))


def test_loss_is_the_mean_over_valid_steps_whatever_the_padding():
    data = steps_above()
    params, config = small_model()
    batch = gather(data, torch.arange(8), time=14)
    logits, _ = forward(params, config, batch.x, batch.lengths)
    expected = torch.stack(
        [
            functional.cross_entropy(logits[row, step], batch.y[row, step])
            for row in range(8)
            for step in range(int(batch.lengths[row]))
        ]
    ).mean()
    torch.testing.assert_close(training_loss(params, config, PLAIN, logits, batch.y), expected)
    assert float(row_weight(batch.y)) == int(batch.lengths.sum())
    weights = torch.tensor([0.5, 2.0])
    weighted = training_loss(params, config, PLAIN, logits, batch.y, weights)
    flat = predict_all(params, config, data.select(torch.arange(8)))
    own = functional.cross_entropy(flat, data.select(torch.arange(8)).y, weights)
    torch.testing.assert_close(weighted, own)


def test_a_batch_without_a_step_has_loss_0():
    params, config = small_model()
    nothing = torch.full((2, 3), IGNORED)
    logits, _ = forward(params, config, torch.zeros(2, 3, 2), torch.zeros(2, dtype=torch.int64))
    assert float(training_loss(params, config, PLAIN, logits, nothing)) == 0.0


def test_answers_are_exact_zeros_in_the_padding_and_do_not_read_it():
    params, config = small_model()
    x = torch.randn(3, 6, 2, generator=seeded(0))
    lengths = torch.tensor([6, 2, 0])
    clean = predict(params, config, x, lengths)
    x[1, 2:], x[2] = float("nan"), float("inf")
    assert predict(params, config, x, lengths).equal(clean)
    assert not clean[1, 2:].any()
    assert not clean[2].any()
    torch.testing.assert_close(clean[1, :2].sum(-1), torch.ones(2))


def test_predict_all_gives_steps_in_the_order_of_the_data():
    data = steps_above()
    params, config = small_model()
    whole = predict_all(params, config, data, batch_size=7)
    rows = [predict_all(params, config, data.select(torch.tensor([i]))) for i in range(len(data))]
    torch.testing.assert_close(whole, torch.cat(rows))


def test_a_crop_takes_the_labels_along():
    batch = gather(steps_above(), torch.arange(10))
    marked = batch._replace(y=torch.where(batch.y < 0, IGNORED, (batch.x[..., 0] > 0).long()))
    cropped = crop_time(marked, 0.6, seeded(1))
    assert int(cropped.lengths.sum()) < int(batch.lengths.sum())
    for row, length in enumerate(cropped.lengths.tolist()):
        assert cropped.y[row, :length].equal((cropped.x[row, :length, 0] > 0).long())
        assert (cropped.y[row, length:] == IGNORED).all()


def test_neighbours_are_those_of_the_own_sequence():
    x = torch.arange(5.0)[:, None]
    data = Sequences(
        x, torch.tensor([0, 2, 2, 5]), torch.zeros(5).long(), ("u",), ("a",), (), per_step=True
    )
    found = neighbour_features(data, 1)
    assert found.tolist() == [[0, 0, 1], [0, 1, 1], [2, 2, 3], [2, 3, 4], [3, 4, 4]]
    assert set(fit_baselines(data)) == {"majority class", "logistic regression on 5 steps"}


def test_the_interval_draws_whole_sequences():
    own = torch.tensor([1.0, 1, 0, 1, 1, 0, 1]).repeat(4)
    other = torch.tensor([0.0, 1, 0, 1, 0, 0, 1]).repeat(4)
    single = torch.arange(28)
    apart = grouped_interval(own, other, single)
    assert apart == pytest.approx(paired_interval(own, other, lambda share: share))
    low, high = grouped_interval(own, other, single // 4)
    assert low <= float((own - other).mean()) <= high
    assert grouped_interval(own, other, single // 7) is None


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_long_table_gives_each_row_its_label(tmp_path, shuffled):
    data = steps_above(12)
    order = np.random.default_rng(0).permutation(len(data.x)) if shuffled else None
    found = read_sequences(save_table(tmp_path / "t.csv", data, order), per_step=True)
    assert found.task == "tag"
    ids = [row.split(",")[0] for row in (tmp_path / "t.csv").read_text().splitlines()[1:]]
    for index, name in enumerate(dict.fromkeys(ids)):
        own = data.select(torch.tensor([int(name[1:])]))
        read = found.select(torch.tensor([index]))
        assert read.y.equal(own.y)
        torch.testing.assert_close(read.x, own.x)


def test_a_label_that_changes_names_the_task(tmp_path):
    path = save_table(tmp_path / "t.csv", steps_above(12))
    with pytest.raises(InputError, match="learn one a step with --task tag"):
        read_sequences(path)


def test_labels_of_sequences_are_refused_where_steps_need_them(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones((5, 1)), lengths=[3, 2], y=[0, 1])
    with pytest.raises(InputError, match="holds one label a sequence, expected one a step"):
        read_sequences(tmp_path / "a.npz", per_step=True)
    np.savez(tmp_path / "b.npz", x=np.ones((5, 1)), lengths=[3, 2], y=[0, 1, 0, 1, 1])
    assert read_sequences(tmp_path / "b.npz").task == "tag"
    with pytest.raises(InputError, match="holds one label a step, expected one a sequence"):
        read_sequences(tmp_path / "b.npz", per_step=False)
    np.savez(tmp_path / "c.npz", x=np.ones((2, 1)), lengths=[1, 1], y=[0, 1])
    assert read_sequences(tmp_path / "c.npz", per_step=True).per_step
    np.savez(tmp_path / "d.npz", x=np.ones((5, 1)), lengths=[3, 2], y=[0, 1, 0])
    with pytest.raises(InputError, match="y has 3 rows, but lengths has 2 and x has 5"):
        read_sequences(tmp_path / "d.npz")


def test_an_unknown_class_is_named_with_its_step(tmp_path):
    data = steps_above(6)
    np.savez(
        tmp_path / "a.npz", x=data.x, lengths=data.lengths, y=[*["up"] * (len(data.x) - 1), "?"]
    )
    with pytest.raises(InputError, match=rf"sequence 5, step {int(data.lengths[5]) - 1}: unknown"):
        read_sequences(tmp_path / "a.npz", schema=data.schema)


def test_training_learns_and_beats_the_majority(tagged):
    _, outcome = tagged
    found = outcome.evaluation
    assert found.task == "tag"
    assert found.rows == 30
    assert found.metrics["accuracy"] > found.baselines["majority class"]["accuracy"] + 0.1
    assert set(found.metrics) == {"accuracy", "macro_f1", "loss"}
    assert "pooling" not in outcome.model.config.to_dict()
    assert "pooling.weight" not in outcome.model.params


def test_pooling_is_refused():
    with pytest.raises(InputError, match="pooling is for task classify or regress or forecast"):
        small_model(pooling="mean")


@pytest.mark.slow
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_exported_file_answers_every_step(tagged, tmp_path, bidirectional):
    _, outcome = tagged
    model = outcome.model
    if not bidirectional:
        params, config = small_model(bidirectional=False, num_layers=2)
        model = model._replace(params=params, config=config)
    report = export_onnx(model, tmp_path / "m.onnx", ["eager", "onnxruntime", "openvino"])
    assert report.parity.passed
    found, data = load(tmp_path / "m.onnx"), steps_above(20, 5)
    rows = [row.numpy() for row in data.x.split(data.lengths.tolist())]
    answers = found.predict_steps([*rows, np.zeros((0, 2))])
    expected = predict_all(model.params, model.config, data).softmax(-1).numpy()
    np.testing.assert_allclose(np.concatenate(answers), expected, atol=1e-5)
    assert answers[-1].shape == (0, 2)
    names = [model.schema.classes[code] for code in expected[: len(rows[0])].argmax(1)]
    assert found.labels(answers[0]) == names
    padded = found.predict_padded(np.stack([np.ones((4, 2)), np.ones((4, 2))]), [4, 1])
    assert padded.shape == (2, 4, 2)
    assert not padded[1, 1:].any()
    with pytest.raises(ModelError, match="task of this file is tag: call model"):
        found.predict(rows)
    example = json.loads((tmp_path / "selftest.json").read_text())
    assert example["output"] == "step_probabilities"
    assert len(example["tolerance"]) == 2


@pytest.mark.slow
def test_the_command_line_from_table_to_answers(tmp_path):
    invoke = CliRunner().invoke
    data = save_table(tmp_path / "t.csv", steps_above(40))
    run = tmp_path / "run"
    small = ["--hidden-size", 6, "--num-layers", 1, "--epochs", 2, "--device", "cpu"]
    asked = ["train", data, "--task", "tag", *small, "--output", run, "--json"]
    found = invoke(app, list(map(str, asked)))
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["task"] == "tag"
    assert 'task = "tag"' in (run / "config.toml").read_text()
    assert invoke(app, ["export", str(run), "--onnx"]).exit_code == 0
    answers, accuracy = {}, []
    for name, source in (("torch", run), ("onnx", run / "model.onnx")):
        out = tmp_path / f"{name}.csv"
        found = invoke(app, ["predict", str(source), data, "--output", str(out)])
        assert found.exit_code == 0, found.output
        with out.open() as file:
            answers[name] = list(csv.DictReader(file))
        found = invoke(app, ["evaluate", str(source), data, "--json"])
        assert found.exit_code == 0, found.output
        accuracy.append(json.loads(found.stdout)["metrics"]["accuracy"])
    assert accuracy[0] == accuracy[1]
    first = answers["torch"][0]
    assert list(first) == ["id", "time", "prediction", "probability_down", "probability_up"]
    assert len(answers["torch"]) == len(steps_above(40).x)
    for one, other in zip(answers["torch"], answers["onnx"], strict=True):
        assert (one["id"], one["time"]) == (other["id"], other["time"])
        assert float(one["probability_up"]) == pytest.approx(
            float(other["probability_up"]), abs=1e-5
        )
