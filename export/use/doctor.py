"""Whether everything that this package needs is installed and works.

Each check imports what it needs itself: a broken package then fails one check, and not all.
"""

import os
import shutil
import sys
import tempfile
import tomllib
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from packaging.requirements import Requirement

import lstm_compile
from lstm_compile.errors import reason

OLDEST_PYTHON = (3, 11)
EXTRAS = {"openvino": "a second runtime for verify", "matplotlib": "plots", "optuna": "tune"}
BACKENDS = ("reference", "vendor", "compiled", "auto")
TOLERANCE = 1e-5  # absolute; relative for values above 1
CHUNK = 2  # the smallest graph that shows whether compiling works


class Check(NamedTuple):
    """What one check found."""

    name: str
    passed: bool
    required: bool  # whether all else needs it
    found: str
    mend: str = ""  # what to do where it did not pass
    seconds: float = 0.0


Finding = tuple[bool, str, str]  # passed, found, mend


class Diagnosis(NamedTuple):
    """All checks."""

    checks: list[Check]

    @property
    def passed(self) -> bool:
        """Whether all required checks passed."""
        return all(check.passed for check in self.checks if check.required)

    def to_dict(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {"passed": self.passed, "checks": [check._asdict() for check in self.checks]}


def examine(on_check: Callable[[Check], None] = lambda check: None) -> Diagnosis:
    """Look at versions, devices, compiler and folders, and try every backend and runtime.

    `on_check` is called with each check when it ends.
    """
    done = []
    for name, required, check in _checks():
        done.append(_run(name, required, check))
        on_check(done[-1])
    return Diagnosis(done)


def _checks() -> Iterator[tuple[str, bool, Callable[[], Finding]]]:
    yield "python", True, _python
    for requirement in requirements():
        yield requirement.name, True, partial(_package, requirement)
    for name in EXTRAS:
        yield name, False, partial(_extra, name)
    yield "cpu", True, _cpu
    yield "cuda", False, _cuda
    yield "compiler", False, _compiler
    yield "cache folder", False, _cache
    yield "temporary folder", True, partial(_writable, Path(tempfile.gettempdir()), "TMPDIR")
    yield "working folder", False, partial(_writable, Path(), "another folder, or --output")
    for backend in BACKENDS:
        yield f"backend {backend}", backend != "compiled", partial(_backend, backend)
    yield "onnx export", True, _export


def requirements() -> list[Requirement]:
    """What this package needs, from its metadata, or in a bare checkout from pyproject.toml."""
    try:
        lines = metadata.requires("lstm-compile") or []
    except metadata.PackageNotFoundError:
        project = Path(lstm_compile.__file__).parents[1] / "pyproject.toml"
        lines = tomllib.loads(project.read_text("utf-8"))["project"]["dependencies"]
    return [each for each in map(Requirement, lines) if each.marker is None]  # extras have markers


def _run(name: str, required: bool, check: Callable[[], Finding]) -> Check:
    began = perf_counter()
    try:
        passed, found, mend = check()
    except Exception as error:  # a broken package may raise anything
        passed, found = False, f"{type(error).__name__}: {reason(error)}"
        mend = "reinstall what the message names: pip install --force-reinstall lstm-compile"
    seconds = round(perf_counter() - began, 3)
    return Check(name, passed, required, found, "" if passed else mend, seconds)


def _python() -> Finding:
    found, wanted = (".".join(map(str, each)) for each in (sys.version_info[:3], OLDEST_PYTHON))
    return sys.version_info >= OLDEST_PYTHON, found, f"install Python {wanted} or newer"


def _package(wanted: Requirement) -> Finding:
    mend = f"pip install --upgrade '{wanted}'"
    try:
        import_module(wanted.name)
    except ImportError as error:
        return False, f"cannot be imported ({reason(error)})", mend
    found = metadata.version(wanted.name)
    return wanted.specifier.contains(found, prereleases=True), found, mend


def _extra(name: str) -> Finding:
    try:
        return True, metadata.version(name), ""
    except metadata.PackageNotFoundError:
        return False, "not installed", f"pip install {name}, for {EXTRAS[name]}"


def _cpu() -> Finding:
    import torch

    threads, kind = torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()
    onednn = "oneDNN" if torch.backends.mkldnn.is_available() else "no oneDNN"
    found = f"{os.cpu_count()} cores, {threads} threads, {kind}, {onednn}"
    return threads > 0, found, "set OMP_NUM_THREADS"


def _cuda() -> Finding:
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(count))
        return True, f"{names}; CUDA {torch.version.cuda}", ""
    if torch.version.cuda is None:
        return False, "this PyTorch is built for the CPU", "for a GPU install PyTorch for CUDA"
    return False, f"no device; PyTorch is built for CUDA {torch.version.cuda}", "check nvidia-smi"


def _compiler() -> Finding:
    from lstm_compile.recurrence.inductor import can_compile, compiler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        works = can_compile("cpu")
    return works, compiler() or "none", "install g++ or set CXX; until then compiled runs as vendor"


def _cache() -> Finding:
    from lstm_compile.recurrence.cache import INDUCTOR, cache_dir, private_folder

    try:
        given = os.environ.get(INDUCTOR)
        return _writable(private_folder("inductor") if given is None else Path(given), INDUCTOR)
    except (OSError, RuntimeError) as error:
        mend = f"make {cache_dir()} yours alone (chmod 700), or set {INDUCTOR}"
        return False, reason(error), mend


def _writable(folder: Path, name: str) -> Finding:
    shown = folder.absolute()
    try:
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free / 1e9
    except OSError as error:
        return False, f"{shown}: cannot be written to ({error.strerror})", f"choose {name}"
    return free > 1, f"{shown}, {free:.0f} GB free", f"make room there, or choose {name}"


def _backend(name: str) -> Finding:
    """Compare outputs, states and gradients for rows of different lengths with the reference.

    For `compiled` no gradients are compared: compiling the backward would take longer.
    """
    import torch

    from lstm_compile.recurrence.inductor import can_compile

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "compiled" and not can_compile("cpu"):
            return False, "no C++ compiler", "install g++ or set CXX; until then it runs as vendor"
        with torch.set_grad_enabled(name != "compiled"):
            found, expected = _answers(name, torch.float32), _answers("reference", torch.float64)
    worst = max(
        float((ours - theirs).abs().max() / max(1.0, float(theirs.abs().max())))
        for ours, theirs in zip(found, expected, strict=True)
    )
    mend = f"take another --backend, and report this with `lstm-compile doctor --json`: {name}"
    return worst <= TOLERANCE, f"max difference {worst:.1e}", mend


def _answers(backend: Any, dtype: Any) -> list[Any]:
    import torch

    from lstm_compile.recurrence.function import lstm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        params = dict(torch.nn.LSTM(5, 8, device="cpu").to(dtype).named_parameters())
        x = torch.randn(3, 7, 5, device="cpu").to(dtype)
        lengths = torch.tensor([7, 0, 4], device="cpu")
    output, state = lstm(params, x, lengths, backend=backend, chunk=CHUNK)
    if output.requires_grad:
        (output.sum() + state.c.square().sum()).backward()
    gradients = [value.grad for value in params.values()]
    return [part.detach().double() for part in (output, *state, *gradients) if part is not None]


def _export() -> Finding:
    """Export a small model, and compare ONNX Runtime's answers with PyTorch's."""
    import numpy as np
    import torch

    from lstm_compile.config import ModelConfig
    from lstm_compile.export.runtime import load, pad
    from lstm_compile.export.write.onnx import to_onnx
    from lstm_compile.model.checkpoint import Model, numbered_schema
    from lstm_compile.model.model import init_params, predict

    config = ModelConfig(task="classify", input_size=3, output_size=2, hidden_size=4, num_layers=1)
    model = Model(init_params(config, 0), config, numbered_schema(config), {})
    generator = np.random.default_rng(0)
    rows = [generator.standard_normal((length, 3), np.float32) for length in (5, 0, 2)]
    found = load(to_onnx(model).SerializeToString()).predict(rows)
    x, lengths = (torch.from_numpy(part) for part in pad(rows))
    with torch.no_grad():
        expected = predict(model.params, config, x, lengths, backend="reference").numpy()
    worst = float(np.abs(found - expected).max())
    mend = "pip install --upgrade onnx onnxscript onnxruntime"
    return worst <= TOLERANCE, f"ONNX Runtime answers, max difference {worst:.1e}", mend
