"""Which backend `auto` takes: the one measured fastest, or `vendor` where nothing was measured.

`recurrence.calibrate` makes the measurements; they are kept in the user's cache folder. `auto`
never compiles: it takes `compiled` only where this process has the graphs already.
"""

import json
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lstm_compile.devices import package_versions
from lstm_compile.errors import InputError
from lstm_compile.files import to_json, write_atomically
from lstm_compile.recurrence.cache import cache_dir, private_folder
from lstm_compile.recurrence.chunk import backward_chunk, infer_chunk, record_chunk
from lstm_compile.recurrence.inductor import can_compile, has_compiled
from lstm_compile.recurrence.lengths import extremes
from lstm_compile.recurrence.stack import read_layers

FILE = "calibration.json"
CLEARLY = 0.95  # of the vendor's time: a smaller gain is within the noise of measuring


class Bucket(NamedTuple):
    """What decides which backend is fastest; sizes are rounded up to powers of two."""

    device: str  # "cpu, 2 threads", or the name of a GPU
    dtype: str
    training: bool
    ragged: bool  # whether lengths differ
    batch: int
    time: int
    input_size: int
    hidden_size: int

    def __str__(self) -> str:
        """All of it in one line."""
        mode = "training" if self.training else "inference"
        lengths = "mixed lengths" if self.ragged else "full lengths"
        sizes = f"B{self.batch} T{self.time} D{self.input_size} H{self.hidden_size}"
        return f"{self.device}, {self.dtype}, {mode}, {lengths}, {sizes}"


class Workload(NamedTuple):
    """One layer and direction on one batch, in exact sizes."""

    hidden_size: int
    input_size: int
    batch: int
    time_steps: int  # of the longest row
    ragged: bool  # whether lengths differ
    training: bool  # forward and backward, or a forward without gradients
    device: torch.device
    dtype: torch.dtype = torch.float32

    @property
    def bucket(self) -> Bucket:
        """The workloads that share its measurement."""
        sizes = self.batch, self.time_steps, self.input_size, self.hidden_size
        return Bucket(
            _device_name(self.device, torch.get_num_threads()),
            str(self.dtype).removeprefix("torch."),
            self.training,
            self.ragged,
            *(1 << max(0, size - 1).bit_length() for size in sizes),
        )


class Measured(NamedTuple):
    """Median times of one layer and direction in milliseconds, and the time that compiling took."""

    vendor: float
    compiled: float
    chunk: int
    compile_seconds: float


class BackendChoice(NamedTuple):
    """A backend, and why `auto` takes it."""

    backend: Literal["vendor", "compiled"]
    chunk: int
    reason: str
    work: Bucket
    measured: Measured | None = None

    def __str__(self) -> str:
        """`vendor, nothing was measured ...`, in one line."""
        line = f"{self.backend}, {self.reason} ({self.work})"
        if self.measured is None:
            return line
        vendor, compiled, _, seconds = self.measured
        times = f"compiled {compiled:.3g} ms, vendor {vendor:.3g} ms, compiling {seconds:.1f} s"
        return f"{line}: {times}"


@cache
def _device_name(device: torch.device, threads: int) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {threads} thread{'s' * (threads > 1)}"


def choose(workload: Workload, chunk: int) -> BackendChoice:
    """What `auto` takes for this workload."""
    bucket = workload.bucket
    measured = measurements().get(bucket)
    if measured is None:
        return BackendChoice("vendor", chunk, "no measurement of this size", bucket)
    if not can_compile(workload.device.type):
        return BackendChoice("vendor", chunk, "there is no compiler here", bucket)
    if measured.compiled > CLEARLY * measured.vendor:
        return BackendChoice("vendor", chunk, "compiled was not clearly faster", bucket, measured)
    functions = (record_chunk, backward_chunk) if workload.training else (infer_chunk,)
    key = workload.hidden_size, workload.dtype, workload.device, measured.chunk
    if not all(has_compiled(function, *key) for function in functions):
        why = "compiled is faster, but its graphs are not compiled in this process"
        return BackendChoice("vendor", chunk, why, bucket, measured)
    return BackendChoice("compiled", measured.chunk, "measured faster", bucket, measured)


def explain_backend(
    params: Mapping[str, Tensor],
    batch: int,
    time: int,
    lengths: Tensor | None = None,
    *,
    training: bool = False,
    chunk: int = 8,
) -> BackendChoice:
    """What `lstm(params, x, lengths, backend="auto")` would take, and why.

    `x` would be (batch, time, input_size). Of `params`, as in `lstm`, the device counts, and their
    dtype or that of autocast. `lengths` are (batch,) int64, or None where every step is valid.
    `training` is whether gradients are asked for; `chunk` is as in `lstm`.

    Raises:
        InputError: parameters that are not those of an LSTM.
    """
    first = read_layers(params)[0][0]
    kind = first.weight_hh.device.type
    if torch.is_autocast_enabled(kind):
        first = first.to(torch.get_autocast_dtype(kind))
    least, most = (time, time) if lengths is None else extremes(lengths.cpu())
    weight_ih, weight_hh, *_ = first
    workload = Workload(
        weight_hh.shape[1], weight_ih.shape[1], batch, most,
        ragged=least != most, training=training, device=weight_hh.device, dtype=weight_hh.dtype,
    )  # fmt: skip
    return choose(workload, chunk)


def remember(bucket: Bucket, measured: Measured) -> None:
    """Keep a measurement for this process and, in the user's cache folder, for later ones."""
    measurements()[bucket] = measured
    rows = [{**bucket._asdict(), **times._asdict()} for bucket, times in measurements().items()]
    try:
        path = private_folder("") / FILE
        write_atomically(path, to_json({"versions": _versions(), "measured": rows}).encode())
    except (OSError, RuntimeError, InputError) as error:  # RuntimeError: no home folder
        warnings.warn(f"the calibration is not kept: {error}", stacklevel=2)


@cache
def measurements() -> dict[Bucket, Measured]:
    """The measurements made on this machine with these versions."""
    try:
        content = json.loads((cache_dir() / FILE).read_text("utf-8"))
        rows = content["measured"] if content["versions"] == _versions() else []
        return {_read(Bucket, row): _read(Measured, row) for row in rows}
    except (OSError, RuntimeError, ValueError, TypeError, KeyError):
        return {}  # none yet, or in another format: `calibrate` measures again


def _read(kind: Any, row: Mapping[str, Any]) -> Any:
    return kind(**{name: row[name] for name in kind._fields})


def _versions() -> dict[str, str]:
    own = package_versions("lstm-compile").get("lstm-compile", "checkout")
    return {"torch": torch.__version__, "lstm_compile": own}
