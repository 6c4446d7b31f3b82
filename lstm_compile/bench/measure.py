"""Measuring: from cases to a report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product

import torch

from lstm_compile.bench.cases import BenchConfig, Case, Mode, lengths_of
from lstm_compile.bench.figures import BenchReport, BenchRow, rows_of
from lstm_compile.bench.machine import machine
from lstm_compile.bench.memory import peak, supported
from lstm_compile.bench.problem import (
    CONTESTANTS,
    REFERENCE_STEPS,
    Contestant,
    build,
    calibrated,
    step_of,
)
from lstm_compile.bench.timing import interleave
from lstm_compile.devices import cpu_threads, find_device, tf32
from lstm_compile.errors import InputError
from lstm_compile.recurrence.cell_file import read_cell
from lstm_compile.recurrence.inductor import can_compile

ONNXRUNTIME = ("inference", "cpu", "fp32")
OnCase = Callable[[Case, Mode], None]
OnRows = Callable[[list[BenchRow]], None]


def run_bench(
    cases: Sequence[Case],
    config: BenchConfig,
    contestants: Mapping[str, Contestant] = CONTESTANTS,
    backends: Sequence[str] = (),
    on_case: OnCase = lambda case, mode: None,
    on_rows: OnRows = lambda rows: None,
) -> BenchReport:
    """Measure every case in every mode; Ctrl-C ends it and keeps what was measured so far.

    `backends` names the contestants that are wanted, `reference` however long it takes; empty takes
    all, and `reference` for short cases only. `on_case` is called before each case and mode, which
    may take long to compile, and `on_rows` with its rows.

    Raises:
        InputError: an unknown name or device, or lengths or a precision that do not fit.
    """
    device = find_device(config.device)
    if unknown := [name for name in backends if name not in contestants]:
        known = ", ".join(contestants)
        raise InputError(f"backend must be one of {known}; got {unknown[0]!r}")
    _check(cases, config, device)
    wanted = {name: contestants[name] for name in contestants if name in (backends or contestants)}
    job = _Job(wanted, config, device, by_name=bool(backends))
    with cpu_threads(config.threads or torch.get_num_threads()):
        report = BenchReport(machine=machine(device), settings=asdict(config))
        try:
            for case, mode in product(cases, config.modes):
                reasons = {name: job.why_not(name, case, mode) for name in wanted}
                report.skipped |= {name: why for name, why in reasons.items() if why}
                if fitting := [name for name, why in reasons.items() if not why]:
                    on_case(case, mode)
                    rows = job.measure(fitting, case, mode)
                    report.rows += rows
                    on_rows(rows)
        except KeyboardInterrupt:
            report.stopped = True
    return report


def _check(cases: Sequence[Case], config: BenchConfig, device: torch.device) -> None:
    for case in cases:
        lengths_of(case, config.seed)
        if case.precision == "tf32" and device.type != "cuda":
            raise InputError("precision tf32 needs a CUDA device; use fp32 or bf16 on the CPU")
    if config.memory and not supported(device.type):
        raise InputError("--memory needs Linux or a CUDA device; leave it out")


@dataclass(frozen=True)
class _Job:
    """Who is measured, how and where."""

    contestants: Mapping[str, Contestant]
    config: BenchConfig
    device: torch.device
    by_name: bool  # whether the user named the contestants

    def why_not(self, name: str, case: Case, mode: Mode) -> str:
        """Why this contestant cannot be measured on this case; empty where it can."""
        kind = self.device.type
        if name == "onnxruntime" and (mode, kind, case.precision) != ONNXRUNTIME:
            return "measured in inference only, in fp32 on the CPU"
        if name == "compiled" and not can_compile(kind):
            return "no C++ compiler (or, on CUDA, no Triton); install g++ or set CXX"
        if name == "vendor" and "vendor" not in read_cell(case.cell).kernels:
            return f"no vendor has a kernel of cell {case.cell}"
        if name == "reference" and case.recurrent_steps > REFERENCE_STEPS and not self.by_name:
            return (
                f"a plain loop: only where time x layers x directions is at most {REFERENCE_STEPS},"
                " unless --backend reference asks for it"
            )
        return ""

    def measure(self, names: Sequence[str], case: Case, mode: Mode) -> list[BenchRow]:
        """The rows of these contestants."""
        config, choices = self.config, list[str]()
        problem = build(case, self.device, mode, config.seed)

        def calibrate() -> None:
            if "auto" in names:
                choices.append(calibrated(problem, mode))

        with tf32(case.precision == "tf32"):
            steps = {name: step_of(self.contestants[name], name, problem, mode) for name in names}
            budget = config.repeats, config.seconds, config.seed
            timings = interleave(steps, *budget, self._synchronize, calibrate)
        options = case, mode, str(self.device), torch.get_num_threads(), config.seed
        wanted = names if config.memory else ()
        peaks = {name: peak(self.contestants[name], name, *options) for name in wanted}
        return rows_of(case, mode, timings, peaks, *choices)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
