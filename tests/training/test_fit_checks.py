"""What `fit` refuses before its first step, and that torch's global settings change nothing."""

from dataclasses import replace

import pytest
import torch
from series_cases import SMALL, hourly, windows_of
from training_cases import QUICK, setting, two_classes

from lstm_compile import ModelConfig, TrainingConfig, fit, from_padded, init_params
from lstm_compile.data.series.windows import split_windows
from lstm_compile.errors import InputError
from lstm_compile.training.warm_start import initial_params


@pytest.fixture
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def test_fresh_parameters_are_float32_whatever_torchs_default(float64):
    for extra in ({}, {"transformer_layers": 1}, {"pooling": "attention"}):
        config = ModelConfig(task="regress", input_size=3, output_size=1, hidden_size=8, **extra)
        found = init_params(config, 0)
        torch.set_default_dtype(torch.float32)
        expected = init_params(config, 0)
        torch.set_default_dtype(torch.float64)
        assert {name: value.dtype for name, value in found.items()} == dict.fromkeys(
            expected, torch.float32
        )
        assert all(found[name].equal(value) for name, value in expected.items())


@pytest.mark.parametrize("kind", ["classes", "series"])
def test_training_gives_the_same_weights_whatever_torchs_default(tmp_path, kind):
    found, sequences = [], two_classes(20)
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            data = sequences
            config = ModelConfig(task="classify", input_size=2, output_size=2, hidden_size=4)
            if kind == "series":
                data = split_windows(windows_of(hourly(tmp_path / "t.csv", 90)))["train"]
                config = ModelConfig(
                    task="forecast", input_size=3, output_size=1, known_size=2, bidirectional=False,
                    dropout=0.0, scaling="revin", **SMALL,
                )  # fmt: skip
            training = TrainingConfig(epochs=1, device="cpu", ema=0.9)
            found.append(fit(initial_params(config, 0, data), config, training, data, data).params)
        finally:
            torch.set_default_dtype(torch.float32)
    first, second = found
    for name, value in first.items():
        assert second[name].dtype == torch.float32, name
        torch.testing.assert_close(second[name], value, rtol=1e-5, atol=1e-6)


def test_numbers_beyond_float32_are_refused():
    x, y = torch.zeros(2, 3, 1), torch.tensor([[0.0], [1e39]], dtype=torch.float64)
    with pytest.raises(InputError, match="targets in y must be finite float32 numbers"):
        from_padded(x, y)
    x = torch.full((2, 3, 1), 1e39, dtype=torch.float64)
    with pytest.raises(InputError, match="x must be finite in every valid step, as float32 too"):
        from_padded(x, torch.tensor([0, 1]))


def cases():
    """Changes to a training that goes well, and what is said about them."""
    data = two_classes(20)
    params, config = setting(data)
    codes, floats = data.y.clone(), data.y[:, None].float()
    codes[7] = 2
    regress = ModelConfig(task="regress", input_size=2, output_size=1, hidden_size=4)
    start, good = init_params(regress, 0), replace(data, y=floats, classes=(), targets=("a",))
    narrow = replace(data, x=data.x[:, :1], features=data.features[:1])
    two = replace(good, y=floats.expand(-1, 2), targets=("a", "b"))
    less = {name: value for name, value in params.items() if name != "head.bias"}
    double = {name: value.double() for name, value in params.items()}
    return {
        "code too large": (params, config, replace(data, y=codes), "found 2 in train.y, row 7"),
        "code below 0": (params, config, replace(data, y=codes - 1), "found -1 in train.y, row 0"),
        "floats for codes": (params, config, good, "needs int64 class codes, found torch.float32"),
        "codes for floats": (start, regress, data, r"needs floating targets \(rows, 1\), found"),
        "too many targets": (start, regress, two, r"targets \(rows, 1\), found torch.float32 \(20"),
        "missing feature": (params, config, narrow, "has 1 features .* input_size is 2"),
        "no rows": (params, config, data.select(torch.arange(0)), "train is empty"),
        "missing weight": (less, config, data, "'head.bias' must have shape"),
        "other model": (start, config, data, "must have shape"),
        "float64": (double, config, data, "must be a plain float32 tensor, found torch.float64"),
    }


@pytest.mark.parametrize("name", [*cases()])
def test_data_and_weights_that_do_not_fit_are_refused_before_the_first_step(name):
    params, config, data, message = cases()[name]
    with pytest.raises(InputError, match=message) as caught:
        fit(params, config, QUICK, data)
    assert "\n" not in str(caught.value)


def test_validation_data_are_checked_too():
    data = two_classes(20)
    params, config = setting(data)
    with pytest.raises(InputError, match=r"validation\.y, row"):
        fit(params, config, QUICK, data, replace(data, y=data.y + 1))


def test_windows_of_another_shape_are_refused(tmp_path):
    windows = windows_of(hourly(tmp_path / "t.csv", 90), (8, 4))
    config = ModelConfig(
        task="forecast", input_size=3, output_size=1, known_size=2, **{**SMALL, "horizon": 3}
    )
    with pytest.raises(InputError, match="train: horizon must be 3 as in the config, found 4"):
        fit(init_params(config, 0), config, QUICK, windows)
    with pytest.raises(InputError, match="task forecast does not learn from"):
        fit(init_params(config, 0), config, QUICK, two_classes(20))


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_without_gradients_nothing_is_trained(off):
    data = two_classes(20)
    params, config = setting(data)
    with off(), pytest.raises(InputError, match="fit needs gradients"):
        fit(params, config, QUICK, data)
    with torch.inference_mode():
        frozen = {name: value.clone() for name, value in params.items()}
    with pytest.raises(InputError, match="found an inference tensor"):
        fit(frozen, config, QUICK, data)


def test_the_result_says_which_backend_auto_took():
    data = two_classes(20)
    params, config = setting(data)
    training = replace(QUICK, epochs=1, backend="auto")
    assert fit(params, config, training, data).backend.startswith("vendor, ")
    asked = replace(training, backend="reference")
    assert fit(params, config, asked, data).backend == "reference, as asked for"
