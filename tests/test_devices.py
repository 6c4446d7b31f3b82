"""Devices and threads of a run."""

import subprocess
import sys
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from training_cases import QUICK

from lstm_compile import ModelConfig
from lstm_compile.devices import cpu_threads, find_device, fitting_threads, tf32
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


CUDNN, MATMUL = torch.backends.cudnn, torch.backends.cuda.matmul


def precisions():
    """All settings of TF32 that can be read; where a program mixes them, some cannot."""
    found = {"conv": CUDNN.conv.fp32_precision, "rnn": CUDNN.rnn.fp32_precision}
    found |= {"matmul": MATMUL.fp32_precision, "cpu": torch.backends.mkldnn.matmul.fp32_precision}
    for name, read in (
        ("cudnn", lambda: CUDNN.allow_tf32),
        ("cuda", lambda: MATMUL.allow_tf32),
        ("precision", torch.get_float32_matmul_precision),
    ):
        with suppress(RuntimeError):
            found[name] = read()
    return found


@pytest.fixture
def _settings_are_given_back():
    yield
    torch.backends.fp32_precision = torch.backends.cudnn.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    CUDNN.allow_tf32 = True
    MATMUL.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"CUDNN.allow_tf32": False},
        {"MATMUL.allow_tf32": True},
        {"CUDNN.rnn.fp32_precision": "ieee"},  # the newer settings alone
        {"MATMUL.fp32_precision": "tf32"},
        {"torch.backends.fp32_precision": "tf32"},
        {"precision": "medium"},
    ],
    ids=str,
)
@pytest.mark.usefixtures("_settings_are_given_back")
def test_tf32_is_set_everywhere_and_given_back(settings, allowed):
    for name, value in settings.items():
        if name == "precision":
            torch.set_float32_matmul_precision(value)
        else:
            exec(f"{name} = {value!r}")
    before = precisions()
    with tf32(allowed):
        inside = precisions()
    after = precisions()
    wanted = "tf32" if allowed else "ieee"
    assert inside["cudnn"] == inside["cuda"] == allowed
    assert inside["rnn"] == inside["conv"] == inside["matmul"] == wanted
    assert inside["precision"] == ("high" if allowed else "highest")
    assert {name: after[name] for name in before} == before


@pytest.mark.usefixtures("_settings_are_given_back")
def test_frozen_settings_are_given_back_too():
    code = """
import torch
from lstm_compile.devices import tf32
torch.backends.disable_global_flags()
before = torch.backends.cudnn.allow_tf32
with tf32(not before):
    assert torch.backends.cudnn.allow_tf32 is not before
assert torch.backends.cudnn.allow_tf32 is before and torch.backends.flags_frozen()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tf32_is_given_back_after_an_error():
    before = precisions()
    with pytest.raises(ValueError, match="stop"), tf32(True):
        raise ValueError("stop")
    assert precisions() == before
