"""ModelConfig, initial parameters, and the whole model's forward."""

import json
from dataclasses import replace
from typing import get_args

import pytest
import torch
from cases import DOUBLE, SINGLE, padding_of
from marks import slow

from lstm_compile import LSTM, ModelConfig, forward, init_params
from lstm_compile.config import Pooling
from lstm_compile.errors import InputError
from lstm_compile.model.model import param_shapes, predict, trainable
from lstm_compile.model.scaling import fit_scaler

REGRESS = ModelConfig(task="regress", input_size=3, output_size=2, hidden_size=5)
CLASSIFY = replace(REGRESS, task="classify", output_size=4)
CONFIGS = [
    REGRESS,
    CLASSIFY,
    replace(CLASSIFY, pooling="last", num_layers=1, bidirectional=False),
    replace(REGRESS, pooling="max", bias=False, scaling="minmax", target_scaling="none"),
    replace(REGRESS, pooling="mean", scaling="none", target_scaling="minmax"),
    replace(CLASSIFY, pooling="dot-attention", num_layers=3),
]
LENGTHS = torch.tensor([4, 0, 1, 3])


def named(config):
    return f"{config.task}-{config.pooling}-{config.num_layers}"


def fitted(config, dtype=DOUBLE):
    """Parameters whose scalers, biases and attention are not the identity they start as."""
    params = init_params(config, 0)
    torch.manual_seed(1)
    for name, value in params.items():
        if "bias" in name or name == "pooling.weight":
            value.add_(torch.randn_like(value) / 3)
    params["scaler.shift"], params["scaler.scale"] = fit_scaler(
        torch.randn(9, 3) * 5 + 2, "standard"
    )
    if config.task == "regress":
        scaler = fit_scaler(torch.randn(9, config.output_size) * 40 - 300, "standard")
        params["target_scaler.shift"], params["target_scaler.scale"] = scaler
    return {name: value.to(dtype) for name, value in params.items()}


def inputs(dtype=DOUBLE, filler=0.25):
    torch.manual_seed(2)
    x = torch.randn(4, 4, 3, dtype=dtype) * 5 + 2
    x[padding_of(LENGTHS, 4)] = filler
    return x


# config -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS, ids=named)
def test_json_and_back(config):
    assert ModelConfig.from_json(config.to_json()) == config
    assert list(json.loads(config.to_json())) == sorted(json.loads(config.to_json()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "forecasting"}, "task must be one of classify, regress"),
        ({"input_size": 0}, "input_size must be at least 1, got 0"),
        ({"output_size": 0}, "output_size must be at least 1, got 0"),
        ({"input_size": 65537}, "input_size must be at most 65536, got 65537"),
        ({"hidden_size": 0}, "hidden_size must be at least 1, got 0"),
        ({"hidden_size": 64.0}, "hidden_size must be of type int, got 64.0"),
        ({"hidden_size": True}, "hidden_size must be of type int, got True"),
        ({"num_layers": 65}, "num_layers must be at most 64, got 65"),
        ({"bidirectional": 1}, "bidirectional must be of type bool, got 1"),
        ({"bias": None}, "bias must be of type bool, got None"),
        ({"dropout": 1.1}, "dropout must be at most 1.0, got 1.1"),
        ({"dropout": float("nan")}, "dropout must be at least 0.0, got nan"),
        ({"head_dropout": "a"}, "head_dropout must be of type float, got 'a'"),
        (
            {"pooling": "first"},
            "pooling must be one of last, mean, max, attention, dot-attention; got 'first'",
        ),
        ({"scaling": "robust"}, "scaling must be one of none, standard, minmax, series, la"),
        ({"target_scaling": 1}, "target_scaling must be one of none, standard, minmax; got 1"),
    ],
)
def test_values_out_of_range(changes, message):
    with pytest.raises(InputError, match=message):
        replace(REGRESS, **changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "ModelConfig: not valid JSON"),
        ("[1]", "ModelConfig: expected a JSON object, found list"),
        ('{"task": "regress", "width": 3}', r"ModelConfig: unknown keys \['width'\]; known are"),
        ('{"task": "regress"}', r"ModelConfig: missing keys \['input_size', 'output_size'\]"),
        (
            '{"task": "regress", "input_size": "3", "output_size": 1}',
            "input_size must be of type int, got '3'",
        ),
    ],
)
def test_json_that_is_no_config(text, message):
    with pytest.raises(InputError, match=message):
        ModelConfig.from_json(text)


# parameters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS, ids=named)
def test_initial_parameters_have_the_declared_shapes(config):
    params = init_params(config, 0)
    assert {name: tuple(value.shape) for name, value in params.items()} == param_shapes(config)
    assert {value.dtype for value in params.values()} == {SINGLE}


@pytest.mark.parametrize("config", CONFIGS, ids=named)
def test_the_stack_has_the_keys_of_the_module(config):
    module = LSTM(
        config.input_size,
        config.hidden_size,
        config.num_layers,
        bias=config.bias,
        bidirectional=config.bidirectional,
    )
    names = {f"lstm.{name}": tuple(value.shape) for name, value in module.named_parameters()}
    shapes = param_shapes(config)
    assert names == {name: shapes[name] for name in shapes if name.startswith("lstm.")}


def test_one_seed_gives_one_set_of_parameters():
    state = torch.random.get_rng_state()
    one, same, other = (init_params(CLASSIFY, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["lstm.weight_ih_l0"], other["lstm.weight_ih_l0"])
    assert not torch.equal(one["lstm.weight_hh_l1_reverse"], other["lstm.weight_hh_l1_reverse"])


def test_recurrent_gates_are_orthogonal_and_biases_forget_nothing():
    params = init_params(replace(REGRESS, hidden_size=7), 0)
    for name, value in params.items():
        if ".weight_hh_" in name:
            for gate in value.chunk(4):
                assert torch.allclose(gate @ gate.t(), torch.eye(7), atol=1e-5)
        elif ".bias_ih_" in name:
            expected = torch.cat([torch.zeros(7), torch.ones(7), torch.zeros(14)])
            assert torch.equal(value, expected)
        elif ".bias_hh_" in name or name == "head.bias":
            assert torch.equal(value, torch.zeros_like(value))
        elif ".weight_ih_" in name:
            bound = (6 / (7 + value.shape[1])) ** 0.5  # Glorot's, of one gate
            assert bound / 2 < value.abs().max() <= bound


def test_scalers_start_as_the_identity_and_stay_out_of_training():
    params = init_params(REGRESS, 0)
    for name in ("scaler", "target_scaler"):
        assert (params[f"{name}.shift"] == 0).all()
        assert (params[f"{name}.scale"] == 1).all()
    frozen = set(params) - set(trainable(params))
    assert frozen == {f"{n}.{p}" for n in ("scaler", "target_scaler") for p in ("shift", "scale")}


# forward ------------------------------------------------------------------------------------------


def gradients(params, config, x, backend="reference"):
    """Of what trains, and of x; scaler statistics are fitted."""
    leaves = {name: value.clone().requires_grad_() for name, value in trainable(params).items()}
    x = x.clone().requires_grad_()
    prediction, state = forward({**params, **leaves}, config, x, LENGTHS, backend=backend, chunk=2)
    torch.manual_seed(3)
    loss = sum((v * torch.randn_like(v)).sum() for v in (prediction, state.h, state.c))
    loss.backward()
    named_gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return prediction.detach(), state, {**named_gradients, "x": x.grad}


@pytest.mark.parametrize("backend", ["reference", "vendor", slow("compiled")])
@pytest.mark.parametrize("config", CONFIGS, ids=named)
def test_every_backend_gives_the_same_model(config, backend):
    params = fitted(config)
    prediction, state, grads = gradients(params, config, inputs(), backend)
    expected, expected_state, expected_grads = gradients(params, config, inputs())
    assert prediction.shape == (4, config.output_size)
    assert torch.allclose(prediction, expected, rtol=1e-9, atol=1e-9)
    assert torch.allclose(state.h, expected_state.h, atol=1e-10)
    assert torch.allclose(state.c, expected_state.c, atol=1e-10)
    assert grads.keys() == expected_grads.keys()
    for name, gradient in expected_grads.items():
        assert torch.allclose(grads[name], gradient, rtol=1e-8, atol=1e-9), name


@pytest.mark.parametrize("pooling", get_args(Pooling))
@pytest.mark.parametrize("base", [REGRESS, CLASSIFY], ids=["regress", "classify"])
@pytest.mark.parametrize("filler", [float("nan"), float("inf"), -1e30])
def test_padding_changes_neither_values_nor_gradients(base, pooling, filler):
    config = replace(base, pooling=pooling)
    params = fitted(config)
    clean, _, clean_gradients = gradients(params, config, inputs())
    prediction, state, grads = gradients(params, config, inputs(filler=filler))
    assert torch.equal(prediction, clean)
    assert state.c.isfinite().all()
    assert grads.keys() == clean_gradients.keys()
    for name, gradient in clean_gradients.items():
        assert torch.equal(grads[name], gradient), name
    assert (grads["x"][padding_of(LENGTHS, 4)] == 0).all()
    assert grads["x"][0].abs().min() > 0


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_more_padding_changes_nothing(pooling):
    config = replace(REGRESS, pooling=pooling)
    params = fitted(config)
    longer = torch.nn.functional.pad(inputs(), (0, 0, 0, 3), value=float("nan"))
    expected = predict(params, config, inputs(), LENGTHS)
    assert torch.allclose(predict(params, config, longer, LENGTHS), expected, rtol=1e-12)


@pytest.mark.parametrize("pooling", get_args(Pooling))
def test_a_row_of_length_zero_predicts_from_the_bias_alone(pooling):
    config = replace(CLASSIFY, pooling=pooling)
    params = fitted(config)
    prediction, state = forward(params, config, inputs(), LENGTHS)
    assert torch.equal(prediction[1], params["head.bias"])
    assert (state.h[:, 1] == 0).all()


def test_no_lengths_are_full_lengths():
    params, x = fitted(REGRESS), inputs()
    full = torch.full((4,), 4)
    assert torch.equal(predict(params, REGRESS, x), predict(params, REGRESS, x, full))


def test_regression_speaks_the_users_units():
    """Scaling inside is scaling outside: the same weights on scaled input, inverted by hand."""
    params, x = fitted(REGRESS), inputs()
    bare = replace(REGRESS, scaling="none", target_scaling="none")
    scaled = (x - params["scaler.shift"]) / params["scaler.scale"]
    by_hand = predict(params, bare, scaled, LENGTHS)
    by_hand = by_hand * params["target_scaler.scale"] + params["target_scaler.shift"]
    found = predict(params, REGRESS, x, LENGTHS)
    assert torch.allclose(found, by_hand, rtol=1e-12)
    assert (found < -100).all()


def test_classification_gives_logits_and_probabilities():
    params, x = fitted(CLASSIFY), inputs()
    logits, _ = forward(params, CLASSIFY, x, LENGTHS)
    probabilities = predict(params, CLASSIFY, x, LENGTHS)
    assert torch.allclose(probabilities.sum(1), torch.ones(4, dtype=DOUBLE))
    assert torch.allclose(probabilities, logits.exp() / logits.exp().sum(1, keepdim=True))


def test_the_state_is_handed_on():
    config = replace(REGRESS, bidirectional=False, pooling="last")
    params, x = fitted(config), inputs()
    whole, state = forward(params, config, x)
    _, middle = forward(params, config, x[:, :2])
    second, last = forward(params, config, x[:, 2:], None, middle)
    assert torch.allclose(second, whole, rtol=1e-12)
    assert torch.allclose(last.c, state.c, rtol=1e-12)


def test_dropout_acts_in_training_only():
    config = replace(CLASSIFY, num_layers=1, head_dropout=0.5)
    params, x = fitted(config), inputs()
    plain, _ = forward(params, config, x, LENGTHS)
    torch.manual_seed(4)
    first, state = forward(params, config, x, LENGTHS, training=True)
    second, same = forward(params, config, x, LENGTHS, training=True)
    assert not torch.equal(first, second)
    assert torch.equal(state.h, same.h)  # one layer: only the head has dropped anything
    assert torch.equal(forward(params, config, x, LENGTHS)[0], plain)
    deep = replace(config, num_layers=2, head_dropout=0.0, dropout=0.5)
    params = fitted(deep)
    _, one = forward(params, deep, x, LENGTHS, training=True)
    _, other = forward(params, deep, x, LENGTHS, training=True)
    assert torch.equal(one.h[:2], other.h[:2])
    assert not torch.equal(one.h[2:], other.h[2:])


def test_an_empty_batch_and_no_time():
    params = fitted(REGRESS)
    empty = torch.zeros(0, dtype=torch.int64)
    assert predict(params, REGRESS, inputs()[:0], empty).shape == (0, 2)
    nothing = predict(params, REGRESS, inputs()[:, :0], torch.zeros(4, dtype=torch.int64))
    scale, shift = params["target_scaler.scale"], params["target_scaler.shift"]
    assert torch.allclose(nothing, (params["head.bias"] * scale + shift).expand(4, 2))
