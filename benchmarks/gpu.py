"""All that needs a GPU, step by step within a time limit: tests, models, speed, other cells.

Each step runs in a process of its own, is ended when its time is over, and its result is written at
once: to results.json, log.txt, junit-*.xml and, for people, summary.md. The exit code is 1 if any
step failed.

python benchmarks/gpu.py [--device cuda|cpu] [--output FOLDER] [--seconds N] [--only STEP ...]
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

LIMIT, REHEARSAL_LIMIT = 530.0, 840.0  # seconds for everything, on a GPU and on a CPU
GRACE = 10.0  # seconds to end in, when time is over
SHARES = {
    "tests": 0.28,
    "models": 0.23,
    "backends": 0.25,
    "training": 0.14,
    "cells": 0.1,
}  # of the limit
RUN = [sys.executable, "-m", "lstm_compile"]
# the most important first; what does not fit the time is left out
CASES = [
    {"batch": 128, "time": 128, "input": 64, "hidden": 512},
    {"batch": 128, "time": 128, "input": 64, "hidden": 512, "lengths": "full"},
    {"batch": 32, "time": 64, "input": 32, "hidden": 128},
    {"batch": 64, "time": 256, "input": 64, "hidden": 1024},
    {"batch": 64, "time": 256, "input": 64, "hidden": 1024, "lengths": "full"},
    {"batch": 256, "time": 64, "input": 64, "hidden": 512, "layers": 2, "bidirectional": True},
]
CELLS = ("layernorm-lstm", "gru", "slstm", "peephole-lstm")
REHEARSAL = [{"batch": 8, "time": 8, "input": 4, "hidden": 8}]
TEXT = "".join(f"{number} bottles, and {number + 1} more. " for number in range(2000))


class Steps:
    """Runs commands within the time that is left, and keeps what they said."""

    def __init__(self, device: str, folder: Path, seconds: float) -> None:
        self.device, self.folder, self.seconds = device, folder, seconds
        self.results: dict[str, Any] = {"device": device, "python": platform.python_version()}
        self.end = time.monotonic() + seconds
        self.log = (folder / "log.txt").open("w")

    @property
    def rehearses(self) -> bool:
        """Whether there is no GPU: sizes are small, and figures mean nothing."""
        return self.device == "cpu"

    def run(self, *command: Any, limit: float, check: bool = True) -> str:
        """The standard output of a command of this Python.

        Raises:
            RuntimeError: it failed, or did not end in time.
        """
        words = [str(word) for word in command]
        limit = min(limit, self.end - time.monotonic())
        began = time.monotonic()
        print("+", *words, file=self.log, flush=True)
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=self.log, text=True, start_new_session=True
        )
        output, in_time = _wait(process, limit)
        seconds = time.monotonic() - began
        print(output, f"({process.returncode}, {seconds:.1f} s)", file=self.log, flush=True)
        if check and not in_time:
            raise RuntimeError(f"not done within {limit:.0f} s: {' '.join(words[2:])}")
        if check and process.returncode:
            raise RuntimeError(f"exit code {process.returncode}: {' '.join(words[2:])}")
        return output

    def write(self) -> None:
        """results.json and summary.md, as far as the steps have come."""
        (self.folder / "results.json").write_text(json.dumps(self.results, indent=1))
        (self.folder / "summary.md").write_text("\n".join(summary(self.results)) + "\n")


def _wait(process: subprocess.Popen[str], limit: float) -> tuple[str, bool]:
    """The output of a process, and whether it ended in time; else it is asked to, then killed."""
    try:
        return process.communicate(timeout=max(limit, 1))[0], True
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # pytest then writes what it has
    try:
        output = process.communicate(timeout=GRACE)[0]
    except subprocess.TimeoutExpired:
        output = ""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
    return output or process.communicate()[0], False


def machine() -> dict[str, Any]:
    """The card and the versions."""
    import torch

    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if torch.cuda.is_available():
        found["card"] = torch.cuda.get_device_name()
        found["cudnn"] = torch.backends.cudnn.version()
    return found


def tests(steps: Steps, limit: float) -> dict[str, Any]:
    """Everything marked `cuda`, the slow ones last; what was run when time is over counts."""
    found, end = dict[str, Any](), time.monotonic() + limit - 2 * GRACE
    for name, marks in (("quick", "cuda and not slow"), ("slow", "cuda and slow")):
        report = steps.folder / f"junit-{name}.xml"
        options = ["-m", marks, "-q", "-n", "4", f"--junitxml={report}", "-p", "no:cacheprovider"]
        paths = ["tests/test_devices.py"] if steps.rehearses else []
        command = [sys.executable, "-m", "pytest", *options, *paths]
        steps.run(*command, limit=end - time.monotonic(), check=False)
        found[name] = counted(report)
        steps.results["tests"] = found
        steps.write()
    return found


def counted(report: Path) -> dict[str, Any]:
    """How many tests of a report passed or not, and which failed."""
    suite = next(ElementTree.parse(report).iter("testsuite"))
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return {**counts, "failed": failed[:50]}


def models(steps: Steps, limit: float) -> dict[str, Any]:
    """Train, export, verify and evaluate a model of each kind of data on the device."""
    text = steps.folder / "text.txt"
    text.write_text(TEXT)
    end, found, failed = time.monotonic() + limit, dict[str, Any](), list[str]()
    small = ["--epochs", "1", "--hidden-size", "8"] if steps.rehearses else ["--epochs", "3"]
    for name, data, task in (
        ("spoken-digits", "spoken-digits", []),
        ("airline", "airline", []),
        ("text", text, ["--task", "lm"]),
    ):
        folder = steps.folder / "runs" / name
        device = ["--device", steps.device]
        began = time.monotonic()

        def ask(*words: Any) -> Any:
            return json.loads(steps.run(*RUN, *words, "--json", limit=end - time.monotonic()))

        try:
            trained = ask("train", data, *task, *small, *device, "--output", folder)
            streaming = ["--streaming"] if name == "text" else []
            exported = ask("export", folder, "--onnx", *streaming)
            verified = ask("verify", folder, "--onnx", exported["path"])
        except RuntimeError as error:  # the next may do better
            failed.append(f"{name}: {error}")
            continue
        found[name] = {
            "seconds": round(time.monotonic() - began, 1),
            "metrics": trained.get("metrics") or trained.get("evaluation"),
            "parity": verified["passed"],
            "worst": {row["runtime"]: row["difference"] for row in verified["rows"]},
        }
        steps.results["models"] = found
        steps.write()
    if failed:
        raise RuntimeError("; ".join(failed))
    return found


def backends(steps: Steps, limit: float) -> list[dict[str, Any]]:
    """The cases of `bench` in every precision, beside cuDNN padded and packed."""
    end, found = time.monotonic() + limit, list[dict[str, Any]]()
    seconds = 0.5 if steps.rehearses else 1.0  # a case has three precisions and two modes
    backend = [f"--backend={name}" for name in ("padded", "packed", "vendor", "compiled", "auto")]
    for case in REHEARSAL if steps.rehearses else CASES:
        flags = [f"--{k}" if v is True else f"--{k}={v}" for k, v in case.items()]
        if end - time.monotonic() < 20 * seconds:
            break
        shown = steps.run(
            *RUN, "bench", *flags, *backend, f"--seconds={seconds}", "--device", steps.device,
            "--json", limit=end - time.monotonic(),
        )  # fmt: skip
        found.append({"case": case, **json.loads(shown)})
        steps.results["backends"] = found
        steps.write()
    return found


def cells(steps: Steps, limit: float) -> list[dict[str, Any]]:
    """Training steps of other cells, compiled, beside their eager loop and cuDNN."""
    end, found = time.monotonic() + limit, list[dict[str, Any]]()
    size = (
        REHEARSAL[0] if steps.rehearses else {"batch": 64, "time": 128, "input": 64, "hidden": 256}
    )
    flags = [f"--{name}={value}" for name, value in size.items()]
    backend = [f"--backend={name}" for name in ("padded", "compiled", "reference", "auto")]
    for cell in CELLS[:1] if steps.rehearses else CELLS:
        shown = steps.run(
            *RUN, "bench", f"--cell={cell}", *flags, *backend, "--mode=training", "--seconds=2",
            "--device", steps.device, "--json", limit=end - time.monotonic(),
        )  # fmt: skip
        found.append({"case": {"cell": cell, **size}, **json.loads(shown)})
        steps.results["cells"] = found
        steps.write()
    return found


def training(steps: Steps, limit: float) -> dict[str, Any]:
    """Seconds an epoch of spoken digits and of the guide program, on the device and on the CPU."""
    found, end = dict[str, Any](), time.monotonic() + limit
    for device in dict.fromkeys([steps.device, "cpu"]):
        folder = steps.folder / "runs" / f"speed-{device}"
        epochs = 1 if steps.rehearses else 4
        words = ["train", "spoken-digits", "--epochs", epochs, "--device", device, "--json"]
        words += ["--hidden-size", 8] if steps.rehearses else []
        left = end - time.monotonic()
        shown = json.loads(steps.run(*RUN, *words, "--output", folder, limit=left))
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        found[device] = {
            "seconds": shown.get("seconds"),
            "epochs": [json.loads(line).get("seconds") for line in lines],
        }
        guide = [sys.executable, "benchmarks/guide.py", "--rounds", 1, "--threads", 1]
        left = end - time.monotonic()
        shown = json.loads(steps.run(*guide, "--device", device, limit=left))
        found[device]["guide"] = {kind: shown[kind]["seconds"] for kind in ("cold", "warm")}
        steps.results["training"] = found
        steps.write()
    return found


def summary(results: dict[str, Any]) -> Iterator[str]:
    """One page for people."""
    yield f"# {results.get('machine', {}).get('card', results['device'])}"
    yield ""
    yield ", ".join(f"{name} {value}" for name, value in results.get("machine", {}).items())
    for name in SHARES:
        if error := results.get("errors", {}).get(name):
            yield f"\n**{name}: {error}**"
    if found := results.get("tests"):
        yield "\n## Tests\n"
        yield from (line for item in found.items() for line in of_tests(*item))
    if found := results.get("models"):
        yield from of_models(found)
    if found := results.get("backends"):
        yield from ratios(found)
    if found := results.get("cells"):
        yield from of_cells(found)
    if found := results.get("training"):
        yield f"\n## Training\n\n{json.dumps(found)}"


def of_models(found: dict[str, Any]) -> Iterator[str]:
    """How the models of each kind of data came out."""
    yield "\n## Models\n\n| data | seconds | parity | metrics |\n|---|---|---|---|"
    for name, row in found.items():
        yield f"| {name} | {row['seconds']} | {row['parity']} | {json.dumps(row['metrics'])} |"


def of_cells(found: list[dict[str, Any]]) -> Iterator[str]:
    """Times of training steps, and what they are of cuDNN's padded one."""
    yield "\n## Cells\n\n| cell | backend | ms | of padded |\n|---|---|---|---|"
    for row in (row for each in found for row in each["rows"]):
        shown = (
            f"{row['backend']} | {row['median_ms']:.2f} | {row['ratios'].get('padded', 0.0):.2f}"
        )
        yield f"| {row['case']['cell']} | {shown} |"


def of_tests(kind: str, row: dict[str, Any]) -> Iterator[str]:
    """How the quick or the slow tests went."""
    failed = row["failures"] + row["errors"]
    passed = row["tests"] - failed - row["skipped"]
    yield f"{kind}: {passed} passed, {failed} failed, {row['skipped']} skipped\n"
    yield from (f"- {name}" for name in row["failed"])


def ratios(found: list[dict[str, Any]]) -> Iterator[str]:
    """Time over that of the faster form of nn.LSTM, a line a case, precision and mode."""
    names = ("auto", "compiled", "vendor")
    yield "\n## Backends\n\ntime over that of the faster form of nn.LSTM (padded, packed)\n"
    yield f"| B, T, D, H, layers, lengths | precision | mode | {' | '.join(names)} |"
    yield "|---|---|---|" + "---|" * len(names)
    lines: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in (row for each in found for row in each["rows"]):
        case = row["case"]
        sizes = [str(case[name]) for name in ("batch", "time", "input", "hidden", "layers")]
        key = ", ".join([*sizes, case["lengths"]]), case["precision"], row["mode"]
        lines.setdefault(key, {})[row["backend"]] = f"{row['ratio']:.2f}" if row["ratio"] else "-"
    for key, values in lines.items():
        yield f"| {' | '.join((*key, *(values.get(name, '-') for name in names)))} |"


def main() -> int:
    """Run the steps that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--only", nargs="*", choices=[*SHARES], default=[*SHARES])
    asked = parser.parse_args()
    asked.output.mkdir(parents=True, exist_ok=True)
    limit = asked.seconds or (REHEARSAL_LIMIT if asked.device == "cpu" else LIMIT)
    steps = Steps(asked.device, asked.output, limit)
    steps.results["machine"], errors = machine(), dict[str, str]()
    known: dict[str, Callable[[Steps, float], Any]] = {
        "tests": tests, "models": models, "backends": backends, "training": training,
        "cells": cells,
    }  # fmt: skip
    for name in asked.only:
        began = time.monotonic()
        try:
            share = 1.0 if steps.rehearses else SHARES[name]  # a rehearsal measures nothing
            steps.results[name] = known[name](steps, share * limit)
        except Exception as error:  # the next step shall run whatever this one did
            errors[name] = f"{type(error).__name__}: {error}"
        steps.results.setdefault("seconds", {})[name] = round(time.monotonic() - began, 1)
        steps.results["errors"] = errors
        steps.write()
    print((asked.output / "summary.md").read_text())
    has_failed = any(row["failed"] for row in steps.results.get("tests", {}).values())
    return 1 if errors or has_failed else 0


if __name__ == "__main__":
    sys.exit(main())
