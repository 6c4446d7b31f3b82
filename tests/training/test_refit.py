"""Training again on all data, and training without a validation part."""

import json
import math
import re
from dataclasses import replace

import pytest
import torch
from cli_cases import invoke_small
from click.testing import CliRunner
from training_cases import (
    LONG,
    QUICK,
    SMALL,
    do,
    paths_of,
    prepared,
    same,
    save_npz,
    setting,
    two_classes,
)

from lstm_compile import load_model
from lstm_compile.cli.app import app
from lstm_compile.data import fingerprint, load_dataset
from lstm_compile.errors import RunError
from lstm_compile.model.scaling import fit_scaler
from lstm_compile.training import epoch as epochs
from lstm_compile.training import loop
from lstm_compile.training.loop import fit, predict_all, refit
from lstm_compile.training.run import run


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


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
    job = prepared(data, SMALL, training, test=test, output=tmp_path / "run")
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
    refit(params, config, QUICK, data, found, lambda epoch, _: seen.append(epoch))
    assert len(seen) == found.best.epoch
    assert all(math.isnan(e.validation_loss) and not e.best and not e.validation for e in seen)


def test_a_refit_without_a_test_part_says_what_its_figures_are_of(tmp_path):
    path = save_npz(tmp_path, two_classes())
    options = {"env": {"FORCE_COLOR": "1", "COLUMNS": "200"}}
    result = invoke_small("train", path, "--refit", "--output", tmp_path / "run", **options)
    assert result.exit_code == 0, result.output
    assert "on all 80 sequences; the figures are of the weights before it" in result.stdout
    assert "nan" not in result.stdout


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
