"""The backend of a training run: settled before its first step."""

from dataclasses import replace

import pytest
import torch
from training_cases import two_classes

from lstm_compile.config import ModelConfig
from lstm_compile.recurrence.autotune import Measured
from lstm_compile.training import backend
from lstm_compile.training.backend import settle_backend
from lstm_compile.training.settings import TrainingConfig

CPU = torch.device("cpu")
CONFIG = ModelConfig(task="classify", input_size=2, output_size=2, hidden_size=5)
AUTO = TrainingConfig(epochs=3, backend="auto")


def settle(training=AUTO):
    return settle_backend(CONFIG, training, two_classes(20), CPU)


def long_job(monkeypatch, measured):
    monkeypatch.setattr(backend, "vendor_seconds", lambda *sizes, **options: 1e3)
    monkeypatch.setattr(backend, "calibrate", lambda *sizes, **options: measured)


@pytest.mark.parametrize("name", ["reference", "compiled", "vendor"])
def test_a_backend_that_was_asked_for_stays(name):
    training = replace(AUTO, backend=name)
    assert settle(training) == (training, "as asked for")


def test_a_short_job_does_not_compile(monkeypatch):
    monkeypatch.setattr(backend, "calibrate", lambda *sizes, **options: pytest.fail("compiles"))
    training, why = settle()
    assert training == replace(AUTO, backend="vendor")
    assert why.endswith(" s at most, too little for compiling to pay")


@pytest.mark.parametrize(("compiled", "taken"), [(1.0, "compiled"), (1.99, "vendor")])
def test_a_long_job_takes_what_measures_faster(monkeypatch, compiled, taken):
    long_job(monkeypatch, Measured(2.0, compiled, 8, 20.0))
    training, why = settle()
    assert training.backend == taken
    assert why == f"measured {compiled:.3g} ms compiled, 2 ms vendor"


def test_without_a_compiler_there_is_no_choice(monkeypatch):
    monkeypatch.setattr(backend, "can_compile", lambda device_type: False)
    assert settle()[1] == "there is no compiler here"
