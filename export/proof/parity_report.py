"""The results of a comparison: lines for people, JSON for programs. Loads no torch."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import groupby

SHOWN_FAILURES = 3


@dataclass(frozen=True)
class Comparison:
    """One runtime on one case."""

    runtime: str
    case: str  # such as `B=3 T=17 mixed`
    tolerance: float  # the largest difference that passes
    difference: float  # the largest one found; NaN where an answer is NaN or there is no answer
    error: str = ""  # why there is no answer

    @property
    def passed(self) -> bool:
        """Whether there is an answer within the tolerance; NaN never is."""
        return not self.error and self.difference <= self.tolerance

    def __str__(self) -> str:
        mark = "✓" if self.passed else "x"
        found = f"max difference {self.difference:.1e}  tolerance {self.tolerance:g}"
        return f"[{mark}] {self.runtime:<16} {self.case:<16} {self.error or found}"


@dataclass(frozen=True)
class ParityReport:
    """How much each runtime's answers differ from those of the float64 reference."""

    rows: tuple[Comparison, ...]  # one for each runtime and case
    onnx_sha256: str  # of the file that was compared
    versions: dict[str, str]  # of torch and the runtimes
    device: str  # what they ran on
    skipped: dict[str, str] = field(default_factory=dict)  # not compared, and why

    @property
    def passed(self) -> bool:
        """Whether every row passed, and there is one."""
        return bool(self.rows) and all(row.passed for row in self.rows)

    def failures(self) -> list[Comparison]:
        """The rows that did not pass."""
        return [row for row in self.rows if not row.passed]

    def lines(self) -> list[str]:
        """A line for each runtime that passed, the first few failing cases of each other."""
        groups = groupby(self.rows, key=lambda row: row.runtime)
        lines = [line for runtime, rows in groups for line in _summary(runtime, list(rows))]
        return lines + [f"[-] {runtime:<16} {why}" for runtime, why in self.skipped.items()]

    def to_dict(self) -> dict[str, object]:
        """The report as JSON values; a difference that is not finite is None."""
        values = {"passed": self.passed, **asdict(self)}
        values["rows"] = [
            asdict(row)
            | {"difference": row.difference if math.isfinite(row.difference) else None}
            | {"passed": row.passed}
            for row in self.rows
        ]
        return values

    def to_json(self) -> str:
        """The contents of parity.json."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)


def _summary(runtime: str, rows: list[Comparison]) -> Iterator[str]:
    failures = [row for row in rows if not row.passed]
    if not failures:
        worst = max(rows, key=lambda row: row.difference / row.tolerance)
        cases = f"{len(rows)} cases" if len(rows) > 1 else rows[0].case
        yield str(Comparison(runtime, cases, worst.tolerance, worst.difference))
    yield from map(str, failures[:SHOWN_FAILURES])
    if len(failures) > SHOWN_FAILURES:
        rest = len(failures) - SHOWN_FAILURES
        yield f"[x] {runtime:<16} and {rest} more of {len(rows)} cases"
