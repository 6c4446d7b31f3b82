"""Runs that begin with the weights of another model."""

from dataclasses import replace

import pytest
from cli_cases import invoke_small
from training_cases import (
    QUICK,
    SMALL,
    do,
    means,
    paths_of,
    prepared,
    same,
    save_npz,
    setting,
    two_classes,
)

from lstm_compile import load_model, save_model
from lstm_compile.errors import InputError
from lstm_compile.model.model import ENCODER
from lstm_compile.model.scaling import fit_scaler
from lstm_compile.training.run import run


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
    job = prepared(path, SMALL, training, output=tmp_path / "run")
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
    job = prepared(path, SMALL, replace(QUICK, init=str(tmp_path / "priced.safetensors")),
                  output=tmp_path / "again")  # fmt: skip
    assert set(job.warm.fresh) == {
        *("head.weight", "head.bias", "target_scaler.shift", "target_scaler.scale")
    }


def test_a_deeper_model_takes_the_layers_that_are_there(tmp_path, source):
    folder, model = source
    path, training = save_npz(tmp_path, two_classes()), replace(QUICK, init=str(folder))
    deeper = {**SMALL, "num_layers": 2}
    job = prepared(path, deeper, training, output=tmp_path / "a")
    assert all("_l1" in name for name in job.warm.fresh)
    assert job.warm.taken["lstm.weight_hh_l0"].equal(model.params["lstm.weight_hh_l0"])
    with pytest.raises(InputError, match=r"to freeze the encoder all of it must fit, but lstm\.w"):
        prepared(path, deeper, replace(training, freeze="encoder"), output=tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("changes", [{"hidden_size": 7}, {"hidden_size": 12, "num_layers": 2}])
def test_a_model_of_which_nothing_fits_is_refused(tmp_path, source, changes):
    folder, _ = source
    path = save_npz(tmp_path, two_classes())
    with pytest.raises(InputError, match="no tensor of its LSTM fits this model: it has") as info:
        prepared(path, {**SMALL, **changes}, replace(QUICK, init=str(folder)),
                output=tmp_path / "run")  # fmt: skip
    assert str(info.value).startswith(f"{folder}: ")
    assert "\n" not in str(info.value)
    assert not (tmp_path / "run").exists()


def test_an_absent_model_is_refused_before_anything_is_written(tmp_path):
    path = save_npz(tmp_path, two_classes())
    with pytest.raises(InputError, match="absent: no such file or run folder"):
        prepared(path, SMALL, replace(QUICK, init="absent"), output=tmp_path / "run")
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
        prepared(save_npz(tmp_path, two_classes()), SMALL, training, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_train_tells_of_a_warm_start_and_a_refit(tmp_path, source):
    folder, _ = source
    data, test = paths_of(tmp_path, other_classes())
    save_npz(tmp_path, other_classes(30), "test")
    result = invoke_small("train", data, "--test", test, "--init", folder, "--refit", "--output",
                    tmp_path / "run")  # fmt: skip
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[2].startswith(f"init        {folder}: ")
    assert lines[2].endswith("fresh are head.weight, head.bias")
    assert any(line.startswith("epoch 1 of the refit: train loss 0.") for line in lines)
    assert any(line.startswith("refit       ") and line.endswith("60 sequences") for line in lines)
    assert "nan" not in result.stdout
    again = invoke_small("train", "--config", tmp_path / "run" / "config.toml", "--output",
                   tmp_path / "again")  # fmt: skip
    assert again.exit_code == 0, again.output
    assert same(load_model(tmp_path / "run").params, load_model(tmp_path / "again").params)
