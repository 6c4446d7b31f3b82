"""A training run: from a prepared job to a run folder with model, config, metrics, baselines."""

import platform
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from lstm_compile.baselines import Baseline, fit_baselines, to_tensors
from lstm_compile.cache import compile_seconds
from lstm_compile.checkpoint import Model, load_model, save_model, to_device
from lstm_compile.data.corpus import Corpus
from lstm_compile.data.examples import Examples
from lstm_compile.data.sequences import Sequences
from lstm_compile.devices import cpu_threads, find_device
from lstm_compile.errors import InputError, RunError
from lstm_compile.evaluation import Evaluation, evaluate
from lstm_compile.files import remove_unfinished, to_json, write_atomically
from lstm_compile.forecast.backtest import backtest, headline_of
from lstm_compile.forecast.baselines import fit_forecast_baselines
from lstm_compile.forecast.scaling import target_deviation, target_mean
from lstm_compile.forecast.windows import Windows
from lstm_compile.locking import locked
from lstm_compile.model import Params
from lstm_compile.runs import (
    BASELINES_FILE,
    CONFIG_FILE,
    LAST_FILE,
    METRICS_FILE,
    MODEL_FILE,
)
from lstm_compile.tasks import loss_name
from lstm_compile.training.backend import settle_backend
from lstm_compile.training.document import table_of, to_toml
from lstm_compile.training.feeding import within_reach
from lstm_compile.training.job import Job, Parts
from lstm_compile.training.loop import Epoch, Fit, fit, predict_all, refit, threads_of
from lstm_compile.training.saving import Keeper, save_progress, settings_of
from lstm_compile.training.state import Progress, on_device
from lstm_compile.training.team import PeerLostError, team
from lstm_compile.training.text import score_text
from lstm_compile.training.textual import evaluate_text, fit_text_baselines
from lstm_compile.training.warm import initial_params


@dataclass(frozen=True)
class Outcome:
    """What a finished run left behind."""

    model: Model
    fit: Fit
    evaluation: Evaluation
    tested_on: str
    seconds: float
    compile_seconds: float  # of `seconds`
    backend: str = ""  # which one computed the recurrence, and why
    refitted: bool = False  # whether the model learned from the validation data as well


def run(
    job: Job,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    note: Callable[[str], None] = warnings.warn,
) -> Outcome:
    """Train, keep the best weights and the last state in the run folder, evaluate.

    A job that was saved goes on where it was. KeyboardInterrupt saves the state and ends the run
    cleanly, with the best weights; before the first epoch had ended it is passed on.

    Args:
        job: what `prepare` gave.
        on_epoch: called after each epoch, its files written.
        note: called with lines that a person should see.

    Raises:
        InputError: another process writes to the folder, or a file cannot be written.
        RunError: the loss was not finite, or memory did not suffice; the best weights so far and
            the last state stay in the folder.
    """
    with _folder_of(job):
        start = time.perf_counter() - (job.saved.progress.seconds if job.saved else 0.0)
        compiled = compile_seconds()
        job, backend = _settled(job)
        team().agree(job.training)
        fitted, final = _train(job, backend, on_epoch, note)
        is_refitted = final is not fitted.params
        baselines = _baselines(job.parts)
        write_atomically(job.folder / BASELINES_FILE, save(to_tensors(baselines)))
        # without a test part the figures are of validation data, which refitted weights have seen
        shown = final if job.parts.tested_on == "test" else fitted.params
        with cpu_threads(threads_of(job.config, job.training)):
            evaluation = _evaluation(job, shown, baselines)
        times = time.perf_counter() - start, compile_seconds() - compiled
        model = _save(job, final, _provenance(fitted, evaluation, job, times, is_refitted, backend))
    return Outcome(model, fitted, evaluation, job.parts.tested_on, *times, backend, is_refitted)


def help_run(job: Job) -> None:
    """Train beside the first process of a team, which does all the rest.

    Raises:
        RunError: as for `run`, or the first process has ended.
    """
    job = job._replace(training=team().agree(None))
    _train(job, "", lambda epoch: None, lambda text: None)


@contextmanager
def _folder_of(job: Job) -> Iterator[None]:
    """The folder locked, with the settings in it; left empty where the run failed at once.

    Raises:
        InputError: another process writes there, or wrote there since the job was prepared.
    """
    with locked(job.folder):
        if job.is_stale():
            raise InputError(f"{job.folder}: another run wrote there meanwhile; try again")
        remove_unfinished(job.folder, MODEL_FILE, CONFIG_FILE, METRICS_FILE, LAST_FILE)
        _write_settings(job)
        try:
            yield
        except Exception:
            if not any((job.folder / name).exists() for name in (MODEL_FILE, LAST_FILE)):
                (job.folder / CONFIG_FILE).unlink(missing_ok=True)
            raise


def _write_settings(job: Job) -> None:
    write_atomically(job.folder / CONFIG_FILE, to_toml(job).encode())


def _settled(job: Job) -> tuple[Job, str]:
    """The job with the backend it keeps from here on, and why it is that one."""
    if job.saved:
        return job, str(job.saved.about["backend"])
    if job.training.backend != "auto":
        return job, f"{job.training.backend}, as asked for"
    if isinstance(job.parts.train, Corpus):
        training, why = replace(job.training, backend="vendor"), "as rows of text are equally long"
    else:
        with cpu_threads(threads_of(job.config, job.training)):
            device = find_device(job.training.device)
            training, why = settle_backend(job.config, job.training, job.parts.train, device)
    job = job._replace(training=training)
    _write_settings(job)
    return job, f"{training.backend}, {why}"


def _baselines(parts: Parts) -> dict[str, Baseline]:
    known, train, validation = parts.known, parts.train, parts.validation
    if isinstance(known, Windows):
        assert isinstance(train, Windows)
        assert isinstance(validation, Windows)
        return fit_forecast_baselines(known, train, validation)
    return fit_text_baselines(known) if isinstance(known, Corpus) else fit_baselines(known)


def _evaluation(job: Job, params: Params, baselines: dict[str, Baseline]) -> Evaluation:
    where, test = find_device(job.training.device), job.parts.test
    if isinstance(test, Corpus):
        scores = score_text(params, job.config, test, job.training.backend, job.training.chunk)
        return evaluate_text(scores, test, baselines)

    def predict(data: Examples) -> Tensor:
        options = (job.training.backend, job.training.chunk)
        return predict_all(params, job.config, within_reach(data, where), *options).cpu()

    if isinstance(test, Windows):
        headline = headline_of(_loss(job))
        assert isinstance(job.parts.train, Windows)
        units = target_deviation(job.parts.train)
        return backtest(predict, job.config, test, baselines, units, headline)
    return evaluate(predict(test), job.config, test, baselines)


def _train(
    job: Job,
    backend: str,
    on_epoch: Callable[[Epoch], None],
    note: Callable[[str], None],
) -> tuple[Fit, Params]:
    """The fit, and the weights to keep: its best, or those of the refit after it."""
    keeper = _keeper(job, _about(job, backend), note)

    def record(epoch: Epoch) -> None:
        if team().is_first:
            _write_metrics(job, keeper.progress)
        on_epoch(epoch)

    def after_epoch(epoch: Epoch, params: Params) -> None:
        if epoch.best and team().is_first:
            _save_best(job, params, epoch)
        record(epoch)

    # before the threads are cut: the rounding of orthogonal weights depends on their number
    start, restart = (_start(job, data) for data in (job.parts.train, job.parts.everything))
    try:
        fitted = _fit(job, start, after_epoch, keeper, note)
        if not job.training.refit or fitted.stopped == "interrupt":
            return fitted, fitted.params
        return fitted, _refit(job, restart, fitted, record, keeper, note)
    except KeyboardInterrupt:
        keeper.write()
        return fitted._replace(stopped="interrupt"), fitted.params
    except PeerLostError:
        keeper.write()
        raise


def _keeper(job: Job, about: dict[str, Any], note: Callable[[str], None]) -> Keeper:
    """What holds the progress of the run, and all its files where that was saved."""
    every, last = job.training.save_every, None
    if job.saved is not None:
        last = on_device(job.saved.progress, find_device(job.training.device))
    if not team().is_first:
        return Keeper(lambda progress: None, every, last)
    if job.saved is not None and last is not None:
        _tell_changes(job.saved.about, about, note)
        _catch_up(job, last)
    path = job.folder / LAST_FILE
    return Keeper(lambda progress: save_progress(path, progress, about), every, last)


def _about(job: Job, backend: str) -> dict[str, Any]:
    """What a run must be that goes on from this one's state."""
    return {
        "data_fingerprint": job.fingerprint,
        "backend": backend,
        "threads": threads_of(job.config, job.training),
        "versions": versions(),
        **settings_of(job.config, job.training),
    }


def _tell_changes(before: dict[str, Any], now: dict[str, Any], note: Callable[[str], None]) -> None:
    for name in ("versions", "threads"):
        if before.get(name) != now[name]:
            note(
                f"{name} were {before.get(name)} and are {now[name]}: the run goes on, but not bit "
                "for bit as it would have"
            )


def _catch_up(job: Job, last: Progress) -> None:
    """Bring the other files to where `last` is: they may be older, newer, or gone."""
    _write_metrics(job, last)
    best = last.best_epoch
    if best is None:
        return
    try:
        is_there = load_model(job.folder).training["epochs"] >= best.epoch
    except (InputError, KeyError, TypeError):
        is_there = False
    if not is_there:
        _save_best(job, last.best, best)


def _save_best(job: Job, params: Params, epoch: Epoch) -> None:
    _save(job, params, {"epochs": epoch.epoch, "validation": epoch.validation})


def _write_metrics(job: Job, progress: Progress | None) -> None:
    if progress is None:
        return
    lines = [epoch._asdict() for epoch in progress.epochs]
    lines += [{**epoch._asdict(), "refit": True} for epoch in progress.again or ()]
    text = "".join(to_json(line) + "\n" for line in lines)
    write_atomically(job.folder / METRICS_FILE, text.encode())


def _start(job: Job, data: Examples | Corpus) -> Params:
    params = initial_params(job.config, job.training.seed, data, job.warm)
    moved = to_device(params, find_device(job.training.device))
    return {name: team().first(value) for name, value in moved.items()}


def _fit(
    job: Job,
    start: Params,
    after_epoch: Callable[[Epoch, Params], None],
    keeper: Keeper,
    note: Callable[[str], None],
) -> Fit:
    where, parts = find_device(job.training.device), job.parts
    fitted = fit(
        start,
        job.config,
        job.training,
        _near(parts.train, where),
        _near(parts.validation, where),
        after_epoch,
        parts.train_rows,
        resume=keeper.progress,
        on_progress=keeper.see,
        note=note,
    )
    if fitted.stopped == "interrupt":
        keeper.write()
    _require_an_epoch(fitted)
    return fitted


def _near(data: Sequences | Windows | Corpus, device: torch.device) -> Examples | Corpus:
    """Where batches are cut: text stays in its file."""
    return data if isinstance(data, Corpus) else within_reach(data, device)


def _refit(
    job: Job,
    start: Params,
    fitted: Fit,
    on_epoch: Callable[[Epoch], None],
    keeper: Keeper,
    note: Callable[[str], None],
) -> Params:
    return refit(
        start,
        job.config,
        job.training,
        _near(job.parts.everything, find_device(job.training.device)),
        fitted,
        on_epoch,
        on_progress=keeper.see,
        note=note,
    )


def _require_an_epoch(fitted: Fit) -> None:
    if fitted.best is None and fitted.stopped == "interrupt":
        raise KeyboardInterrupt
    if fitted.best is None:
        raise RunError("no epoch gave a finite validation loss; lower --learning-rate")


def _save(job: Job, params: Params, training: dict[str, Any]) -> Model:
    provenance = {
        "data": job.data,
        "data_fingerprint": job.fingerprint,
        "seed": job.training.seed,
        **({"table": table_of(job)} if table_of(job) else {}),
        **_of_forecast(job),
        "versions": versions(),
        **training,
    }
    model = Model(params, job.config, job.parts.train.schema, provenance)
    save_model(job.folder / MODEL_FILE, *model)
    return model


def _provenance(
    fitted: Fit,
    evaluation: Evaluation,
    job: Job,
    times: tuple[float, float],
    is_refitted: bool,
    backend: str,
) -> dict[str, Any]:
    best = fitted.best
    extra: dict[str, Any] = {}
    if job.warm:
        extra["init"] = {"source": job.warm.source, "fresh": job.warm.fresh}
    if is_refitted:  # the figures of a run without a test part are from before it
        extra["refit"] = {"sequences": len(job.parts.everything), "epochs": best and best.epoch}
    return {
        **extra,
        "epochs": best.epoch if best else 0,
        "stopped": fitted.stopped,
        "validation": best.validation if best else {},
        job.parts.tested_on: evaluation.metrics,
        "baselines": evaluation.baselines,
        "seconds": round(times[0], 1),
        "compile_seconds": round(times[1], 1),
        "backend": backend,
    }


def versions() -> dict[str, str]:
    """What the figures of a run depend on."""
    return {"python": platform.python_version(), "torch": torch.__version__}


def _loss(job: Job) -> str:
    return loss_name(job.config.task, job.training.loss, job.config.quantiles)


def _of_forecast(job: Job) -> dict[str, Any]:
    """What evaluating a forecasting model takes besides the model."""
    parts = job.parts
    if not isinstance(parts.test, Windows) or not isinstance(parts.train, Windows):
        return {}
    is_same = parts.test.table is parts.train.table
    return {
        "loss": _loss(job),
        "test_from": parts.test.table.split.test if is_same else None,
        "target_mean": target_mean(parts.train).tolist(),
        "target_deviation": target_deviation(parts.train).tolist(),
    }
