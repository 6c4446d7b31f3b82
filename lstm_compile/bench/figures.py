"""The figures as rows, and their summary."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lstm_compile.bench.cases import Case, Mode
from lstm_compile.bench.memory import Peak
from lstm_compile.bench.problem import RIVALS
from lstm_compile.bench.timing import Timing


@dataclass(frozen=True, kw_only=True)
class BenchRow:
    """One backend on one case in one mode."""

    case: Case
    mode: Mode
    backend: str
    median_ms: float  # milliseconds of a call, the first one not counted
    p95_ms: float  # the 95th percentile of the same
    sequences_per_second: float  # rows of the batch over the median
    ratios: dict[str, float]  # median over each nn.LSTM form's, by its name; interleaved rounds
    ratio: float | None  # the same over the faster nn.LSTM form; None where none was measured
    compile_seconds: float  # what the first call took longer than the median one
    rounds: int  # in which it ran
    peak_mib: float | None = None  # peak memory of a step; None where it was not measured
    choice: str = ""  # what `auto` took and why; empty for others


@dataclass(kw_only=True)
class BenchReport:
    """All rows, where they were measured, and what was left out."""

    machine: dict[str, Any]  # as `machine` gives it
    settings: dict[str, Any]  # the `BenchConfig`
    rows: list[BenchRow] = field(default_factory=list)  # in the order of measuring
    skipped: dict[str, str] = field(default_factory=dict)  # why not measured, by backend
    stopped: bool = False  # whether a signal ended it early

    def to_dict(self) -> dict[str, Any]:
        """The whole report as JSON has it, `summary` included."""
        return {**asdict(self), "summary": self.summary}

    @property
    def summary(self) -> list[dict[str, Any]]:
        """What `summary` makes of the rows."""
        return summary(self.rows)


def rows_of(
    case: Case,
    mode: Mode,
    timings: Mapping[str, Timing],
    peaks: Mapping[str, Peak],
    choice: str = "",
) -> list[BenchRow]:
    """One row for each backend that was timed."""
    rivals = {name: timings[name] for name in RIVALS if name in timings}
    best = min(rivals, key=lambda name: rivals[name].median, default=None)

    def row(name: str, timing: Timing) -> BenchRow:
        ratios = {rival: timing.ratio(theirs) for rival, theirs in rivals.items()}
        return BenchRow(
            case=case, mode=mode, backend=name, median_ms=1e3 * timing.median,
            p95_ms=1e3 * timing.p95, sequences_per_second=case.batch / timing.median,
            ratios=ratios, ratio=ratios[best] if best else None,
            compile_seconds=timing.compiling, rounds=len(timing.rounds),
            peak_mib=peaks[name].step if name in peaks else None,
            choice=choice if name == "auto" else "",
        )  # fmt: skip

    return [row(name, timing) for name, timing in timings.items()]


def summary(rows: Iterable[BenchRow]) -> list[dict[str, Any]]:
    """Geometric means and the worst of the ratios, by mode, kind of lengths, precision and backend.

    The means leave out batches of one row; the worst does not.
    """
    groups: dict[tuple[str, ...], list[BenchRow]] = {}
    for row in rows:
        key = (row.mode, row.case.lengths, row.case.precision, row.backend)
        if row.ratio is not None:
            groups.setdefault(key, []).append(row)
    names = ("mode", "lengths", "precision", "backend")
    return [dict(zip(names, key, strict=True)) | _means(group) for key, group in groups.items()]


def _means(rows: list[BenchRow]) -> dict[str, Any]:
    wide = [row for row in rows if row.case.batch > 1]
    ratios = {name: [row.ratios[name] for row in wide if name in row.ratios] for name in RIVALS}
    best = [row.ratio for row in rows if row.ratio is not None]
    return {
        "cases": len(rows),
        **{f"mean_to_{name}": _geometric(values) for name, values in ratios.items()},
        "mean_to_best": _geometric([row.ratio for row in wide if row.ratio is not None]),
        "worst_to_best": max(best),
    }


def _geometric(values: list[float]) -> float | None:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None
