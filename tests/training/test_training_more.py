"""Plateaus, averages, refits, accumulation, augmentation, warm starts and class weights."""

import json
import math
import re
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from torch.nn import functional
from training_cases import QUICK, SMALL, do, means, same, save_npz, seeded, setting, two_classes

from lstm_compile import load_model, save_model
from lstm_compile.cli.app import app
from lstm_compile.data import Sequences, fingerprint, gather, load_dataset
from lstm_compile.errors import InputError, RunError
from lstm_compile.model.model import ENCODER, trainable
from lstm_compile.model.scaling import Scaler, fit_scaler
from lstm_compile.tasks.losses import balanced_weights, row_weight, training_loss
from lstm_compile.training import epoch as epochs
from lstm_compile.training import loop
from lstm_compile.training.augment import add_noise, augment, crop_time, drop_features
from lstm_compile.training.loop import fit, predict_all, refit
from lstm_compile.training.prepare import prepare
from lstm_compile.training.run import run
from lstm_compile.training.settings import TrainingConfig
from lstm_compile.training.step import (
    average_update,
    init_adam,
    learning_rate_at,
    plateau_factor,
    train_step,
)

LONG = replace(QUICK, epochs=6, patience=6)


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def paths_of(folder, data=None, test=None):
    data, test = data or two_classes(), test or two_classes(30, seed=5)
    return save_npz(folder, data), save_npz(folder, test, "test")


# ---- plateau


@pytest.mark.parametrize("patience", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("seed", range(4))
def test_plateaus_are_those_of_torch(patience, seed):
    losses = torch.rand(60, generator=seeded(seed)).add(1).cumprod(0).pow(-0.1).tolist()
    noise = torch.rand(60, generator=seeded(seed + 9)).tolist()
    losses = [loss + 0.3 * more for loss, more in zip(losses, noise, strict=True)]
    losses[3], losses[20], losses[21] = losses[2], math.nan, math.inf
    training = TrainingConfig(schedule="plateau", patience=patience)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=max(1, patience // 2) - 1, threshold=0.0, eps=0.0
    )
    factors = []
    for count, loss in enumerate(losses, 1):
        theirs.step(loss)
        factors.append(plateau_factor(losses[:count], training))
        assert factors[-1] == optimizer.param_groups[0]["lr"]
    assert plateau_factor([], training) == 1.0
    assert len(set(factors)) > 3


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_other_schedules_know_no_plateau(schedule):
    assert plateau_factor([1.0, 2.0, 3.0, 4.0], TrainingConfig(schedule=schedule)) == 1.0


def test_a_plateau_lowers_the_rate_of_the_next_epoch(monkeypatch):
    script = iter([3.0, 2.0, 2.5, 2.5, 1.0, 2.0])
    monkeypatch.setattr(loop, "_validate", lambda *_: (next(script), {"accuracy": 0.0}))
    data = two_classes()
    params, config = setting(data)
    training = replace(LONG, schedule="plateau", patience=4, warmup=0.0)
    rates = [e.learning_rate for e in fit(params, config, training, data, data).epochs]
    assert rates == [0.02, 0.02, 0.02, 0.02, 0.01, 0.01]
    assert learning_rate_at(5, 10, training) == 0.02


# ---- moving average


@pytest.mark.parametrize("decay", [0.1, 0.9, 0.999])
def test_the_average_is_the_weighted_sum_of_all_steps(decay):
    steps = [{"a": torch.randn(3, 2, generator=seeded(i)).double()} for i in range(12)]
    average = {"a": torch.full((3, 2), 1e6, dtype=torch.float64)}  # the start leaves no trace
    for step, params in enumerate(steps, 1):
        before = average["a"].clone()
        new = average_update(average, params, step, decay)
        assert average["a"].equal(before)
        average = new
        powers = decay ** torch.arange(step - 1, -1, -1).double()
        values = torch.stack([p["a"] for p in steps[:step]])
        expected = (powers[:, None, None] * values).sum(0) / powers.sum()
        torch.testing.assert_close(average["a"], expected, rtol=1e-9, atol=1e-9)
        assert step > 1 or average["a"].equal(params["a"])


def test_averages_are_validated_and_kept_while_training_goes_on_with_raw_weights():
    train, held_out = two_classes(), two_classes(20, seed=5)
    params, config = setting(train, head_dropout=0.3)
    seen = []
    raw = fit(params, config, LONG, train, held_out)
    training = replace(LONG, ema=0.9)
    found = fit(params, config, training, train, held_out, lambda *pair: seen.append(pair))
    assert [e.train_loss for e in found.epochs] == [e.train_loss for e in raw.epochs]
    for epoch, reached in seen:
        loss = functional.cross_entropy(predict_all(reached, config, held_out), held_out.y)
        assert epoch.validation_loss == pytest.approx(float(loss))
    assert [e.validation_loss for e in found.epochs] != [e.validation_loss for e in raw.epochs]
    assert same(found.params, seen[found.best.epoch - 1][1])
    assert found.params.keys() == params.keys()


def test_the_average_is_over_the_steps_that_were_made(monkeypatch):
    data, steps = two_classes(), []
    params, config = setting(data)
    original = epochs.train_step

    def spy(*args):
        result = original(*args)
        steps.append(result.params)
        return result

    monkeypatch.setattr(epochs, "train_step", spy)
    training = replace(QUICK, epochs=1, ema=0.8)
    found = fit(params, config, training, data, data).params
    powers = [0.8 ** (len(steps) - 1 - index) for index in range(len(steps))]
    for name in trainable(params):
        expected = sum(p * step[name] for p, step in zip(powers, steps, strict=True)) / sum(powers)
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6)


# ---- refit


@pytest.mark.parametrize(
    "changes", [{}, {"schedule": "plateau", "patience": 2}, {"accumulate": 2, "ema": 0.9}]
)
def test_a_refit_is_training_on_everything_for_the_best_number_of_epochs(
    tmp_path, monkeypatch, changes
):
    script = iter([3.0, 2.0, 2.5, 1.0, 2.0, 2.0])
    monkeypatch.setattr(loop, "_validate", lambda *_: (next(script), {"accuracy": 0.0}))
    training = replace(LONG, refit=True, validation=0.3, **changes)
    data, test = paths_of(tmp_path)
    job = prepare(data, SMALL, training, test=test, output=tmp_path / "run")
    found = run(job)
    assert (found.fit.best.epoch, found.refitted, found.tested_on) == (4, True, "test")

    everything = load_dataset(data, "train")
    params, config = setting(everything)
    scaler = fit_scaler(everything.x, "standard")
    params |= {"scaler.shift": scaler.shift, "scaler.scale": scaler.scale}
    script, reached = iter([3.0, 2.0, 2.5, 1.0, 2.0, 2.0]), []
    fit(params, config, training, everything, everything, lambda *pair: reached.append(pair))
    assert same(found.model.params, reached[3][1])
    assert not same(found.model.params, found.fit.params)
    assert same(load_model(tmp_path / "run").params, found.model.params)

    lines = metrics_of(tmp_path / "run")
    first, second = lines[: len(found.fit.epochs)], lines[len(found.fit.epochs) :]
    assert not any("refit" in line for line in first)
    assert [(line["epoch"], line["refit"]) for line in second] == [(k, True) for k in (1, 2, 3, 4)]
    assert all(line["validation_loss"] is None for line in second)
    rates = [epoch.learning_rate for epoch, _ in reached]
    assert [line["learning_rate"] for line in second] == rates[:4]
    metadata = load_model(tmp_path / "run").training
    assert metadata["refit"] == {"sequences": 80, "epochs": 4}
    assert metadata["data_fingerprint"] == fingerprint(everything)
    scores = predict_all(found.model.params, config, load_dataset(test, "train"))
    accuracy = (scores.argmax(-1) == load_dataset(test, "train").y).double().mean()
    assert found.evaluation.metrics["accuracy"] == pytest.approx(float(accuracy))


def test_a_refit_sees_nothing_of_the_test_part(tmp_path):
    training = replace(QUICK, refit=True)
    data, test = paths_of(tmp_path)
    first = do(data, tmp_path / "a", training, test=test)
    other = save_npz(tmp_path, two_classes(50, seed=9), "other")
    assert same(do(data, tmp_path / "b", training, test=other).model.params, first.model.params)


def test_without_a_test_part_the_figures_are_from_before_the_refit(tmp_path):
    path = save_npz(tmp_path, two_classes())
    plain = do(path, tmp_path / "a")
    found = do(path, tmp_path / "b", replace(QUICK, refit=True))
    assert found.tested_on == "validation"
    assert found.evaluation == plain.evaluation
    assert same(found.fit.params, plain.model.params)
    assert not same(found.model.params, plain.model.params)
    digest = load_model(tmp_path / "b").training["data_fingerprint"]
    assert digest == fingerprint(load_dataset(path, "train"))


def test_an_interrupted_refit_keeps_the_weights_before_it(tmp_path):
    def stop(epoch):
        if not epoch.validation:
            raise KeyboardInterrupt

    path = save_npz(tmp_path, two_classes())
    found = do(path, tmp_path / "run", replace(QUICK, refit=True), on_epoch=stop)
    assert (found.fit.stopped, found.refitted) == ("interrupt", False)
    assert same(load_model(tmp_path / "run").params, found.fit.params)
    assert "refit" not in load_model(tmp_path / "run").training


def test_a_refit_that_diverges_keeps_the_weights_before_it(tmp_path, monkeypatch):
    original, seen = epochs.train_step, []

    def poisoned(*args):
        result = original(*args)
        seen.append(result)
        is_bad = len(seen) > 15
        return result._replace(is_finite=torch.tensor(not is_bad), loss=result.loss * math.nan)

    monkeypatch.setattr(epochs, "train_step", poisoned)
    training = replace(QUICK, refit=True, skip_nonfinite=0)
    with pytest.raises(RunError, match="the loss of epoch 1, batch 1 of 5 is nan"):
        do(save_npz(tmp_path, two_classes()), tmp_path / "run", training)
    assert load_model(tmp_path / "run").training["epochs"] >= 1


def test_a_refit_validates_nothing(monkeypatch):
    data = two_classes()
    params, config = setting(data)
    found = fit(params, config, QUICK, data, data)
    monkeypatch.setattr(loop, "_validate", None)
    seen = []
    refit(params, config, QUICK, data, found, seen.append)
    assert len(seen) == found.best.epoch
    assert all(math.isnan(e.validation_loss) and not e.best and not e.validation for e in seen)


# ---- no validation part


def test_without_a_validation_part_all_data_are_learned_in_all_epochs(tmp_path):
    data, test = paths_of(tmp_path)
    training = replace(QUICK, epochs=4, patience=1, validation=0.0)
    found = do(data, tmp_path / "run", training, test=test)
    assert (len(found.fit.epochs), found.fit.stopped, found.tested_on) == (4, "epochs", "test")

    everything = load_dataset(data, "train")
    params, config = setting(everything)
    scaler = fit_scaler(everything.x, "standard")
    params |= {"scaler.shift": scaler.shift, "scaler.scale": scaler.scale}
    assert same(found.model.params, fit(params, config, training, everything).params)
    assert same(load_model(tmp_path / "run").params, found.model.params)
    metadata = load_model(tmp_path / "run").training
    assert metadata["data_fingerprint"] == fingerprint(everything)
    assert (metadata["epochs"], metadata["validation"]) == (4, {})
    lines = metrics_of(tmp_path / "run")
    assert [(line["validation_loss"], line["best"]) for line in lines] == [(None, True)] * 4


def test_epochs_without_validation_are_printed_as_they_are(tmp_path):
    data, test = paths_of(tmp_path)
    args = ["train", data, "--test", test, "--validation", "0", "--epochs", "2"]
    result = CliRunner().invoke(app, [*args, "--output", str(tmp_path / "run")])
    assert result.exit_code == 0
    assert "80 sequences to train, 0 to validate, 30 to test\n" in result.stdout
    assert len(re.findall(r"^epoch \d: train loss [\d.]+, [\d.]+ s$", result.stdout, re.M)) == 2
    assert "stopped     all epochs done\n" in result.stdout


# ---- accumulation


@pytest.mark.parametrize("task", ["classify", "weighted", "regress"])
@pytest.mark.parametrize("sizes", [(16, 16), (16, 5), (9, 2, 21)])
def test_accumulated_batches_make_the_step_of_one_batch_of_their_rows(task, sizes):
    data = means(targets=2) if task == "regress" else two_classes()
    params, config = setting(data)
    scalers = {"scaler": data.x, "target_scaler": data.y} if task == "regress" else {}
    for name, values in scalers.items():
        scaler = fit_scaler(values, "standard")
        params |= {f"{name}.shift": scaler.shift, f"{name}.scale": scaler.scale}
    weights = torch.tensor([0.2, 1.9]) if task == "weighted" else None
    training = replace(QUICK, label_smoothing=0.2, clip_norm=0.5)
    pieces = torch.arange(sum(sizes)).split(list(sizes))
    first, *more = (gather(data, rows) for rows in pieces)
    whole = gather(data, torch.arange(sum(sizes)))
    args = (0.1, config, training, weights)
    found = train_step(params, init_adam(params), first, *args, more)
    expected = train_step(params, init_adam(params), whole, *args)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-6, atol=1e-6)
    for name, value in expected.optimizer.mean.items():  # a tenth of the clipped gradient
        torch.testing.assert_close(found.optimizer.mean[name], value, rtol=0, atol=1e-6)
    assert found.optimizer.step == 1


def test_accumulation_makes_fewer_steps_of_the_same_rows(monkeypatch):
    data, steps = two_classes(), []
    params, config = setting(data)
    original = epochs.train_step

    def spy(params, optimizer, batch, rate, config, training, weights, more, *rest):
        steps.append([len(part.y) for part in (batch, *more)])
        return original(params, optimizer, batch, rate, config, training, weights, more, *rest)

    monkeypatch.setattr(epochs, "train_step", spy)
    training = replace(QUICK, epochs=2, accumulate=2)
    found = fit(params, config, training, data, data)
    assert steps == 2 * [[16, 16], [16, 16], [16]]
    assert found.epochs[-1].learning_rate == learning_rate_at(5, 6, training)


# ---- augmentation

SCALER = Scaler(torch.tensor([5.0, -3.0, 0.1]), torch.tensor([10.0, 0.5, 2.0]))
LENGTHS = [7, 0, 1, 2, 20, 0]


def batch_of(lengths=LENGTHS, seed=0):
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    x = torch.randn(int(offsets[-1]), 3, generator=seeded(seed)) * SCALER.scale + SCALER.shift
    y = torch.arange(len(lengths)) % 2
    data = Sequences(x, offsets, y, ("u", "v", "w"), ("a", "b"), ())
    return gather(data, torch.arange(len(lengths)))


def is_padding(batch):
    return torch.arange(batch.x.shape[1]) >= batch.lengths[:, None]


AUGMENTATIONS = {
    "time_crop": lambda batch, generator: crop_time(batch, 0.6, generator),
    "noise": lambda batch, generator: add_noise(batch, 0.5, SCALER, generator),
    "feature_dropout": lambda batch, generator: drop_features(batch, 0.5, SCALER, generator),
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_is_pure_and_keeps_padding_zero(name):
    batch = batch_of()
    copies = [part.clone() for part in batch[:3]]
    first, again, other = (AUGMENTATIONS[name](batch, seeded(s)) for s in (1, 1, 2))
    assert all(part.equal(copy) for part, copy in zip(batch[:3], copies, strict=True))
    assert all(one.equal(two) for one, two in zip(first[:3], again[:3], strict=True))
    assert not first.x.equal(other.x)
    assert not first.x.equal(batch.x)
    for result in (first, other):
        assert result.x[is_padding(result)].eq(0).all()
        assert (result.x.shape, result.x.dtype) == (batch.x.shape, batch.x.dtype)
        assert result.y.equal(batch.y)
        assert result.lengths.eq(0).equal(batch.lengths.eq(0))


@pytest.mark.parametrize("largest", [0.05, 0.25, 0.5, 1.0])
def test_a_crop_is_a_window_of_the_sequence(largest):
    sizes = [7, 0, 1, 2, 9, 0]
    batch = batch_of(sizes)
    kept, starts = [], set()
    for seed in range(600):
        result = crop_time(batch, largest, seeded(seed))
        kept.append(result.lengths)
        for row, length in enumerate(result.lengths.tolist()):
            whole = batch.x[row, : sizes[row]]
            windows = [
                start
                for start in range(sizes[row] - length + 1)
                if whole[start : start + length].equal(result.x[row, :length])
            ]
            assert windows
            starts |= {(row, windows[0])} if length else set()
    lengths = torch.tensor(sizes)
    least = (lengths - (lengths * largest).long()).maximum(lengths.clamp(max=1))
    assert torch.stack(kept).amin(0).equal(least)
    assert torch.stack(kept).amax(0).equal(lengths)
    expected = {(r, s) for r, n in enumerate(sizes) if n for s in range(n - int(least[r]) + 1)}
    assert starts == expected


def test_every_number_of_cut_steps_is_as_likely():
    batch = batch_of([10] * 4000)
    counts = torch.bincount(crop_time(batch, 0.4, seeded(0)).lengths, minlength=11)
    assert counts[:6].sum() == 0
    torch.testing.assert_close(counts[6:] / 4000, torch.full((5,), 0.2), rtol=0, atol=0.03)


def test_noise_is_in_units_of_the_scale():
    batch = batch_of([400, 300, 100])
    noise = (add_noise(batch, 0.3, SCALER, seeded(0)).x - batch.x)[~is_padding(batch)]
    torch.testing.assert_close(noise.std(0) / SCALER.scale, torch.full((3,), 0.3), rtol=0.1, atol=0)
    torch.testing.assert_close(noise.mean(0) / SCALER.scale, torch.zeros(3), rtol=0, atol=0.05)
    assert torch.corrcoef(noise.T).fill_diagonal_(0).abs().max() < 0.15


def test_a_dropped_feature_is_the_shift_at_every_step():
    batch = batch_of([6] * 2000)
    result = drop_features(batch, 0.3, SCALER, seeded(0))
    is_shift = (result.x == SCALER.shift).all(1)
    is_kept = (result.x == batch.x).all(1)
    assert (is_shift ^ is_kept).all()
    torch.testing.assert_close(is_shift.double().mean(0), torch.full((3,), 0.3).double(),
                               rtol=0, atol=0.04)  # fmt: skip
    everything = drop_features(batch_of(), 1.0, SCALER, seeded(0))
    assert SCALER.apply(everything.x)[~is_padding(everything)].eq(0).all()


def test_what_is_off_draws_nothing():
    batch, generator = batch_of(), seeded(3)
    before = generator.get_state()
    assert augment(batch, SCALER, QUICK, generator) is batch
    assert generator.get_state().equal(before)


@pytest.mark.parametrize("changes", [{"noise": 0.3}, {"time_crop": 0.5}, {"feature_dropout": 0.4}])
def test_augmented_runs_repeat_bit_for_bit_and_differ_from_plain_ones(changes):
    train, held_out = two_classes(), two_classes(20, seed=5)
    params, config = setting(train)
    training = replace(QUICK, **changes)
    first, again = (fit(params, config, training, train, held_out) for _ in range(2))
    assert same(first.params, again.params)
    assert not same(first.params, fit(params, config, QUICK, train, held_out).params)
    assert first.best.validation["accuracy"] > 0.8


def test_validation_is_not_augmented():
    train, held_out = two_classes(), two_classes(20, seed=5)
    params, config = setting(train)
    training = replace(QUICK, noise=50.0, time_crop=1.0, feature_dropout=0.5)
    found = fit(params, config, training, train, held_out)
    loss = functional.cross_entropy(predict_all(found.params, config, held_out), held_out.y)
    assert found.best.validation_loss == pytest.approx(float(loss))


def test_sequences_without_steps_survive_augmented_training():
    train = two_classes(40)
    empty = replace(train, offsets=torch.cat([train.offsets, train.offsets[-1:].repeat(8)]),
                    y=torch.cat([train.y, torch.arange(8) % 2]))  # fmt: skip
    params, config = setting(empty)
    training = replace(QUICK, noise=0.2, time_crop=0.5, feature_dropout=0.2)
    found = fit(params, config, training, empty, two_classes(20, seed=5))
    assert all(value.isfinite().all() for value in found.params.values())


# ---- warm start


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    return folder / "run", do(save_npz(folder, two_classes()), folder / "run").model


def other_classes(count=60):
    data = two_classes(count, seed=20)
    return replace(data, classes=("left", "right"), x=data.x * 3 + 1)


def begun(path, tmp_path, **changes):
    """The weights that training starts from, and the job."""
    training = replace(QUICK, epochs=1, learning_rate=0.0, weight_decay=0.0, **changes)
    job = prepare(path, SMALL, training, output=tmp_path / "run")
    return run(job).model.params, job


@pytest.mark.parametrize("file", [False, True])
def test_a_warm_start_takes_everything_from_a_model_of_the_same_data(tmp_path, source, file):
    folder, model = source
    path = folder / "model.safetensors" if file else folder
    params, job = begun(save_npz(tmp_path, two_classes(seed=20)), tmp_path, init=str(path))
    assert same(params, model.params)
    count = len(model.params)
    assert job.warm.line() == f"{path}: {count} of {count} tensors taken"
    assert job.warm.fresh == ()
    metadata = load_model(tmp_path / "run").training
    assert metadata["init"] == {"source": str(path), "fresh": []}


def test_a_warm_start_for_other_classes_has_a_fresh_head(tmp_path, source):
    folder, model = source
    data = other_classes()
    params, job = begun(save_npz(tmp_path, data), tmp_path, init=str(folder))
    assert job.warm.fresh == ("head.weight", "head.bias")
    assert job.warm.line().endswith("tensors taken; fresh are head.weight, head.bias")
    fresh, _ = setting(data)
    for name, value in params.items():
        assert value.equal(fresh[name] if name.startswith("head.") else model.params[name])


def test_a_warm_start_for_other_features_fits_its_own_scaler(tmp_path, source):
    _, model = source
    schema = replace(model.schema, features=("p", "q"))
    save_model(tmp_path / "other.safetensors", model.params, model.config, schema)
    init = str(tmp_path / "other.safetensors")
    params, job = begun(save_npz(tmp_path, two_classes()), tmp_path, init=init)
    scaler = fit_scaler(job.parts.train.x, "standard")
    assert job.warm.fresh == ("scaler.shift", "scaler.scale")
    assert params["scaler.shift"].equal(scaler.shift)
    assert params["lstm.weight_ih_l0"].equal(model.params["lstm.weight_ih_l0"])


def test_a_warm_start_for_other_targets_has_a_fresh_head_and_target_scaler(tmp_path):
    path = save_npz(tmp_path, means(targets=1))
    old = do(path, tmp_path / "old").model
    data = means(seed=20, targets=1)
    same_targets, _ = begun(save_npz(tmp_path, data), tmp_path, init=str(tmp_path / "old"))
    assert same(same_targets, old.params)
    schema = replace(old.schema, targets=("price",))
    save_model(tmp_path / "priced.safetensors", old.params, old.config, schema)
    job = prepare(path, SMALL, replace(QUICK, init=str(tmp_path / "priced.safetensors")),
                  output=tmp_path / "again")  # fmt: skip
    assert set(job.warm.fresh) == {
        *("head.weight", "head.bias", "target_scaler.shift", "target_scaler.scale")
    }


def test_a_deeper_model_takes_the_layers_that_are_there(tmp_path, source):
    folder, model = source
    path, training = save_npz(tmp_path, two_classes()), replace(QUICK, init=str(folder))
    deeper = {**SMALL, "num_layers": 2}
    job = prepare(path, deeper, training, output=tmp_path / "a")
    assert all("_l1" in name for name in job.warm.fresh)
    assert job.warm.taken["lstm.weight_hh_l0"].equal(model.params["lstm.weight_hh_l0"])
    with pytest.raises(InputError, match=r"to freeze the encoder all of it must fit, but lstm\.w"):
        prepare(path, deeper, replace(training, freeze="encoder"), output=tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("changes", [{"hidden_size": 7}, {"hidden_size": 12, "num_layers": 2}])
def test_a_model_of_which_nothing_fits_is_refused(tmp_path, source, changes):
    folder, _ = source
    path = save_npz(tmp_path, two_classes())
    with pytest.raises(InputError, match="no tensor of its LSTM fits this model: it has") as info:
        prepare(path, {**SMALL, **changes}, replace(QUICK, init=str(folder)),
                output=tmp_path / "run")  # fmt: skip
    assert str(info.value).startswith(f"{folder}: ")
    assert "\n" not in str(info.value)
    assert not (tmp_path / "run").exists()


def test_an_absent_model_is_refused_before_anything_is_written(tmp_path):
    path = save_npz(tmp_path, two_classes())
    with pytest.raises(InputError, match="absent: no such file or run folder"):
        prepare(path, SMALL, replace(QUICK, init="absent"), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("changes", [{}, {"ema": 0.9}, {"refit": True, "accumulate": 2}])
def test_a_frozen_encoder_stays_bit_for_bit(tmp_path, source, changes):
    folder, model = source
    training = replace(QUICK, init=str(folder), freeze="encoder", **changes)
    found = do(save_npz(tmp_path, other_classes()), tmp_path / "run", training).model.params
    for name, value in found.items():
        is_frozen = name.startswith((*ENCODER, "scaler."))
        assert value.equal(model.params[name]) == is_frozen, name


def test_a_frozen_encoder_learns_with_its_head(source, tmp_path):
    folder, _ = source
    training = replace(QUICK, init=str(folder), freeze="encoder", epochs=15, patience=15)
    found = do(save_npz(tmp_path, other_classes(200)), tmp_path / "run", training)
    losses = [epoch.train_loss for epoch in found.fit.epochs]
    assert losses[-1] < 0.8 * losses[0]


def test_freezing_without_a_model_to_start_from_is_refused(tmp_path):
    training = replace(QUICK, freeze="encoder")
    with pytest.raises(InputError, match="freeze encoder keeps the weights of another model"):
        prepare(save_npz(tmp_path, two_classes()), SMALL, training, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---- class weights


def test_balanced_weights_by_hand():
    y = torch.tensor([0, 0, 0, 1, 3, 3])
    assert balanced_weights(y, 4).tolist() == [6 / 12, 6 / 4, 0.0, 6 / 8]
    assert balanced_weights(y, 4).dtype == torch.float32
    weights = balanced_weights(y, 4)
    shares = [float(weights[y[y == code]].sum()) for code in (0, 1, 3)]
    assert shares == pytest.approx([1.5, 1.5, 1.5])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_weighted_loss_is_that_of_torch(smoothing):
    data = two_classes()
    params, config = setting(data)
    logits, y = torch.randn(9, 2, generator=seeded(0)) * 3, torch.arange(9) % 2
    weights = torch.tensor([0.3, 2.5])
    training = replace(QUICK, label_smoothing=smoothing)
    found = training_loss(params, config, training, logits, y, weights)
    expected = functional.cross_entropy(logits, y, weights, label_smoothing=smoothing)
    torch.testing.assert_close(found, expected)
    assert float(row_weight(y, weights)) == pytest.approx(5 * 0.3 + 4 * 2.5)


def test_a_class_without_weight_gives_no_nan():
    params, config = setting(two_classes())
    weights, y = torch.tensor([2.0, 0.0]), torch.tensor([1, 1])
    loss = training_loss(params, config, QUICK, torch.randn(2, 2), y, weights)
    assert loss == 0


def lopsided(count=200):
    """Three classes; one is rare and one never occurs."""
    data = two_classes(count)
    y = (torch.arange(count) % 10 == 0).long()
    x = data.x.clone()
    owner = torch.arange(count).repeat_interleave(data.lengths)
    x[:, 0] = torch.randn(len(x), generator=seeded(1)) + 0.8 * y[owner]
    return replace(data, x=x, y=y, classes=("common", "rare", "absent"))


def test_balanced_training_finds_the_rare_class_and_stays_finite():
    data, held_out = lopsided(), lopsided(100)
    params, config = setting(data)
    results = {}
    for kind in ("none", "balanced"):
        training = replace(LONG, class_weight=kind)
        found = fit(params, config, training, data, held_out)
        assert all(math.isfinite(e.validation_loss + e.train_loss) for e in found.epochs)
        guess = predict_all(found.params, config, held_out).argmax(-1)
        results[kind] = float((guess[held_out.y == 1] == 1).double().mean())
        weights = balanced_weights(data.y, 3) if kind == "balanced" else None
        logits = predict_all(found.params, config, held_out)
        loss = functional.cross_entropy(logits, held_out.y, weights)
        assert found.best.validation_loss == pytest.approx(float(loss), rel=1e-5)
    assert results["balanced"] > results["none"] + 0.3


def test_balanced_weights_are_refused_for_targets(tmp_path):
    training = replace(QUICK, class_weight="balanced")
    with pytest.raises(InputError, match="class_weight must be none for task regress, whose"):
        prepare(save_npz(tmp_path, means()), SMALL, training, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---- settings and the command line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ema": 1.0}, "ema must be at most 0.99999, got 1.0"),
        ({"ema": -0.1}, "ema must be at least 0.0, got -0.1"),
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"noise": -1.0}, "noise must be at least 0.0, got -1.0"),
        ({"time_crop": 1.5}, "time_crop must be at most 1.0, got 1.5"),
        ({"feature_dropout": math.nan}, "feature_dropout must be at least 0.0, got nan"),
        ({"freeze": "head"}, "freeze must be one of none, encoder; got 'head'"),
        ({"class_weight": "auto"}, "class_weight must be one of none, balanced; got 'auto'"),
        ({"schedule": "step"}, "schedule must be one of cosine, constant, plateau; got 'step'"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        TrainingConfig(**changes)


def test_the_new_settings_are_off_unless_asked_for():
    default = TrainingConfig()
    assert (default.accumulate, default.ema, default.refit) == (1, 0.0, False)
    assert (default.noise, default.time_crop, default.feature_dropout) == (0.0, 0.0, 0.0)
    assert (default.init, default.freeze, default.class_weight) == ("", "none", "none")


def invoke(*args, **options):
    words = [str(arg) for arg in (*args, "--hidden-size", 6, "--num-layers", 1, "--epochs", 2)]
    return CliRunner().invoke(app, words, prog_name="lstm-compile", **options)


def test_train_tells_of_a_warm_start_and_a_refit(tmp_path, source):
    folder, _ = source
    data, test = paths_of(tmp_path, other_classes())
    save_npz(tmp_path, other_classes(30), "test")
    result = invoke("train", data, "--test", test, "--init", folder, "--refit", "--output",
                    tmp_path / "run")  # fmt: skip
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[2].startswith(f"init        {folder}: ")
    assert lines[2].endswith("fresh are head.weight, head.bias")
    assert any(line.startswith("epoch 1 of the refit: train loss 0.") for line in lines)
    assert any(line.startswith("refit       ") and line.endswith("60 sequences") for line in lines)
    assert "nan" not in result.stdout
    again = invoke("train", "--config", tmp_path / "run" / "config.toml", "--output",
                   tmp_path / "again")  # fmt: skip
    assert again.exit_code == 0, again.output
    assert same(load_model(tmp_path / "run").params, load_model(tmp_path / "again").params)


def test_a_refit_without_a_test_part_says_what_its_figures_are_of(tmp_path):
    path = save_npz(tmp_path, two_classes())
    options = {"env": {"FORCE_COLOR": "1", "COLUMNS": "200"}}
    result = invoke("train", path, "--refit", "--output", tmp_path / "run", **options)
    assert result.exit_code == 0, result.output
    assert "on all 80 sequences; the figures are of the weights before it" in result.stdout
    assert "nan" not in result.stdout


def test_a_refused_setting_is_one_line(tmp_path):
    path = save_npz(tmp_path, two_classes())
    result = invoke("train", path, "--freeze", "encoder", "--output", tmp_path / "run")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert "--init" in result.stderr
