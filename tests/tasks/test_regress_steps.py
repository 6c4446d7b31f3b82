"""Task `regress-steps`: numbers for every step, from the file to the exported model and back."""

import csv
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from training_cases import SMALL, do, ragged, save_npz

from lstm_compile import ModelConfig, init_params
from lstm_compile.cli.app import app
from lstm_compile.data import Sequences, gather, read_sequences
from lstm_compile.errors import InputError
from lstm_compile.evaluation.evaluate import evaluate
from lstm_compile.evaluation.predict import predict_all
from lstm_compile.evaluation.verdict import grouped_interval
from lstm_compile.export.runtime import load
from lstm_compile.model.model import forward, predict
from lstm_compile.tasks.losses import row_weight, training_loss
from lstm_compile.training.augment import crop_time
from lstm_compile.training.settings import TrainingConfig


def sums(count=60, seed=0, targets=1):
    """The target of a step is the running sum of the first feature, and its double."""
    x, offsets, owner = ragged(count, seed)
    y = torch.zeros(len(x), targets)
    for index in range(count):
        rows = owner == index
        total = 10 * x[rows, 0].cumsum(0) + 100
        y[rows] = torch.stack([total * (number + 1) for number in range(targets)], 1)
    names = tuple(f"sum {number}" for number in range(targets))
    return Sequences(x, offsets, y, ("u", "v"), (), names, per_step=True)


def small_model(**changes):
    config = ModelConfig(
        task="regress-steps",
        input_size=2,
        output_size=2,
        **{**SMALL, "pooling": "attention"},
        **changes,
    )
    return init_params(config, 0), config


def save_table(path, data, names, order=None):
    owner = torch.arange(len(data)).repeat_interleave(data.lengths).tolist()
    rows = [
        [f"s{who}", step, *x, *y]
        for step, (who, x, y) in enumerate(
            zip(owner, data.x.tolist(), data.y.tolist(), strict=True)
        )
    ]
    rows = rows if order is None else [rows[index] for index in order]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "time", "u", "v", *names], *rows])
    return str(path)


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_the_loss_is_the_mean_over_valid_steps(loss):
    data, (params, config) = sums(targets=2), small_model()
    params["target_scaler.scale"] = torch.tensor([2.0, 5.0])
    batch = gather(data, torch.arange(8), time=14)
    found, _ = forward(params, config, batch.x, batch.lengths)
    flat = [(found[r, t] - batch.y[r, t]) / torch.tensor([2.0, 5.0])
            for r in range(8) for t in range(int(batch.lengths[r]))]  # fmt: skip
    error = torch.stack(flat)
    huber = torch.where(error.abs() < 1, error.square() / 2, error.abs() - 0.5)
    expected = {"mse": error.square(), "mae": error.abs(), "huber": huber}[loss].mean()
    given = TrainingConfig(loss=loss)
    torch.testing.assert_close(training_loss(params, config, given, found, batch.y), expected)
    assert float(row_weight(batch.y)) == 2 * int(batch.lengths.sum())
    empty = torch.full((2, 3, 2), torch.nan)
    assert float(training_loss(params, config, given, torch.zeros(2, 3, 2), empty)) == 0.0


def test_answers_are_zeros_in_the_padding_and_do_not_read_it():
    params, config = small_model()
    params["target_scaler.shift"] = torch.tensor([50.0, -50.0])
    x, lengths = torch.randn(3, 6, 2), torch.tensor([6, 2, 0])
    clean = predict(params, config, x, lengths)
    x[1, 2:], x[2] = torch.nan, torch.inf
    assert predict(params, config, x, lengths).equal(clean)
    assert not clean[1, 2:].any()
    assert not clean[2].any()
    assert bool((clean[0, :, 0] > 40).all())


def test_a_crop_takes_the_numbers_along():
    batch = gather(sums(), torch.arange(10))
    marked = batch._replace(y=torch.where(batch.y.isnan(), torch.nan, batch.x[..., :1] * 3))
    cropped = crop_time(marked, 0.6, torch.Generator().manual_seed(1))
    assert int(cropped.lengths.sum()) < int(batch.lengths.sum())
    for row, length in enumerate(cropped.lengths.tolist()):
        assert cropped.y[row, :length].equal(cropped.x[row, :length, :1] * 3)
        assert cropped.y[row, length:].isnan().all()


def test_the_interval_is_of_root_mean_squares_over_whole_sequences():
    random = np.random.default_rng(0)
    own, other = torch.tensor(random.gamma(2.0, 1.0, (2, 40)))
    owner = torch.arange(40) // 4
    low, high = grouped_interval(own, other, owner, lambda mean: -mean.sqrt())
    assert low < float(other.mean().sqrt() - own.mean().sqrt()) < high


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_long_table_gives_each_row_its_numbers(tmp_path, shuffled):
    data = sums(12, targets=2)
    order = np.random.default_rng(0).permutation(len(data.x)) if shuffled else None
    path = save_table(tmp_path / "t.csv", data, ["a", "b"], order)
    from lstm_compile.data import TableOptions

    options = TableOptions(target=("b", "a"), features=("u", "v"))
    found = read_sequences(path, table=options, per_step=True, has_classes=False)
    assert (found.task, found.targets) == ("regress-steps", ("b", "a"))
    ids = [row.split(",")[0] for row in (tmp_path / "t.csv").read_text().splitlines()[1:]]
    for index, name in enumerate(dict.fromkeys(ids)):
        own, read = data.select(torch.tensor([int(name[1:])])), found.select(torch.tensor([index]))
        torch.testing.assert_close(read.y, own.y.flip(1))
        torch.testing.assert_close(read.x, own.x)


@pytest.mark.parametrize(
    ("cell", "found"), [("", "an empty cell or NaN"), ("none?", "'none[?]'"), ("1e39", "1e[+]39")]
)
def test_a_step_without_a_number_is_named(tmp_path, cell, found):
    path = tmp_path / "t.csv"
    path.write_text(f"id,time,u,y\na,0,1,5\na,1,2,6\nb,0,1,{cell}\n")
    with pytest.raises(InputError, match=rf"row 3, column 'y': found {found}.*, expected a "):
        read_sequences(path, per_step=True, has_classes=False)


def test_npz_has_numbers_for_every_row(tmp_path):
    data = sums(6, targets=2)
    found = read_sequences(save_npz(tmp_path, data), per_step=True)
    assert found.task == "regress-steps"
    assert found.y.equal(data.y)
    np.savez(tmp_path / "i.npz", x=np.ones((5, 1)), lengths=[3, 2], y=[4, 3, 2, 9, 8])
    assert read_sequences(tmp_path / "i.npz").task == "tag"
    asked = read_sequences(tmp_path / "i.npz", per_step=True, has_classes=False)
    assert asked.y.tolist() == [[4.0], [3.0], [2.0], [9.0], [8.0]]
    with pytest.raises(InputError, match="one label a step, expected one a sequence; add --per-st"):
        read_sequences(tmp_path / "i.npz", per_step=False)


def test_training_learns_numbers_and_beats_the_mean(tmp_path):
    data = save_npz(tmp_path, sums(80))
    outcome = do(
        data, tmp_path / "run", TrainingConfig(epochs=15, learning_rate=0.02, device="cpu")
    )
    found = outcome.evaluation
    assert found.task == "regress-steps"
    assert list(found.baselines) == ["mean", "ridge on 5 steps"]
    assert found.metrics["rmse"] < 0.8 * found.baselines["mean"]["rmse"]
    held = outcome.model
    rows = read_sequences(data)
    flat = predict_all(held.params, held.config, rows)
    again = evaluate(flat, held.config, rows, {})
    truth = np.square(flat.numpy().astype(float) - rows.y.numpy()).mean() ** 0.5
    assert again.metrics["rmse"] == pytest.approx(truth)
    assert not {"pooling", "pooling.weight"} & {*held.config.to_dict(), *held.params}


@pytest.mark.slow
def test_the_command_line_from_counts_to_answers(tmp_path):
    invoke = CliRunner().invoke

    def ok(*words):
        found = invoke(app, [str(word) for word in words])
        assert found.exit_code == 0, found.output
        return found.stdout

    path, run, random = tmp_path / "engines.csv", tmp_path / "run", np.random.default_rng(0)
    lines = ["engine,cycle,heat,life"]
    for engine in range(40):
        length = int(random.integers(5, 15))
        lines += [f"{engine},{t},{t + random.normal():.3f},{length - 1 - t}" for t in range(length)]
    path.write_text("\n".join(lines) + "\n")
    named = ["--id", "engine", "--time", "cycle", "--target", "life"]
    shown = ok(
        "train", path, *named, "--task", "regress", "--per-step", "--hidden-size", 4,
        "--num-layers", 1, "--no-bidirectional", "--epochs", 2, "--output", run,
    )  # fmt: skip
    assert "1 feature, target life" in shown
    assert 'task = "regress-steps"' in (run / "config.toml").read_text()
    figures = json.loads(ok("evaluate", run, path, "--json"))
    onnx = tmp_path / "model.onnx"
    ok("export", run, "--onnx", "--output", onnx)
    theirs = json.loads(ok("evaluate", onnx, path, "--json"))
    assert theirs["metrics"]["mae"] == pytest.approx(figures["metrics"]["mae"], abs=1e-3)
    ok("predict", onnx, path, "--output", tmp_path / "out.csv")
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert len(rows) == len(lines) - 1
    found = load(onnx)
    assert found.session.get_outputs()[0].name == "step_value"
    heat = [float(line.split(",")[2]) for line in lines[1:] if line.startswith("0,")]
    (steps,) = found.predict_steps([np.array(heat)[:, None]])
    mine = [float(row["life"]) for row in rows[: len(heat)]]
    np.testing.assert_allclose(steps[:, 0], mine, rtol=1e-5)
    found.check(tmp_path / "selftest.json")
