"""What programs that embed a file ask of `runtime`: self-test, warm-up, threads, a quick start."""

import json
import subprocess
import sys
import threading
from functools import cache

import numpy as np
import pytest
from forecast_cases import FORECASTERS, forecast_file, forecast_model
from marks import slow
from model_cases import (
    sequence_file,
    sequence_model,
    streaming_file,
    streaming_model,
    text_file,
    text_model,
)

from lstm_compile.export import export_onnx, export_streaming
from lstm_compile.export.proof.selftest import selftest, streaming_selftest
from lstm_compile.export.runtime import ModelError, load, open_streams
from lstm_compile.export.write.onnx import to_onnx

MODELS = {
    "classify": (sequence_model(), sequence_file),
    "regress": (sequence_model(task="regress"), lambda: sequence_file(task="regress")),
    "tag": (sequence_model(task="tag"), lambda: sequence_file(task="tag")),
    "forecast": (
        forecast_model(**FORECASTERS["known, static"]),
        lambda: forecast_file("known, static"),
    ),
    "lm": (text_model(6), lambda: text_file(6)),
}
every_task = pytest.mark.parametrize(
    "task", [task if task == "classify" else slow(task) for task in MODELS]
)


@cache
def exported(task):
    """A file and its self-test."""
    model, file = MODELS[task]
    return file().SerializeToString(), selftest(model).encode()


@every_task
def test_a_host_checks_itself_by_the_selftest(task):
    data, example = exported(task)
    assert 0 <= load(data).check(example) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("cells", ["node", "plain"])
def test_so_does_one_that_streams(cells):
    model = streaming_model(task="tag")
    example = streaming_selftest(model, cells == "plain")
    streams = open_streams(streaming_file(cells, task="tag").SerializeToString())
    assert 0 <= streams.check(example.encode()) <= 1
    assert len(streams) == 0


def test_another_selftest_is_refused():
    with pytest.raises(ModelError, match="the self-test is not this file's"):
        load(exported("classify")[0]).check(exported("forecast")[1])


@pytest.mark.slow
def test_a_wrong_answer_is_refused():
    model, changed = MODELS["classify"][0], json.loads(exported("classify")[1])
    changed["cases"][1]["expected"][0][2] += 1e-3
    example = json.dumps(changed)
    opened = load(to_onnx(model, example=example).SerializeToString())
    with pytest.raises(ModelError, match=r"self-test, case 1: the difference is .* the tolerance"):
        opened.check(example.encode())


@every_task
def test_warm_up_answers_any_size(task):
    opened = load(exported(task)[0])
    assert opened.warm_up() > 0
    assert opened.warm_up(batch=3, time=5) > 0


def test_streams_warm_up_and_none_begins():
    streams = open_streams(streaming_file(task="tag").SerializeToString(), threads=2)
    assert streams.warm_up(batch=4) > 0
    assert len(streams) == 0


def test_threads_may_ask_at_once():
    model = load(exported("classify")[0])
    random = np.random.default_rng(0)
    questions = [[random.standard_normal((n % 9, 3))] for n in range(40)]
    expected = [model.predict(question) for question in questions]
    found = [None] * len(questions)

    def ask(first):
        for index in range(first, len(questions), 4):
            found[index] = model.predict(questions[index])

    workers = [threading.Thread(target=ask, args=(first,)) for first in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


START = """
import sys
from lstm_compile.export.runtime import load
model = load(sys.argv[1])
model.predict([[[0.0, 1.0, 2.0]] * 50])
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_it_starts_without_what_takes_long_to_load(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(exported("classify")[0])
    done = subprocess.run(
        [sys.executable, "-c", START, path], capture_output=True, text=True, check=True
    )
    late = {"torch", "onnx", "onnxscript", "pandas", "pyarrow", "sklearn", "click", "safetensors"}
    assert not late & set(done.stdout.split())


@pytest.mark.slow
def test_files_on_disk_check_themselves(tmp_path):
    export_onnx(MODELS["tag"][0], tmp_path / "model.onnx", ["onnxruntime"])
    load(tmp_path / "model.onnx").check(tmp_path / "selftest.json")
    model = streaming_model(task="tag")
    export_streaming(model, tmp_path / "streaming.onnx", runtimes=["onnxruntime"])
    open_streams(tmp_path / "streaming.onnx").check(tmp_path / "streaming.selftest.json")
