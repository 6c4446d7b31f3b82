"""A run from its data to its folder."""

import json
import math
import tomllib
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_cases import QUICK, SMALL, do, means, prepared, same, save_npz, scripted, two_classes

from lstm_compile import load_model
from lstm_compile.data import fingerprint, load_dataset
from lstm_compile.errors import InputError, RunError
from lstm_compile.evaluation.baselines import from_tensors
from lstm_compile.model.scaling import fit_scaler
from lstm_compile.training import epoch as epochs
from lstm_compile.training.backend import threads_of
from lstm_compile.training.run import run
from lstm_compile.training.settings import TrainingConfig

# ---- what a run may see


@pytest.mark.parametrize("task", ["classify", "regress"])
@pytest.mark.parametrize("kind", ["standard", "minmax"])
def test_scalers_know_nothing_of_the_validation_part(tmp_path, task, kind):
    data = two_classes() if task == "classify" else means(targets=2)
    training = replace(QUICK, epochs=1, validation=0.2)
    kinds = {"scaling": kind, "target_scaling": kind}
    job = prepared(save_npz(tmp_path, data), {**SMALL, **kinds}, training, output=tmp_path / "a")
    found = run(job).model.params

    expected = {"scaler": fit_scaler(job.parts.train.x, kind)}
    if task == "regress":
        expected["target_scaler"] = fit_scaler(job.parts.train.y, kind)
    for name, scaler in expected.items():
        assert found[f"{name}.shift"].equal(scaler.shift)
        assert found[f"{name}.scale"].equal(scaler.scale)

    held_out = {tuple(row) for row in job.parts.validation.x.tolist()}
    is_held_out = torch.tensor([tuple(row) in held_out for row in data.x.tolist()])
    assert is_held_out.sum() == len(job.parts.validation.x)
    extreme = replace(data, x=torch.where(is_held_out[:, None], 1e20, data.x))
    if task == "regress":
        targets = {tuple(row) for row in job.parts.validation.y.tolist()}
        rows = torch.tensor([tuple(row) in targets for row in data.y.tolist()])
        extreme = replace(extreme, y=torch.where(rows[:, None], 1e6 * data.y, data.y))
    again = do(save_npz(tmp_path, extreme), tmp_path / "b", training, **kinds).model.params
    for name in expected:
        assert again[f"{name}.shift"].equal(found[f"{name}.shift"])
        assert again[f"{name}.scale"].equal(found[f"{name}.scale"])


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e39])
def test_values_that_are_no_numbers_never_enter(tmp_path, bad):
    data = two_classes()
    x = data.x.double().numpy()
    x[5, 1] = bad
    path = tmp_path / "data.npz"
    np.savez(path, x=x, lengths=data.lengths.numpy(), y=data.y.numpy())
    with pytest.raises(InputError, match="feature 'feature_1': expected a finite float32 number"):
        prepared(str(path), SMALL, QUICK, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_parts_of_a_run_do_not_overlap(tmp_path):
    training = replace(QUICK, validation=0.25)
    job = prepared(save_npz(tmp_path, two_classes()), SMALL, training, output=tmp_path / "a")
    parts = job.parts
    train, held_out = ({tuple(row) for row in part.x.tolist()} for part in parts[:2])
    assert not train & held_out
    assert (len(parts.train), len(parts.validation)) == (60, 20)
    assert parts.tested_on == "validation"
    assert parts.test is parts.validation
    assert parts.known is parts.train  # the baselines see no more than the model
    bundled = prepared("japanese-vowels", SMALL, training, output=tmp_path / "b").parts
    assert (bundled.tested_on, len(bundled.known), len(bundled.test)) == ("test", 270, 370)
    assert len(bundled.train) + len(bundled.validation) == 270


# ---- the run folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    path = save_npz(folder, two_classes())
    return path, folder / "run", do(path, folder / "run", pooling="mean")


def test_a_run_folder_holds_six_files(finished):
    _, folder, _ = finished
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors",
        "last.safetensors",
        "config.toml",
        "metrics.jsonl",
        "baselines.safetensors",
        "report.html",
    }


def test_the_config_file_resolves_every_field(finished):
    path, folder, outcome = finished
    document = tomllib.loads((folder / "config.toml").read_text())
    derived = {"task", "input_size", "output_size"}
    config, threads = outcome.model.config.to_dict(), threads_of(outcome.model.config, QUICK)
    assert document == {
        "data": path,
        "model": {name: value for name, value in config.items() if name not in derived},
        # settled: a short run compiles nothing
        "training": {**asdict(QUICK), "backend": "vendor", "threads": threads},
    }
    assert set(document["training"]) == {field.name for field in fields(TrainingConfig)}


@pytest.mark.parametrize("name", ["plain", 'a "quoted" \\ name', "ünï 🙂", "tab\tand\x7fdel"])
def test_the_config_file_takes_any_name_of_a_data_file(tmp_path, name):
    path = save_npz(tmp_path, two_classes(20), name)
    do(path, tmp_path / "run", replace(QUICK, epochs=1))
    assert tomllib.loads((tmp_path / "run" / "config.toml").read_text("utf-8"))["data"] == path


def test_the_metrics_file_has_a_line_an_epoch(finished):
    _, folder, outcome = finished
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines == [epoch._asdict() for epoch in outcome.fit.epochs]
    assert set(lines[0]) == {
        "epoch",
        "train_loss",
        "validation_loss",
        "validation",
        "learning_rate",
        "seconds",
        "best",
    }


def test_the_model_file_holds_the_best_weights_and_where_they_came_from(finished):
    path, folder, outcome = finished
    model = load_model(folder)
    assert same(model.params, outcome.fit.params)
    assert model.schema == load_dataset(path, "train").schema
    training = model.training
    assert set(training) == {
        "data",
        "data_fingerprint",
        "seed",
        "versions",
        "epochs",
        "stopped",
        "backend",
        "validation",
        "baselines",
        "seconds",
        "compile_seconds",
    }
    assert (training["data"], training["seed"], training["stopped"]) == (path, 0, "epochs")
    assert training["epochs"] == outcome.fit.best.epoch
    assert training["versions"]["torch"] == torch.__version__
    assert training["validation"] == outcome.evaluation.metrics
    assert training["baselines"] == outcome.evaluation.baselines
    assert len(training["data_fingerprint"]) == 64


def test_the_baselines_file_holds_what_the_figures_are_of(finished):
    _, folder, outcome = finished
    stored = from_tensors(load_file(folder / "baselines.safetensors"))
    assert set(stored) == set(outcome.evaluation.baselines)


def test_the_fingerprint_and_the_test_figures_of_a_run_with_a_test_file(tmp_path):
    train, test = two_classes(), two_classes(30, seed=5)
    path = save_npz(tmp_path, train)
    found = do(path, tmp_path / "run", test=save_npz(tmp_path, test, "test"), pooling="mean")
    document = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert (document["data"], document["test"]) == (path, str(tmp_path / "test.npz"))
    training = load_model(tmp_path / "run").training
    assert training["test"] == found.evaluation.metrics
    assert training["data_fingerprint"] == fingerprint(load_dataset(path, "train"))


def test_a_run_is_the_same_model_again_bit_for_bit(tmp_path, finished):
    path, _, outcome = finished
    again = do(path, tmp_path / "run", pooling="mean")
    assert same(again.model.params, outcome.model.params)
    other = do(path, tmp_path / "other", replace(QUICK, seed=1), pooling="mean")
    assert not same(other.model.params, outcome.model.params)


def test_a_diverging_run_keeps_the_best_weights_so_far(tmp_path, monkeypatch):
    path, kept = save_npz(tmp_path, two_classes()), {}
    original = epochs.train_step

    def poisoned(params, optimizer, batch, *rest):
        result = original(params, optimizer, batch, *rest)
        return result._replace(is_finite=torch.tensor(not kept), loss=result.loss * math.nan)

    monkeypatch.setattr(epochs, "train_step", poisoned)
    training = replace(QUICK, skip_nonfinite=0)
    with pytest.raises(RunError, match="the loss of epoch 2, batch 1 of 5 is nan"):
        do(path, tmp_path / "run", training, lambda epoch: kept.update(epoch._asdict()))
    model = load_model(tmp_path / "run")
    assert model.training["epochs"] == 1
    assert model.training["validation"] == kept["validation"]
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_run_whose_validation_never_is_finite_fails(tmp_path, monkeypatch):
    scripted(monkeypatch, [math.nan] * 3)
    with pytest.raises(RunError, match="no epoch gave a finite validation loss; lower --learning"):
        do(save_npz(tmp_path, two_classes()), tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_an_interrupted_run_is_finished_with_what_it_has(tmp_path):
    def stop(epoch):
        raise KeyboardInterrupt

    found = do(save_npz(tmp_path, two_classes()), tmp_path / "run", on_epoch=stop)
    assert (found.fit.stopped, len(found.fit.epochs)) == ("interrupt", 1)
    model = load_model(tmp_path / "run")
    assert same(model.params, found.fit.params)
    assert model.training["stopped"] == "interrupt"
    assert (tmp_path / "run" / "baselines.safetensors").exists()


def test_an_interrupt_before_the_first_epoch_is_passed_on(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(epochs, "train_step", stop)
    with pytest.raises(KeyboardInterrupt):
        do(save_npz(tmp_path, two_classes()), tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.toml"])
def test_a_folder_that_holds_a_run_is_refused(tmp_path, name):
    path = save_npz(tmp_path, two_classes())
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / name).write_text("kept")
    with pytest.raises(InputError, match="holds a run already; name another --output or remove it"):
        prepared(path, SMALL, QUICK, output=folder)
    assert (folder / name).read_text() == "kept"
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match=r"cannot be made \(File exists\); name another --output"):
        prepared(path, SMALL, QUICK, output=tmp_path / "file")
