"""From cases to a report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product

import torch

from lstm_compile.bench.cases import Case, Mode, lengths_of
from lstm_compile.bench.figures import BenchReport, BenchRow, rows_of
from lstm_compile.bench.machine import machine
from lstm_compile.bench.memory import Peak, peak, supported
from lstm_compile.bench.problem import (
    CONTESTANTS,
    REFERENCE_STEPS,
    Contestant,
    build,
    calibrated,
    step_of,
    tf32,
)
from lstm_compile.bench.settings import BenchConfig
from lstm_compile.bench.timing import interleave
from lstm_compile.devices import cpu_threads, find_device
from lstm_compile.errors import InputError
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
    """Measure every case in every mode; Ctrl-C ends it with what was measured so far.

    Args:
        cases: what to compute.
        config: how to measure.
        contestants: who can compute, by name.
        backends: of these names, those wanted, `reference` however long it takes; empty takes all,
            `reference` for short cases only.
        on_case: called before each case and mode, which may take long to compile.
        on_rows: called with its rows.

    Raises:
        InputError: an unknown name or device, or lengths or a precision that do not fit.
    """
    device = find_device(config.device)
    _check(cases, config, contestants, backends, device)
    wanted = {name: contestants[name] for name in contestants if name in (backends or contestants)}
    with cpu_threads(config.threads or torch.get_num_threads()):
        report = BenchReport(machine=machine(device), settings=asdict(config))
        try:
            for case, mode in product(cases, config.modes):
                fitting = _fitting(wanted, case, mode, device, bool(backends), report.skipped)
                if fitting:
                    on_case(case, mode)
                    rows = _measure(fitting, case, mode, config, device)
                    report.rows += rows
                    on_rows(rows)
        except KeyboardInterrupt:
            report.stopped = True
    return report


def _check(
    cases: Sequence[Case],
    config: BenchConfig,
    contestants: Mapping[str, Contestant],
    backends: Sequence[str],
    device: torch.device,
) -> None:
    for name in backends:
        if name not in contestants:
            known = ", ".join(contestants)
            raise InputError(f"backend must be one of {known}; got {name!r}")
    for case in cases:
        lengths_of(case, config.seed)
        if case.precision == "tf32" and device.type != "cuda":
            raise InputError("precision tf32 is one of CUDA devices; use fp32 or bf16 on the CPU")
    if config.memory and not supported(device.type):
        raise InputError("--memory needs Linux or a CUDA device; leave it out")


def _fitting(
    wanted: Mapping[str, Contestant],
    case: Case,
    mode: Mode,
    device: torch.device,
    by_name: bool,
    skipped: dict[str, str],
) -> dict[str, Contestant]:
    """Who can compute this; the others' reasons go to `skipped`."""
    reasons = {name: _why_not(name, case, mode, device, by_name) for name in wanted}
    skipped |= {name: why for name, why in reasons.items() if why}
    return {name: contestant for name, contestant in wanted.items() if not reasons[name]}


def _why_not(name: str, case: Case, mode: Mode, device: torch.device, by_name: bool) -> str:
    if name == "onnxruntime" and (mode, device.type, case.precision) != ONNXRUNTIME:
        return "measured in inference only, in fp32 on the CPU"
    if name == "compiled" and not can_compile(device.type):
        return "no C++ compiler (or, on CUDA, no Triton); install g++ or set CXX"
    if name == "reference" and case.recurrent_steps > REFERENCE_STEPS and not by_name:
        return (
            f"a plain loop: only where time x layers x directions is at most {REFERENCE_STEPS}, "
            "unless --backend reference asks for it"
        )
    return ""


def _measure(
    contestants: Mapping[str, Contestant],
    case: Case,
    mode: Mode,
    config: BenchConfig,
    device: torch.device,
) -> list[BenchRow]:
    problem = build(case, device, mode, config.seed)
    with tf32(case.precision == "tf32"):
        steps = {
            name: step_of(contestant, name, problem, mode)
            for name, contestant in contestants.items()
        }
        choices: list[str] = []

        def calibrate() -> None:
            if "auto" in contestants:
                choices.append(calibrated(problem, mode))

        budget = config.repeats, config.seconds, config.seed
        timings = interleave(steps, *budget, _synchronize(device), calibrate)
    peaks = _peaks(contestants, case, mode, config, device) if config.memory else {}
    return rows_of(case, mode, timings, peaks, *choices)


def _synchronize(device: torch.device) -> Callable[[], object]:
    if device.type == "cuda":
        return partial(torch.cuda.synchronize, device)
    return lambda: None


def _peaks(
    contestants: Mapping[str, Contestant],
    case: Case,
    mode: Mode,
    config: BenchConfig,
    device: torch.device,
) -> dict[str, Peak]:
    threads = torch.get_num_threads()
    return {
        name: peak(contestant, name, case, mode, str(device), threads, config.seed)
        for name, contestant in contestants.items()
    }
