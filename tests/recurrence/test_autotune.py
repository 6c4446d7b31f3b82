"""What `auto` takes: what was measured, else the rule; never a compilation of its own."""

import json

import pytest
import torch
from cases import make_params

from lstm_compile import calibrate, explain_backend, lstm
from lstm_compile.errors import InputError
from lstm_compile.recurrence import autotune, inductor
from lstm_compile.recurrence.autotune import Measured, Workload, remember
from lstm_compile.recurrence.cache import cache_dir

FAST = Measured(vendor=2.0, compiled=1.0, chunk=2, compile_seconds=5.0)
SLOW = Measured(vendor=1.0, compiled=2.0, chunk=2, compile_seconds=5.0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    autotune.measurements.cache_clear()
    yield
    autotune.measurements.cache_clear()


@pytest.fixture
def params():
    return make_params(3, 5)


def work(params, **changes):
    sizes = {"batch": 4, "time": 9, "ragged": False, "training": False} | changes
    sizes["time_steps"] = sizes.pop("time")
    return Workload(5, 3, **sizes, device=params["weight_hh_l0"].device).bucket


def compile_here(params):
    with torch.no_grad():
        lstm(params, torch.randn(4, 9, 3), backend="compiled", chunk=2)


def test_the_rule_where_nothing_was_measured(params):
    found = explain_backend(params, 4, 9)
    assert found.backend == "vendor"
    assert str(found).startswith("vendor, no measurement of this size (cpu, ")


def test_what_was_measured_slower_is_not_taken(params):
    remember(work(params), SLOW)
    found = explain_backend(params, 4, 9)
    assert (found.backend, found.reason) == ("vendor", "compiled was not clearly faster")
    assert "compiled 2 ms, vendor 1 ms" in str(found)


@pytest.mark.slow
def test_what_was_measured_faster_is_taken_once_it_is_compiled(params, monkeypatch):
    remember(work(params), FAST)
    monkeypatch.setattr(inductor, "_RAN", set())
    assert explain_backend(params, 4, 9).reason.endswith("not compiled in this process")
    compile_here(params)
    assert explain_backend(params, 4, 9)[:2] == ("compiled", 2)
    assert explain_backend(params, 4, 9, training=True).backend == "vendor"


def test_auto_computes_with_its_choice(params, monkeypatch):
    compile_here(params)
    remember(work(params), FAST)
    ran = []
    infer = autotune.choose
    monkeypatch.setattr(
        "lstm_compile.recurrence.dispatch.choose",
        lambda *given: ran.append(infer(*given)) or ran[-1],
    )
    x = torch.randn(4, 9, 3)
    with torch.no_grad():
        found, _ = lstm(params, x)
    assert ran[0].backend == "compiled"
    torch.testing.assert_close(found, lstm(params, x, backend="reference")[0])


def test_sizes_of_one_bucket_share_a_measurement(params):
    assert work(params, batch=3, time=16) == work(params, batch=4, time=9)
    assert work(params, batch=5) != work(params, batch=4)
    assert work(params, ragged=True) != work(params)


def test_lengths_decide_the_bucket(params):
    remember(work(params, time=4, ragged=True), FAST)
    lengths = torch.tensor([4, 1, 2, 2])
    assert explain_backend(params, 4, 9, lengths).measured == FAST
    assert explain_backend(params, 4, 9, torch.full((4,), 4)).measured is None


def test_a_later_process_finds_the_measurement(params):
    remember(work(params), FAST)
    autotune.measurements.cache_clear()
    assert autotune.measurements() == {work(params): FAST}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"versions": 3}', '{"measured": [{}]}'])
def test_a_broken_file_is_measured_again(params, text):
    remember(work(params), FAST)
    (cache_dir() / autotune.FILE).write_text(text)
    autotune.measurements.cache_clear()
    assert autotune.measurements() == {}


def test_other_versions_are_measured_again(params):
    remember(work(params), FAST)
    path = cache_dir() / autotune.FILE
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"versions": {"torch": "1.0"}}))
    autotune.measurements.cache_clear()
    assert autotune.measurements() == {}


def test_a_folder_that_cannot_be_had_is_a_warning(params, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="the calibration is not kept"):
        remember(work(params), FAST)
    assert explain_backend(params, 4, 9).measured == FAST


def test_calibrate_measures_once_and_remembers(params):
    sizes = {"hidden_size": 5, "input_size": 3, "batch": 4, "time_steps": 9}
    found = calibrate(**sizes, ragged=False, training=False, chunk=2)
    assert min(found.vendor, found.compiled) > 0
    assert calibrate(**sizes, ragged=False, training=False, chunk=2) is found
    assert explain_backend(params, 4, 9).measured == found


def test_parameters_that_are_none():
    with pytest.raises(InputError, match="params is empty"):
        explain_backend({}, 4, 9)
