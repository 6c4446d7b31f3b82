"""`lstm-compile train`."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from lstm_compile.cli import output
from lstm_compile.cli.edge import Command, code_of_signal
from lstm_compile.cli.epochs import epoch_printer, step_printer
from lstm_compile.cli.options import (
    PATH,
    check_cell_of_run,
    config_option,
    data_argument,
    given_of,
    is_on_line,
    output_option,
    quiet_option,
    read_run,
    refuse_others,
    settings_flags,
    task_option,
)
from lstm_compile.cli.working import working
from lstm_compile.model.run_folder import CONFIG_FILE, MODEL_FILE, REPORT_FILE
from lstm_compile.training.defaults import resolve
from lstm_compile.training.settings import EXTENDABLE

if TYPE_CHECKING:
    from lstm_compile.training.job import Job, Outcome
EXAMPLES = (
    "train data.csv --id machine --target state",
    "train sales.csv --task forecast --id store --horizon 7",
)


@click.command(cls=Command, examples=EXAMPLES)
@data_argument
@task_option
@click.option("--test", help="File of held-out sequences; a bundled data set has its own.")
@output_option("folder", "Run folder  [default: runs/DATA-N]")
@config_option
@click.option(
    "--resume", type=PATH, is_eager=True, callback=read_run,
    help="Continue the run in this folder where it stopped, with its settings; a finished run goes "
    "on with more --epochs.",
)  # fmt: skip
@quiet_option
@settings_flags
@click.pass_context
def command(
    ctx: click.Context,
    /,
    data: str,
    task: str | None,
    test: str | None,
    folder: Path | None,
    resume: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a model on a table, a text or a bundled data set.

    DATA is a bundled data set, a .ts or .npz file, a long table, or text. Bundled are
    spoken-digits, japanese-vowels and airline. A long table has one row a step: a .csv, .parquet,
    .arrow, .feather, .jsonl or .ndjson file, a folder of them or a quoted glob. Columns that no
    flag names are inferred and printed. Text is a .txt, .text or .md file, a folder or a glob.

    Tasks and bundled data sets have their own defaults: `train --task TASK --help` shows the flags
    and defaults of one task, `config` prints the settings that would be used, and config.toml in
    the run folder holds those that were.

    A part of the training data is held out for validation. The run folder keeps the weights with
    the lowest validation loss, and the last state, from which --resume continues.
    """
    if resume:
        refuse_others(ctx, "resume", "cell", "as_json", "quiet", "debug", *EXTENDABLE)
    out = output.console(as_json)
    given = given_of(ctx, options)
    if resume:
        check_cell_of_run(ctx, resume, options["cell"])
    task, model, training, table = resolve(data, task, **given)
    with ExitStack() as stack:
        work = stack.enter_context(working(out, "loading"))
        from lstm_compile.recurrence.cache import use_local_cache
        from lstm_compile.training import report
        from lstm_compile.training.prepare import JobRequest, RunFinishedError, prepare
        from lstm_compile.training.processes import joined_processes
        from lstm_compile.training.run import help_run, run

        use_local_cache()
        processes = stack.enter_context(joined_processes(training.device))
        try:
            work.say("reading")
            request = JobRequest(data, model, training, test, table, task, work.show)
            extend = resume is not None and any(is_on_line(ctx, name) for name in EXTENDABLE)
            job = prepare(
                request, output=resume or folder, resume=resume is not None, extend=extend
            )
        except RunFinishedError as finished:  # no error: scripts may resume until a run is finished
            output.lines(out, ("finished", str(finished)))
            if as_json and processes.is_first:
                output.print_json({"run": str(resume), **finished.training})
            return
        if not processes.is_first:
            help_run(job)
            return
        with _resume_command_if_stopped(out, job):
            output.lines(out, *report.describe_start(job))
            work.say("preparing")
            outcome = run(
                job, epoch_printer(out, job.training.epochs),
                lambda text: output.lines(out, ("note", text)), step_printer(work, job),
            )  # fmt: skip
    path, page = job.folder / MODEL_FILE, job.folder / REPORT_FILE
    output.lines(
        out,
        *report.describe_end(job, outcome),
        ("model", f"{path} ({output.size(path)}, {report.describe_time(outcome)})"),
        *([("report", str(page))] if page.is_file() else []),
        (outcome.tested_on, output.result(outcome.evaluation)),
        *output.baselines(outcome.evaluation.baselines),
        ("verdict", outcome.evaluation.verdict),
        *report.next_commands(job, outcome),
    )
    if as_json:
        output.print_json(_to_json(job, outcome))
    if outcome.fit.stopped == "interrupt":
        ctx.exit(code_of_signal(ctx))


@contextmanager
def _resume_command_if_stopped(out: Console, job: "Job") -> Iterator[None]:
    """If a signal ends the work before there is a model, print the command that resumes it."""
    try:
        yield
    except KeyboardInterrupt:
        if (job.folder / CONFIG_FILE).exists():
            output.lines(out, ("resume", output.command("train --resume", job.folder)))
        raise


def _to_json(job: "Job", outcome: "Outcome") -> dict[str, Any]:
    return {
        "run": str(job.folder),
        "seconds": round(outcome.seconds, 2),
        "compile_seconds": round(outcome.compile_seconds, 2),
        "backend": outcome.backend,
        "epochs": len(outcome.fit.epochs),
        "stopped": outcome.fit.stopped,
        "tested_on": outcome.tested_on,
        **outcome.evaluation.to_dict(),
    }
