"""Settings of training that are refused, and those that are off unless asked for."""

import math

import pytest
from cli_cases import invoke_small
from training_cases import save_npz, two_classes

from lstm_compile.errors import InputError
from lstm_compile.training.settings import TrainingConfig


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be at least 0.0, got nan"),
        ({"learning_rate": float("inf")}, "learning_rate must be at most"),
        ({"learning_rate": "fast"}, "learning_rate must be of type float, got 'fast'"),
        ({"optimizer": "sgd"}, "optimizer must be one of adamw, adam; got 'sgd'"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"seed": 1 << 70}, "seed must be at most"),
        (
            {"test_share": 1.5},
            "test_share must be a share up to 1 or a whole number of steps, got 1",
        ),
        ({"validation": 0.95}, "validation must be at most 0.9, got 0.95"),
        ({"validation": 0.0, "refit": True}, "refit needs a validation part; take validation ab"),
        ({"validation": 0.0, "schedule": "plateau"}, "schedule plateau needs a validation part;"),
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


def test_a_refused_setting_is_one_line(tmp_path):
    path = save_npz(tmp_path, two_classes())
    result = invoke_small("train", path, "--freeze", "encoder", "--output", tmp_path / "run")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert "--init" in result.stderr
