import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from lstm_compile.bench import measure, memory, problem, timing
from lstm_compile.bench.cases import BenchConfig, Case, grid, lengths_of, own_case, read_lengths
from lstm_compile.bench.figures import BenchRow, rows_of, summary
from lstm_compile.bench.machine import described, machine
from lstm_compile.bench.problem import CONTESTANTS, build, step_of
from lstm_compile.bench.timing import Timing, interleave
from lstm_compile.cli.app import app
from lstm_compile.cli.bench import BACKENDS
from lstm_compile.errors import InputError, RunError
from lstm_compile.export.use.benchmark import ALL, run_bench

ROOT = Path(__file__).resolve().parents[2]
TINY = Case(batch=4, time=6, input=3, hidden=5)
FAST = BenchConfig(device="cpu", threads=1, repeats=2, seconds=0.0)
PLAIN = [name for name in ALL if name != "compiled"]  # what compiles nothing
SIZES = ["--batch", "3", "--time", "5", "--input", "2", "--hidden", "4"]
QUICK = [*SIZES, "--repeats", "2", "--seconds", "0", "--device", "cpu", "--threads", "1"]


@pytest.fixture(autouse=True)
def _nothing_calibrated(monkeypatch):
    """Calibration compiles; what `auto` takes without one is enough here."""
    monkeypatch.setattr(problem, "calibrate", lambda *sizes, **options: None)


def backends(*names):
    return [word for name in names for word in ("--backend", name)]


def invoke(*args, **options):
    words = [str(arg) for arg in args]
    return CliRunner().invoke(app, ["bench", *words], prog_name="lstm-compile", **options)


# ---- cases


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"time": -3}, "time must be at least 1, got -3"),
        ({"hidden": 1 << 21}, "hidden must be at most"),
        ({"layers": 1.5}, "layers must be of type int"),
        ({"precision": "fp8"}, "precision must be one of fp32, tf32, bf16; got 'fp8'"),
    ],
)
def test_a_case_refuses_what_no_lstm_has(values, message):
    with pytest.raises(InputError, match=re.escape(message)):
        Case(**values)


def test_the_grid():
    cases = grid("cpu")
    assert len(set(cases)) == len(cases) == 5 * 2 * 2 * 2
    assert {case.precision for case in cases} == {"fp32"}
    assert {case.lengths for case in cases} == {"full", "uniform"}
    on_cuda = grid("cuda")
    assert set(cases) < set(on_cuda)
    assert {512, 1024} < {case.hidden for case in on_cuda}
    assert {case.precision for case in on_cuda} == {"fp32", "tf32", "bf16"}
    assert {case.precision for case in grid("cuda", precision="bf16")} == {"bf16"}
    assert len(grid("cpu", quick=True)) == 2


def test_uniform_lengths_fill_the_batch():
    case = Case(batch=200, time=50)
    lengths = lengths_of(case, seed=0)
    assert (min(lengths), max(lengths)) == (1, 50)
    assert 20 < sum(lengths) / len(lengths) < 31
    assert lengths == lengths_of(case, seed=0) != lengths_of(case, seed=1)
    assert lengths_of(Case(batch=1, time=50), seed=0) == [50]
    assert lengths_of(replace(case, lengths="full"), seed=0) == [50] * 200


def test_lengths_from_a_file(tmp_path):
    path = tmp_path / "lengths.txt"
    path.write_text("7\n\n 12 \n1\n")
    case = Case(batch=9, time=20, lengths=str(path))
    assert own_case(case, ()) == replace(case, batch=3, time=12)
    assert own_case(case, ("time",)) == replace(case, batch=3, time=20)
    assert own_case(case, ("batch", "time")) == case
    assert own_case(TINY, ()) == TINY
    assert lengths_of(own_case(case, ()), seed=0) == [7, 12, 1]
    drawn = lengths_of(case, seed=0)
    assert len(drawn) == 9
    assert set(drawn) <= {7, 12, 1}
    with pytest.raises(InputError, match="the longest length is 12, beyond --time 8"):
        lengths_of(replace(case, time=8), seed=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3\n0\n", "line 2: expected a whole number from 1 to 1048576, found '0'"),
        ("4.5\n", "line 1: expected a whole number"),
        ("²\n", "line 1: expected a whole number"),
        ("9" * 5000, "line 1: expected a whole number"),
        ("\n", "no lengths; expected one whole number a line"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, text, message):
    path = tmp_path / "lengths.txt"
    path.write_text(text, "utf-8")
    with pytest.raises(InputError, match=re.escape(message)):
        read_lengths(str(path))


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "lengths"
    path.write_bytes(b"\xff\xfe")
    for name in (path, tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="lengths must be uniform, full or a file"):
            read_lengths(str(name))


# ---- who computes


@pytest.mark.slow
@pytest.mark.parametrize("lengths", ["uniform", "full"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_all_compute_the_same(lengths, bidirectional):
    case = replace(TINY, lengths=lengths, bidirectional=bidirectional, layers=2)
    given = build(case, torch.device("cpu"), "inference", seed=3)
    found = {
        name: torch.as_tensor(step_of(ALL[name], name, given, "inference")()) for name in PLAIN
    }
    if lengths == "uniform":  # nn.LSTM knows no padding: right before it, in one direction
        padded = found.pop("padded")
        if not bidirectional:
            found["padded"] = torch.where(given.mask, padded, 0.0)
    for name, output in found.items():
        torch.testing.assert_close(output, found["reference"], atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("lengths", ["uniform", "full"])
def test_all_train_the_same(lengths):
    case = replace(TINY, lengths=lengths)
    given = build(case, torch.device("cpu"), "training", seed=3)
    names = [name for name in PLAIN if name != "onnxruntime"]
    found = {name: step_of(ALL[name], name, given, "training")() for name in names}
    for name, gradients in found.items():
        assert len(gradients) == 4
        for gradient, right in zip(gradients, found["reference"], strict=True):
            torch.testing.assert_close(gradient, right, atol=1e-5, rtol=1e-4, msg=name)


def test_bf16_is_autocast():
    given = build(replace(TINY, precision="bf16"), torch.device("cpu"), "training", seed=0)
    gradients = step_of(CONTESTANTS["vendor"], "vendor", given, "training")()
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    if not nn_lstm_takes_bf16():
        pytest.skip("oneDNN has no bf16 LSTM for this CPU")
    output = step_of(CONTESTANTS["padded"], "padded", given, "inference")()
    assert output.dtype == torch.bfloat16


def nn_lstm_takes_bf16():
    module = torch.nn.LSTM(3, 5)
    try:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            module(torch.zeros(6, 4, 3))
    except RuntimeError:
        return False
    return True


def test_building_a_case_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    first, second = (build(TINY, torch.device("cpu"), "inference", seed=1) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.x, second.x)
    ours, others = first.params(), second.params()
    assert all(torch.equal(ours[name], others[name]) for name in ours)


def test_the_choice_of_auto_is_measured_and_explained(monkeypatch):
    given = build(TINY, torch.device("cpu"), "training", seed=0)
    asked = {}
    monkeypatch.setattr(problem, "calibrate", lambda *sizes, **options: asked.update(options))
    assert problem.calibrated(given, "training").startswith("vendor, ")
    assert asked["training"]
    assert asked["ragged"] is (TINY.lengths == "uniform")


# ---- timing


class Clock:
    """Time that passes only where a step says so."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.calls = []
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def step(self, name, seconds, first=0.0):
        def call():
            self.now += seconds if name in self.calls else seconds + first
            self.calls.append(name)

        return call


def test_rounds_are_interleaved_in_a_changing_order(monkeypatch):
    clock = Clock(monkeypatch)
    steps = {name: clock.step(name, 0.02) for name in "abc"}
    timings = interleave(steps, repeats=8, seconds=100.0, seed=0)
    rounds = ["".join(clock.calls[6 + 3 * number :][:3]) for number in range(8)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) > 1
    assert [len(found.rounds) for found in timings.values()] == [8, 8, 8]


def test_budget_and_blocks_of_short_steps(monkeypatch):
    clock = Clock(monkeypatch)
    steps = {"short": clock.step("short", 1e-4), "long": clock.step("long", 0.1)}
    steps["slow"] = clock.step("slow", 40.0)
    found = interleave(steps, repeats=30, seconds=1.0, seed=0)
    assert [len(one.rounds) for one in found.values()] == [30, 3, 2]
    assert {len(calls) for calls in found["short"].rounds} == {20}
    assert {len(calls) for calls in found["slow"].rounds} == {1}


def test_everyone_takes_part_in_five_rounds(monkeypatch):
    clock = Clock(monkeypatch)
    steps = {"a": clock.step("a", 1.0), "b": clock.step("b", 2.0)}
    found = interleave(steps, repeats=30, seconds=0.0, seed=0)
    assert [len(one.rounds) for one in found.values()] == [5, 5]


def test_the_first_call_is_told_apart(monkeypatch):
    clock = Clock(monkeypatch)
    found = interleave({"a": clock.step("a", 0.5, first=7.0)}, repeats=3, seconds=0.0, seed=0)["a"]
    assert found.compiling == pytest.approx(7.0)
    assert found.median == found.p95 == pytest.approx(0.5)


def test_a_ratio_holds_where_the_machine_gets_slower():
    slower = [1.0, 1.0, 5.0, 5.0, 5.0]
    mine = Timing(0.0, [[2 * seconds] for seconds in slower])
    its = Timing(0.0, [[seconds] for seconds in slower])
    assert mine.ratio(its) == 2.0
    assert Timing(0.0, [[2.0], [2.0]]).ratio(its) == 2.0  # in which both took part


# ---- the report


def rows(**seconds):
    timings = {name: Timing(9.0, [[value]] * 3) for name, value in seconds.items()}
    return rows_of(TINY, "training", timings, {}, "vendor: built-in rule")


def test_a_row_is_measured_against_the_faster_form():
    auto, padded, packed = rows(auto=0.5, padded=2.0, packed=1.0)
    assert (auto.ratio, padded.ratio, packed.ratio) == (0.5, 2.0, 1.0)
    assert auto.ratios == {"padded": 0.25, "packed": 0.5}
    assert (auto.median_ms, auto.sequences_per_second) == (500.0, 8.0)
    assert (auto.compile_seconds, auto.rounds, auto.peak_mib) == (8.5, 3, None)
    assert (auto.choice, padded.choice) == ("vendor: built-in rule", "")
    (alone,) = rows(auto=0.5)
    assert (alone.ratio, alone.ratios) == (None, {})


def test_means_are_geometric_and_leave_single_rows_out():
    (row, *_) = rows(auto=0.5, padded=1.0, packed=2.0)
    others = [
        replace(row, ratio=2.0, ratios={"padded": 2.0}),
        replace(row, case=replace(TINY, batch=1), ratio=9.0, ratios={"padded": 9.0}),
    ]
    (found,) = summary([row, *others])
    assert found == {
        "mode": "training",
        "lengths": "uniform",
        "precision": "fp32",
        "backend": "auto",
        "cases": 3,
        "mean_to_padded": pytest.approx(1.0),
        "mean_to_packed": pytest.approx(0.25),
        "mean_to_best": pytest.approx(1.0),
        "worst_to_best": 9.0,
    }


def test_the_machine_is_named_in_general_terms():
    found = machine(torch.device("cpu"))
    assert found["versions"]["torch"] == torch.__version__
    assert found["cores"] >= 1
    assert described(found).endswith(f"onnxruntime {found['versions']['onnxruntime']}")


# ---- a run


@pytest.mark.slow
def test_every_case_and_mode_is_measured():
    shown = []
    cases = [TINY, replace(TINY, lengths="full")]
    report = run_bench(cases, FAST, PLAIN, on_rows=shown.append)
    assert [(found[0].case, found[0].mode) for found in shown] == [
        (case, mode) for case in cases for mode in ("inference", "training")
    ]
    assert report.rows == [row for found in shown for row in found]
    assert {row.backend for row in shown[0]} == set(PLAIN)
    assert {row.backend for row in shown[1]} == set(PLAIN) - {"onnxruntime"}
    assert report.skipped == {"onnxruntime": "measured in inference only, in fp32 on the CPU"}
    assert all(0 < row.median_ms <= row.p95_ms for row in report.rows)
    assert not report.stopped
    assert json.loads(json.dumps(report.to_dict()))["rows"][0]["case"]["hidden"] == 5


def test_reference_runs_short_cases_only_unless_asked_for():
    long = replace(TINY, time=300)
    left_out = [name for name in CONTESTANTS if name not in ("padded", "reference")]
    some = {name: CONTESTANTS[name] for name in CONTESTANTS if name not in left_out}
    config = replace(FAST, mode="inference")
    report = measure.run_bench([long], config, some)
    assert [row.backend for row in report.rows] == ["padded"]
    assert "a plain loop" in report.skipped["reference"]
    report = measure.run_bench([long], config, some, ["reference"])
    assert [row.backend for row in report.rows] == ["reference"]


def test_without_a_compiler_compiled_is_left_out(monkeypatch):
    monkeypatch.setattr(measure, "can_compile", lambda device: False)
    report = run_bench([TINY], FAST, ["compiled", "padded"])
    assert {row.backend for row in report.rows} == {"padded"}
    assert "no C++ compiler" in report.skipped["compiled"]


def test_a_signal_keeps_what_was_measured():
    def stop(rows):
        if rows[0].mode == "training":
            raise KeyboardInterrupt

    report = run_bench([TINY], FAST, ["padded"], on_rows=stop)
    assert report.stopped
    assert [row.mode for row in report.rows] == ["inference", "training"]


@pytest.mark.parametrize(
    ("case", "config", "names", "message"),
    [
        (TINY, FAST, ["fastest"], "backend must be one of padded, packed, .*; got 'fastest'"),
        (TINY, replace(FAST, device="tpu"), [], "device must be cpu, cuda"),
        (replace(TINY, precision="tf32"), FAST, [], "precision tf32 needs a CUDA device"),
        (replace(TINY, lengths="nowhere"), FAST, [], "'nowhere' cannot be read"),
    ],
)
def test_a_run_refuses_what_it_cannot_measure(case, config, names, message):
    with pytest.raises(InputError, match=message):
        run_bench([case], config, names)


@pytest.mark.slow
def test_memory_is_that_of_the_step():
    if not memory.supported("cpu"):
        pytest.skip("no /proc/self/status")
    case = Case(batch=64, time=256, input=8, hidden=128)
    output = 64 * 256 * 128 * 4 / 2**20
    found = memory.peak(CONTESTANTS["padded"], "padded", case, "inference", "cpu", 1, 0)
    assert output <= found.step <= 20 * output
    assert found.cold >= found.step


def test_a_killed_process_is_one_clear_line(monkeypatch):
    class Pool:
        def __init__(self, *args, **options): ...
        def __enter__(self):
            raise memory.BrokenProcessPool

        def __exit__(self, *args): ...

    monkeypatch.setattr(memory, "ProcessPoolExecutor", Pool)
    with pytest.raises(RunError, match="its process was killed as memory was measured"):
        memory.peak(CONTESTANTS["padded"], "padded", TINY, "training", "cpu", 1, 0)


@pytest.mark.slow
def test_compiled_takes_part():
    report = run_bench([TINY], replace(FAST, mode="inference"), ["compiled", "padded"])
    padded, compiled = report.rows
    assert (padded.backend, compiled.backend) == ("padded", "compiled")
    assert compiled.compile_seconds > 0.01


@pytest.mark.cuda
def test_a_run_on_cuda(cuda):
    cases = [replace(TINY, precision=precision) for precision in ("fp32", "tf32", "bf16")]
    names = ["padded", "packed", "vendor", "auto"]
    report = run_bench(cases, replace(FAST, device=cuda, memory=True), names)
    assert len(report.rows) == 3 * 2 * 4
    assert all(row.peak_mib > 0 for row in report.rows)


# ---- the command


def test_the_command_names_all_that_compute():
    assert set(BACKENDS) == set(ALL)


def test_what_bench_prints():
    result = invoke(*QUICK, *backends("padded", "auto"))
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "B3 T5 D2 H4 L1 forward uniform fp32"
    head = r"mode +backend  median ms +p95 ms  sequences/s  ratio(  compile s)?"
    assert re.fullmatch(head, lines[1])
    for mode, padded, auto, choice in (("inference", *lines[2:5]), ("training", *lines[5:8])):
        assert re.fullmatch(rf"{mode} +padded +[\d.]+ +[\d.]+ +\d+ +1\.00( +[\d.]+)?", padded)
        assert re.fullmatch(rf"{mode} +auto +[\d.]+ +[\d.]+ +\d+ +[\d.]+( +[\d.]+)?", auto)
        assert re.fullmatch(r"  auto takes \w.*", choice)
    assert [line[:12].strip() for line in lines[8:]] == ["mean", "mean", "ratio", "machine", "next"]


def test_bench_prints_one_json_object():
    result = invoke(*QUICK, *backends("packed", "onnxruntime"), "--json", "--mode", "inference")
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    found = json.loads(result.stdout)
    assert list(found) == ["machine", "settings", "rows", "skipped", "stopped", "summary"]
    assert [row["backend"] for row in found["rows"]] == ["packed", "onnxruntime"]
    assert found["rows"][0]["ratios"] == {"packed": 1.0}
    assert found["settings"]["mode"] == "inference"
    assert "B3 T5 D2 H4" in result.stderr


def test_a_file_gives_batch_and_time(tmp_path):
    path = tmp_path / "real lengths.txt"
    path.write_text("4\n9\n")
    options = ["--lengths", path, "--json", "--repeats", 1, "--device", "cpu", "--threads", 1]
    result = invoke(*options, *backends("padded"), "--seconds", 0)
    case = json.loads(result.stdout)["rows"][0]["case"]
    assert (case["batch"], case["time"], case["lengths"]) == (2, 9, str(path))


def test_quick_takes_few_cases(monkeypatch):
    seen = []

    def fake(cases, config, *others, **callbacks):
        seen.append((cases, config))
        raise InputError("enough")

    monkeypatch.setattr("lstm_compile.export.use.benchmark.run_bench", fake)
    for words in (["--quick"], ["--quick", "--seconds", "5"], []):
        assert invoke(*words, "--device", "cpu").exit_code == 2
    assert [(len(cases), config.seconds) for cases, config in seen] == [(2, 1), (2, 5), (40, 8)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch", "0"], "batch must be at least 1, got 0"),
        (["--hidden", "x"], "'x' is not a valid integer"),
        (["--backend", "fastest"], "'fastest' is not one of"),
        (["--lengths", "nowhere.txt"], "'nowhere.txt' cannot be read (No such file or directory)"),
        (["--precision", "tf32", "--device", "cpu"], "precision tf32 needs a CUDA device"),
        (["--repeats", "0"], "repeats must be at least 1, got 0"),
        (["--seconds", "nan"], "seconds must be at least 0.0, got nan"),
        (["--device", "cuda:99"], "device cuda:99 is not here"),
    ],
)
def test_wrong_input_is_one_line(words, message):
    result = invoke(*words)
    assert result.exit_code == 2
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert errors == result.stderr.splitlines()[-1:]
    assert message in errors[0]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_bench_with_what_it_has(monkeypatch, number, code):
    def forward(given):
        if given.module.training:
            signal.raise_signal(number)
        return lambda: given.module(given.x)

    monkeypatch.setitem(ALL, "padded", forward)
    result = invoke(*QUICK, *backends("padded"), "--json")
    assert result.exit_code == code
    found = json.loads(result.stdout)
    assert found["stopped"]
    assert [row["mode"] for row in found["rows"]] == ["inference"]
    assert "stopped     by a signal" in result.stderr


# ---- benchmarks/speed.py


@pytest.fixture(scope="module")
def speed():
    spec = importlib.util.spec_from_file_location("speed", ROOT / "benchmarks" / "speed.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def grid_rows(case, ratio):
    fields = {"median_ms": 1.0, "p95_ms": 2.0, "sequences_per_second": 1.0, "rounds": 5}
    fields |= {"ratios": {"padded": ratio}, "ratio": ratio, "compile_seconds": 0.0}
    return [
        BenchRow(case=case, mode=mode, backend="auto", **fields)
        for mode in ("inference", "training")
    ]


def test_the_table_shows_where_it_loses(speed):
    found = speed.table(grid_rows(TINY, 1.2) + grid_rows(replace(TINY, layers=2), 1.004))
    lines = found.splitlines()
    assert len(lines) == 4
    assert lines[2] == ("| 4, 6, 3, 5 | 1 | 1 | uniform | fp32 | **1.20** |  |  | **1.20** |  |")
    assert "| 2 | 1 | uniform | fp32 | 1.00 |" in lines[3]


def test_what_is_measured_again_replaces_what_was_there(speed, tmp_path):
    path, (first, second, *_) = tmp_path / "speed-cpu.json", grid("cpu")
    assert speed.read(path) == []
    for case, ratio in ((second, 0.5), (first, 0.9), (second, 0.7)):
        speed.keep(path, {"machine": {}}, grid_rows(case, ratio))
    assert speed.read(path) == grid_rows(first, 0.9) + grid_rows(second, 0.7)
    found = json.loads(path.read_text())
    assert {group["mode"] for group in found["summary"]} == {"inference", "training"}


def test_the_page_on_speed_shows_the_committed_figures(speed):
    path = ROOT / "benchmarks" / "speed-cpu.json"
    if not path.exists():
        pytest.skip("no figures are committed")
    assert speed.table(speed.read(path)) in (ROOT / "docs" / "speed.md").read_text("utf-8")


@pytest.mark.slow
def test_what_runs_on_a_gpu_is_rehearsed_on_the_cpu(tmp_path):
    environment = {**os.environ, "DEVICE": "cpu", "OUT": str(tmp_path), "SKIP_INSTALL": "1"}
    done = subprocess.run(
        ["bash", ROOT / "benchmarks/gpu.sh"],
        env={**environment, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["errors"] == {}
    assert all(row["parity"] for row in found["models"].values())
    assert {*found["models"]} == {"spoken-digits", "airline", "text"}
    page = (tmp_path / "summary.md").read_text()
    assert all(
        f"## {name}" in page for name in ("Tests", "Models", "Backends", "Training", "Cells")
    )
