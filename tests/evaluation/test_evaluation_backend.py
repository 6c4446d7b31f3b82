"""Which backend answers for a model."""

import pytest
import torch

from lstm_compile import ModelConfig
from lstm_compile.evaluation import backend
from lstm_compile.evaluation.backend import evaluation_backend


@pytest.mark.parametrize(
    ("changes", "asked", "seconds", "expected"),
    [
        ({"cell": "slstm"}, "auto", 1e-6, "reference"),
        ({"cell": "slstm"}, "auto", 1.0, "auto"),
        ({"cell": "slstm"}, "compiled", 1e-6, "compiled"),
        ({"cell": "gru"}, "auto", 1e-6, "auto"),
        ({}, "auto", 1e-6, "auto"),
        ({"zoneout": 0.1}, "auto", 1e-6, "reference"),
    ],
)
def test_auto_compiles_where_that_pays(monkeypatch, changes, asked, seconds, expected):
    monkeypatch.setattr(backend, "loop_seconds", lambda *_, **__: seconds)
    config = ModelConfig(task="classify", input_size=2, output_size=2, hidden_size=4, **changes)
    assert evaluation_backend(config, asked, 100, 8, torch.device("cpu")) == expected
