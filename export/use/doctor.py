"""Is all that this package needs here, and does it work? Each check stands on its own.

What a check imports is imported in it: a package that is broken fails one check, and not them all.
"""

import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from lstm_compile.errors import reason

OLDEST_PYTHON = (3, 11)
OLDEST = {  # as pyproject.toml has them
    "torch": "2.11", "numpy": "1.26", "safetensors": "0.4.5", "onnx": "1.18", "onnxruntime": "1.20",
    "onnxscript": "0.5.4", "pyarrow": "15", "click": "8.2", "rich": "13",
    "filelock": "3.13", "jinja2": "3.1",
}  # fmt: skip
EXTRAS = {"openvino": "a second runtime for verify", "matplotlib": "plots", "optuna": "tune"}
BACKENDS = ("reference", "vendor", "compiled", "auto")
TOLERANCE = 1e-5  # absolute, and for what is larger than 1 relative
CHUNK = 2  # the smallest graph that shows whether compiling works


class Check(NamedTuple):
    """What one check found."""

    name: str
    passed: bool
    required: bool  # whether everything else is useless without it
    found: str
    mend: str = ""  # what to do about it where it did not pass
    seconds: float = 0.0


Finding = tuple[bool, str, str]  # passed, found, mend


class Diagnosis(NamedTuple):
    """All checks."""

    checks: list[Check]

    @property
    def passed(self) -> bool:
        """Whether all passed that are required."""
        return all(check.passed for check in self.checks if check.required)

    def to_dict(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {"passed": self.passed, "checks": [check._asdict() for check in self.checks]}


def examine(on_check: Callable[[Check], None] = lambda check: None) -> Diagnosis:
    """Look at versions, devices, compiler and folders, and try every backend and runtime.

    Args:
        on_check: told of each check as it ends.
    """
    found = []
    for name, required, check in _checks():
        found.append(_made(name, required, check))
        on_check(found[-1])
    return Diagnosis(found)


def _checks() -> Iterator[tuple[str, bool, Callable[[], Finding]]]:
    yield "python", True, _python
    for name in OLDEST:
        yield name, True, partial(_package, name)
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


def _made(name: str, required: bool, check: Callable[[], Finding]) -> Check:
    began = perf_counter()
    try:
        passed, found, mend = check()
    except Exception as error:  # whatever a broken package raises
        passed, found = False, f"{type(error).__name__}: {reason(error)}"
        mend = "reinstall what the message names: pip install --force-reinstall lstm-compile"
    seconds = round(perf_counter() - began, 3)
    return Check(name, passed, required, found, "" if passed else mend, seconds)


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    wanted = ".".join(map(str, OLDEST_PYTHON))
    return sys.version_info >= OLDEST_PYTHON, found, f"install Python {wanted} or newer"


def _package(name: str) -> Finding:
    mend = f"pip install --upgrade '{name}>={OLDEST[name]}'"
    try:
        import_module(name)
    except ImportError as error:
        return False, f"cannot be imported ({reason(error)})", mend
    found = metadata.version(name)
    return _numbers(found) >= _numbers(OLDEST[name]), found, mend


def _extra(name: str) -> Finding:
    try:
        return True, metadata.version(name), ""
    except metadata.PackageNotFoundError:
        return False, "not installed", f"pip install {name}, for {EXTRAS[name]}"


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split("+")[0].split(".")[:3]
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in parts)


def _cpu() -> Finding:
    import torch

    cores, threads = os.cpu_count(), torch.get_num_threads()
    kind = torch.backends.cpu.get_cpu_capability()
    onednn = "oneDNN" if torch.backends.mkldnn.is_available() else "no oneDNN"
    return threads > 0, f"{cores} cores, {threads} threads, {kind}, {onednn}", "set OMP_NUM_THREADS"


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

    if INDUCTOR in os.environ:
        return _writable(Path(os.environ[INDUCTOR]), INDUCTOR)
    try:
        return _writable(private_folder("inductor"), INDUCTOR)
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
    """Outputs and states of rows of different lengths, and gradients, beside the reference's.

    No gradients for `compiled`: its backward would be compiled too, which takes longer.
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

    generator = torch.Generator().manual_seed(0)
    shapes = {"weight_ih_l0": (32, 5), "weight_hh_l0": (32, 8), "bias_ih_l0": (32,)}
    shapes |= {"bias_hh_l0": (32,)}
    params = {
        key: torch.rand(shape, generator=generator).sub(0.5).to(dtype).requires_grad_()
        for key, shape in shapes.items()
    }
    x, lengths = torch.randn(3, 7, 5, generator=generator).to(dtype), torch.tensor([7, 0, 4])
    output, state = lstm(params, x, lengths, backend=backend, chunk=CHUNK)
    if output.requires_grad:
        (output.sum() + state.c.square().sum()).backward()
    gradients = [value.grad for value in params.values()]
    return [part.detach().double() for part in (output, *state, *gradients) if part is not None]


def _export() -> Finding:
    """A small model as ONNX, and ONNX Runtime's answers beside PyTorch's."""
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
