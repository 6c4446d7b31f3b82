"""Every host in `examples/` against the self-test that stands beside an exported file."""

import csv
import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from forecast_cases import forecast_model
from model_cases import sequence_model, streaming_model
from series_cases import do, hourly

from lstm_compile.export import export_onnx, export_streaming
from lstm_compile.export.use.predict_file import predict_file

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[2] / "examples"
FAST = ["eager", "onnxruntime"]
CHROMIUM = next(filter(None, map(shutil.which, ["chromium", "chromium-browser"])), None)


def run(*command, cwd=None, fails=False):
    found = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=120
    )
    assert (found.returncode != 0) == fails, found.stderr + found.stdout
    return found.stderr.strip() if fails else found.stdout


# ---- the files that are asked ----


def forecast(**changes):
    return forecast_model(context=11, **changes)


MODELS = {
    "classify": lambda: sequence_model(bidirectional=True, num_layers=2, pooling="attention"),
    "regress": lambda: sequence_model(task="regress"),
    "tag": lambda: sequence_model(task="tag"),
    "forecast": lambda: forecast(quantiles=(0.1, 0.5, 0.9)),
}
STREAMING = {
    "streaming tag": lambda: streaming_model(task="tag"),
    "streaming classify": lambda: streaming_model(task="classify", pooling="last"),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of each file, written once and asked by every host."""
    folders = {}
    for name, make in (MODELS | STREAMING).items():
        folders[name] = folder = tmp_path_factory.mktemp(name.replace(" ", "_"))
        if name in STREAMING:
            export_streaming(make(), folder / "model.onnx", runtimes=FAST)
        else:
            export_onnx(make(), folder / "model.onnx", FAST)
    return folders


def features_of(folder):
    metadata = {e.key: e.value for e in onnx.load(folder / "model.onnx").metadata_props}
    return json.loads(metadata["schema"])["features"]


def cases_of(folder):
    """The steps (time, features) and expected answer of each sequence of the self-test."""
    (path,) = folder.glob("*selftest.json")
    example = json.loads(path.read_text())
    if "state" in example:
        return list(streamed(example))
    tag = example["output"] == "step_probabilities"
    return [
        (x[:length], answer[:length] if tag else answer)
        for case in example["cases"]
        for x, length, answer in zip(case["x"], case["lengths"], case["expected"], strict=True)
    ]


def streamed(example):
    for case in example["cases"]:
        if not np.any(case["h"]):  # these hosts begin with the initial state
            answers = [call["expected"][0] for call in case["calls"]]
            steps = [step for call in case["calls"] for step in call["x"][0]]
            tag = example["output"] == "step_probabilities"
            yield steps, [row for rows in answers for row in rows] if tag else answers[-1]


def write_csv(path, features, steps):
    """As users have them: other columns, in another order."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["note", *reversed(features)])
        writer.writerows(["", *reversed(step)] for step in steps)
    return path


def asked(folder, *host):
    """What a host says of all sequences of the self-test, in one call; and what is expected."""
    features, cases = features_of(folder), cases_of(folder)
    paths = [write_csv(folder / f"{n}.csv", features, steps) for n, (steps, _) in enumerate(cases)]
    header, *lines = csv.reader(run(*host, folder / "model.onnx", *paths).splitlines())
    assert header[:2] == ["sequence", "step"]
    found = {str(path): [] for path in paths}
    for path, step, *numbers in lines:
        assert int(step) == len(found[path])
        found[path].append([float(number) for number in numbers])
    return list(found.values()), [expected for _, expected in cases]


def assert_close(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.ravel(ours), np.ravel(theirs), rtol=1e-5, atol=1e-5)


KINDS = pytest.mark.parametrize("kind", [*MODELS, *STREAMING])


# ---- the hosts ----


@pytest.fixture(scope="module")
def javascript(tmp_path_factory):
    """The folder with its packages, as `npm ci` installs them."""
    if not shutil.which("npm"):
        pytest.skip("no npm")
    folder = tmp_path_factory.mktemp("hosts") / "javascript"
    shutil.copytree(EXAMPLES / "javascript", folder, ignore=shutil.ignore_patterns("node_modules"))
    run("npm", "ci", "--no-progress", cwd=folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def cpp(tmp_path_factory):
    pytest.importorskip("openvino")
    return made("cpp", tmp_path_factory, f"PYTHON={sys.executable}")


@pytest.fixture(scope="module")
def c(tmp_path_factory, javascript):
    include = Path(os.environ.get("ORT_INCLUDE", "/usr/include/onnxruntime"))
    if not (include / "onnxruntime_c_api.h").exists():
        pytest.skip("no header of ONNX Runtime; ORT_INCLUDE names its folder")
    library = javascript / "node_modules/onnxruntime-node/bin/napi-v6/linux/x64/libonnxruntime.so.1"
    return made("c", tmp_path_factory, f"ORT_INCLUDE={include}", f"ORT_LIBRARY={library}")


def made(name, tmp_path_factory, *settings):
    if not shutil.which("make") or not shutil.which("g++"):
        pytest.skip("no compiler")
    folder = tmp_path_factory.mktemp(name)
    for source in (EXAMPLES / name).glob("[Mh]*"):
        shutil.copy(source, folder)
    run("make", "--always-make", *settings, cwd=folder)
    return folder / "host"


@KINDS
def test_python(written, kind):
    assert_close(*asked(written[kind], sys.executable, EXAMPLES / "python/host.py"))


@KINDS
def test_node(written, kind, javascript):
    assert_close(*asked(written[kind], "node", javascript / "node.mjs"))


@KINDS
def test_cpp(written, kind, cpp):
    assert_close(*asked(written[kind], cpp))


@KINDS
def test_c(written, kind, c):
    assert_close(*asked(written[kind], c))


@pytest.mark.parametrize("kind", MODELS)
def test_tract_as_the_readme_has_it(written, kind):
    tract = pytest.importorskip("tract")
    model = tract.onnx().load(str(written[kind] / "model.onnx")).into_model().into_runnable()
    example = json.loads((written[kind] / "selftest.json").read_text())
    for case in example["cases"]:
        given = [np.array(case["x"], np.float32), np.array(case["lengths"], np.int64)]
        (answers,) = model.run(given)
        assert_close([answers.to_numpy()], [case["expected"]])


@pytest.fixture(scope="module")
def sales(tmp_path_factory):
    """A forecast that takes a known column and the calendar, and what `predict` says of a table."""
    folder = tmp_path_factory.mktemp("sales")
    path = hourly(folder / "past.csv", rain=np.arange(200) % 7)
    do(path, folder / "run", table={"target": ("y",), "known": ("rain",)})
    export_onnx(folder / "run", folder / "model.onnx", FAST)
    lines = (folder / "past.csv").read_text().splitlines()
    ahead = [line.split(",") for line in lines[151:154]]
    lines = lines[:151] + [f"{time},,{rain}" for time, _, rain in ahead]
    (folder / "fresh.csv").write_text("\n".join(lines))
    answers = predict_file(folder / "model.onnx", str(folder / "fresh.csv"))
    return folder, np.ravel(answers.values)


@pytest.mark.parametrize("host", ["python", "node"])
def test_what_is_known_of_the_horizon(sales, host, request):
    folder, expected = sales
    command = [sys.executable, EXAMPLES / "python/host.py"]
    if host == "node":
        command = ["node", request.getfixturevalue("javascript") / "node.mjs"]
    _, *lines = run(*command, folder / "model.onnx", folder / "fresh.csv").splitlines()
    np.testing.assert_allclose([float(line.split(",")[-1]) for line in lines], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,y\n1,2\n", "no column 'feature_0'"),
        ("feature_0,feature_1,feature_2\n1,2,abc\n", "could not convert string to float: 'abc'"),
        ("feature_0,feature_1,feature_2\n1,2,nan\n", "must be a finite float32 number"),
    ],
)
@pytest.mark.parametrize("host", ["python", "cpp"])
def test_wrong_tables_are_refused(written, tmp_path, text, message, host, request):
    (tmp_path / "a.csv").write_text(text)
    command = [sys.executable, EXAMPLES / "python/host.py"]
    if host == "cpp":
        command = [request.getfixturevalue("cpp")]
        message = "no column feature_0" if "no column" in message else "expected a number, found"
    found = run(*command, written["classify"] / "model.onnx", tmp_path / "a.csv", fails=True)
    assert message in found
    assert len(found.splitlines()) == 1


def test_other_runtimes_refuse_the_file_for_onnxruntime(tmp_path, cpp):
    """Their lengths would be passed over: wrong answers without a word."""
    export_onnx(MODELS["classify"](), tmp_path / "model.onnx", FAST, profile="ort")
    path = write_csv(tmp_path / "a.csv", [f"feature_{n}" for n in range(3)], [[1, 2, 3]])
    found = run(cpp, tmp_path / "model.onnx", path, fails=True)
    assert "for ONNX Runtime alone" in found


# ---- the page ----


@pytest.fixture(scope="module")
def url(javascript):
    handler = functools.partial(Quiet, directory=javascript)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize("kind", [*MODELS, *STREAMING])
def test_page(written, kind, javascript, url, tmp_path):
    folder = written[kind]
    features, cases = features_of(folder), cases_of(folder)
    cases = [case for case in cases if len(case[0]) > 2][:3]
    paths = [
        write_csv(tmp_path / f"{n}.csv", features, steps) for n, (steps, _) in enumerate(cases)
    ]
    found = json.loads(
        run(
            "node", "page.test.mjs", CHROMIUM, url, tmp_path / "page.png", folder / "model.onnx",
            *paths, cwd=javascript,
        )
    )  # fmt: skip
    assert found["errors"] == []
    assert_close(found["dropped"], [expected for _, expected in cases])
    assert found["shorter"] != found["dropped"][-1]
    assert found["wrongNumber"].endswith("expected a number, found 'abc'")
    assert found["wrongColumn"].startswith(f"no column {features[0]}")
    assert (tmp_path / "page.png").stat().st_size > 10_000
