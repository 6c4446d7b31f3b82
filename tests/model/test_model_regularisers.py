"""Regularisers of models: evaluation, files, and what a config says of them."""

import json

import pytest
import torch
from model_cases import sequence_model

from lstm_compile import ModelConfig, forward
from lstm_compile.config import REGULARISERS
from lstm_compile.errors import InputError
from lstm_compile.recurrence.regularise import Regularisers

DROPPED = {"input_dropout": 0.4, "hidden_dropout": 0.3, "weight_drop": 0.5}


def test_a_config_names_each_regulariser():
    assert Regularisers._fields == REGULARISERS


def test_a_config_without_regularisers_does_not_name_them():
    config = sequence_model().config
    assert not set(REGULARISERS) & set(json.loads(config.to_json()))
    changed = sequence_model(zoneout=0.1).config
    assert json.loads(changed.to_json())["zoneout"] == 0.1
    assert ModelConfig.from_json(changed.to_json()) == changed


@pytest.mark.parametrize("name", REGULARISERS)
def test_a_config_refuses_what_is_no_probability(name):
    with pytest.raises(InputError, match=f"^{name} must be at most 1.0, got 1.5$"):
        sequence_model(**{name: 1.5})


@pytest.mark.parametrize("bias", [True, False])
def test_dropouts_leave_the_answers_of_a_model(bias):
    plain, dropped = sequence_model(bias=bias), sequence_model(bias=bias, **DROPPED)
    assert list(plain.params) == list(dropped.params)
    x, lengths = torch.randn(3, 7, 3), torch.tensor([7, 2, 0])
    expected, state = forward(plain.params, plain.config, x, lengths)
    found, same = forward(dropped.params, dropped.config, x, lengths)
    assert torch.equal(found, expected)
    assert all(map(torch.equal, state, same))


@pytest.mark.parametrize("changes", [{**DROPPED, "zoneout": 0.2}, {"input_dropout": 0.5}])
@pytest.mark.parametrize("cell", [{}, {"bias": False}, {"cell": "gru"}], ids=str)
def test_a_model_trains_with_masks(cell, changes):
    model = sequence_model(dropout=0.0, head_dropout=0.0, num_layers=2, **cell, **changes)
    params = {name: value.requires_grad_() for name, value in model.params.items()}
    x, lengths = torch.randn(3, 7, 3), torch.tensor([7, 2, 0])
    answers = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        y, state = forward(params, model.config, x, lengths, training=True, backend="reference")
        assert [tuple(part.shape) for part in state] == [(4, 3, 5)] * (1 if "cell" in cell else 2)
        answers.append(y)
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])
    answers[0].square().sum().backward()
    assert all(params[name].grad is not None for name in params if "weight_hh" in name)


@pytest.mark.parametrize("cell", [{}, {"cell": "gru"}, {"cell": "slstm"}], ids=str)
def test_zoneout_in_chunks_of_time_is_zoneout_at_once(cell):
    model = sequence_model(task="tag", bidirectional=False, zoneout=0.3, **cell)
    x = torch.randn(2, 8, 3)
    whole, final = forward(model.params, model.config, x, backend="reference")
    first, state = forward(model.params, model.config, x[:, :5], backend="reference")
    second, state = forward(model.params, model.config, x[:, 5:], state=state, backend="reference")
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    for part, expected in zip(state, final, strict=True):
        torch.testing.assert_close(part, expected)
    unheld = sequence_model(task="tag", bidirectional=False, **cell).config
    plain = forward(model.params, unheld, x, backend="reference")
    assert not torch.allclose(whole, plain[0], atol=1e-3)
