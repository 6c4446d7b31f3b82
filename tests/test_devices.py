"""Devices and threads of a run."""

from dataclasses import replace

import pytest
import torch
from training_cases import QUICK

from lstm_compile import ModelConfig
from lstm_compile.devices import cpu_threads, find_device, fitting_threads
from lstm_compile.errors import InputError
from lstm_compile.recurrence.calibrate import fastest_threads
from lstm_compile.training.backend import threads_of


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "meta", "", "cpu:zero"])
def test_unknown_devices_are_refused(name):
    with pytest.raises(InputError, match="device must be cpu, cuda, cuda:N or auto; got"):
        find_device(name)


def test_an_absent_device_is_refused():
    message = r"device cuda:99 is not here: torch sees \d+ CUDA devices; use --device cpu"
    with pytest.raises(InputError, match=message):
        find_device("cuda:99")


def test_small_models_take_one_thread_and_large_ones_all():
    assert fitting_threads(32, 64) == 1
    assert fitting_threads(64, 256) == torch.get_num_threads()


def test_small_models_take_all_threads_where_that_was_measured_to_help(monkeypatch):
    config, small = ModelConfig(task="regress", input_size=2, output_size=1), QUICK
    monkeypatch.setattr(
        "lstm_compile.training.backend.fastest_threads", lambda *sizes: sizes[-1] + 4
    )
    with cpu_threads(3):
        assert threads_of(config, small) == 7
        assert threads_of(config, replace(small, threads=2)) == 2
        assert threads_of(replace(config, hidden_size=512), small) == 3


def test_the_faster_number_of_threads_is_measured_once():
    with cpu_threads(2):
        found = fastest_threads(8, 2, 4, 2)
    assert found in (1, 2)
    assert fastest_threads(8, 2, 4, 2) == found
    assert fastest_threads(8, 2, 4, 1) == 1


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
