"""`lstm-compile doctor`."""

import warnings
from typing import TYPE_CHECKING

import click

from lstm_compile.cli import output
from lstm_compile.cli.edge import Command, Failure
from lstm_compile.cli.options import json_option
from lstm_compile.cli.working import working

if TYPE_CHECKING:
    from lstm_compile.export.use.doctor import Check
EXAMPLES = (
    "doctor",
    "doctor --json",
)


@click.command(cls=Command, examples=EXAMPLES)
@json_option
def command(as_json: bool) -> None:
    """Check versions, devices, folders and every backend.

    The compiler and ONNX Runtime are tried too. Each backend is tried on a small problem, and each
    failure comes with a remedy. The exit code is 1 if something fails that everything else needs.
    """
    out = output.console(as_json)
    with working(out, "checking"):
        from lstm_compile.export.use.doctor import examine
        from lstm_compile.recurrence.cache import use_local_cache

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a check reports the same
            use_local_cache()
        report = examine(lambda check: output.write(out, line(check), 23))
    if as_json:
        output.print_json(report.to_dict())
    if not report.passed:
        failed = ", ".join(c.name for c in report.checks if c.required and not c.passed)
        raise Failure(f"does not work here: {failed}; the lines above say what to do")
    output.lines(out, ("next", "lstm-compile train"))


def line(check: "Check") -> str:
    """`[\u2713] name  what was found`; `[-]` where something optional is missing."""
    mark = "[\u2713]" if check.passed else "[x]" if check.required else "[-]"
    advice = f"; {check.mend}" if check.mend else ""
    seconds = f" ({check.seconds:.1f} s)" if check.seconds >= 0.1 else ""
    return f"{mark} {check.name:<18} {check.found}{advice}{seconds}"
