"""The files of a run folder: lock, settings, figures, and the model with its provenance."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from os import getpid
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from lstm_compile.data.series.windows import Windows
from lstm_compile.devices import package_versions
from lstm_compile.errors import InputError
from lstm_compile.files import remove_unfinished, to_json, write_atomically
from lstm_compile.model import run_folder
from lstm_compile.model.checkpoint import Model, load_model, save_model
from lstm_compile.model.model import Params
from lstm_compile.tasks.losses import loss_name
from lstm_compile.tasks.series_scaler import target_deviation, target_mean
from lstm_compile.training.backend import threads_of
from lstm_compile.training.config_file import table_of, to_toml
from lstm_compile.training.job import Job, Outcome, stamp_of
from lstm_compile.training.resume import settings_of
from lstm_compile.training.state import Epoch, Progress

LOCK_FILE = "run.lock"
MOST_IDS = 10_000  # of series that the model's file lists
FILES = (
    run_folder.MODEL_FILE, run_folder.LAST_FILE, run_folder.CONFIG_FILE,
    run_folder.METRICS_FILE, run_folder.BASELINES_FILE, run_folder.REPORT_FILE,
)  # fmt: skip


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep every other process that asks for the same folder out.

    The system releases the lock when its process ends, however it ends: a file that is left over
    locks nothing.

    Raises:
        InputError: another process has the lock, or the file cannot be made.
    """
    path = folder / LOCK_FILE
    lock, owner = FileLock(path), _owner_of(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"{folder}: another run writes there (process {owner}); wait for its end, stop it, or "
            "name another --output"
        ) from error
    except OSError as error:
        raise InputError(
            f"{path}: cannot be locked ({error.strerror}); check the folder and its rights"
        ) from error
    try:
        with suppress(OSError):  # on Windows, a locked file cannot be written
            path.write_text(f"{getpid()}\n")
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # before the release: no other process owns it yet
        lock.release()


def _owner_of(path: Path) -> str:
    """The number of the process that has a lock, as far as its file says so."""
    try:
        return path.read_text(errors="replace")[:32].strip() or "unknown"
    except OSError:
        return "unknown"


@contextmanager
def own_folder(job: Job) -> Iterator[None]:
    """Lock the run folder and write the settings into it; leave it empty if the run fails at once.

    Raises:
        InputError: another process writes there, or has written since the job was prepared.
    """
    with locked(job.folder):
        if stamp_of(job.folder) != job.stamp:
            raise InputError(f"{job.folder}: another run wrote there meanwhile; try again")
        remove_unfinished(job.folder, *FILES)
        write_settings(job)
        try:
            yield
        except Exception:
            if not any(
                (job.folder / name).exists()
                for name in (run_folder.MODEL_FILE, run_folder.LAST_FILE)
            ):
                (job.folder / run_folder.CONFIG_FILE).unlink(missing_ok=True)
            raise


def write_settings(job: Job) -> None:
    """Write `config.toml`."""
    write_atomically(job.folder / run_folder.CONFIG_FILE, to_toml(job).encode())


def run_info(job: Job, backend: str) -> dict[str, Any]:
    """What a run must have in common with the saved state that it resumes from."""
    return {
        "data_fingerprint": job.fingerprint,
        "backend": backend,
        "threads": threads_of(job.config, job.training),
        "versions": versions(),
        **settings_of(job.config, job.training),
    }


def note_changes(before: dict[str, Any], now: dict[str, Any], note: Callable[[str], None]) -> None:
    """Note differences to the saved run that do not stop it but change its results."""
    for name in ("versions", "threads"):
        if before.get(name) != now[name]:
            note(
                f"{name} were {before.get(name)} and are {now[name]}: the run goes on, but not bit "
                "for bit as it would have"
            )


def restore_files(job: Job, last: Progress) -> None:
    """Bring the other files to the saved progress: they may be older, newer, or missing."""
    write_metrics(job, last)
    best = last.best_epoch
    if best is None:
        return
    try:
        is_there = load_model(job.folder).training["epochs"] >= best.epoch
    except (InputError, KeyError, TypeError):
        is_there = False
    if not is_there:
        save_best(job, last.best, best)


def reopen(job: Job, last: Progress) -> None:
    """Write the model file as one of a run that goes on: it no longer says why it stopped."""
    if last.best_epoch is not None:
        save_best(job, last.best, last.best_epoch)


def save_best(job: Job, params: Params, epoch: Epoch) -> None:
    """Write the model file after an epoch, while training goes on."""
    model = model_of(job, params, {"epochs": epoch.epoch, "validation": epoch.validation})
    save_model(job.folder / run_folder.MODEL_FILE, *model)


def write_metrics(job: Job, progress: Progress) -> None:
    """Write `metrics.jsonl`, one line for each epoch, those of a refit last."""
    lines = [epoch._asdict() for epoch in progress.epochs]
    lines += [{**epoch._asdict(), "refit": True} for epoch in progress.refit_epochs or ()]
    text = "".join(to_json(line) + "\n" for line in lines)
    write_atomically(job.folder / run_folder.METRICS_FILE, text.encode())


def model_of(job: Job, params: Params, training: dict[str, Any]) -> Model:
    """The content of the model file; `training` is added to what is known of the run."""
    provenance = {
        "data": job.data,
        "data_fingerprint": job.fingerprint,
        "seed": job.training.seed,
        **({"table": table_of(job)} if table_of(job) else {}),
        **about_series(job),
        **({"unroll": job.training.unroll} if job.config.traits.is_text else {}),
        "versions": versions(),
        **training,
    }
    return Model(params, job.config, job.parts.train.schema, provenance)


def provenance_of(job: Job, outcome: Outcome) -> dict[str, Any]:
    """How the weights came about and what they are worth, for the model file."""
    best = outcome.fit.best
    extra: dict[str, Any] = {}
    if job.warm:
        extra["init"] = {"source": job.warm.source, "fresh": job.warm.fresh}
    if outcome.refitted:  # without a test part, the figures are of the weights before the refit
        extra["refit"] = {"sequences": len(job.parts.everything), "epochs": best and best.epoch}
    return {
        **extra,
        "epochs": best.epoch if best else 0,
        "stopped": outcome.fit.stopped,
        "validation": best.validation if best else {},
        outcome.tested_on: outcome.evaluation.metrics,
        "baselines": outcome.evaluation.baselines,
        "seconds": round(outcome.seconds, 1),
        "compile_seconds": round(outcome.compile_seconds, 1),
        "backend": outcome.backend,
    }


def versions() -> dict[str, str]:
    """The versions that the figures of a run depend on."""
    return {**package_versions(), "torch": torch.__version__}


def about_series(job: Job) -> dict[str, Any]:
    """What the evaluation of a forecasting model needs besides the model."""
    parts = job.parts
    if not isinstance(parts.test, Windows) or not isinstance(parts.train, Windows):
        return {}
    table, is_same = parts.train.table, parts.test.table is parts.train.table
    ids = table.ids if table.ids and len(table.ids) <= MOST_IDS else None
    return {
        "loss": loss_name(job.config.task, job.training.loss, job.config.quantiles),
        "test_from": table.split.test if is_same else None,
        "trained_from": float(table.ticks.min()),
        "trained_ids": ids and [*ids],
        "target_mean": target_mean(parts.train).tolist(),
        "target_deviation": target_deviation(parts.train).tolist(),
    }
