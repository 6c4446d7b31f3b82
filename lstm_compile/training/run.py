"""A training run: from a prepared job to a run folder with model, config, metrics, baselines."""

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from lstm_compile.baselines import Baseline, fit_baselines, to_tensors
from lstm_compile.cache import compile_seconds
from lstm_compile.checkpoint import Model, save_model, to_device
from lstm_compile.config import DERIVED, LM
from lstm_compile.data.corpus import Corpus
from lstm_compile.data.examples import Examples
from lstm_compile.data.sequences import Sequences
from lstm_compile.devices import cpu_threads, find_device
from lstm_compile.errors import RunError
from lstm_compile.evaluation import Evaluation, evaluate
from lstm_compile.files import to_json, write_atomically
from lstm_compile.forecast.backtest import backtest, headline_of
from lstm_compile.forecast.baselines import fit_forecast_baselines
from lstm_compile.forecast.scaling import target_deviation, target_mean
from lstm_compile.forecast.windows import Windows
from lstm_compile.model import Params
from lstm_compile.runs import (
    BASELINES_FILE,
    CONFIG_FILE,
    METRICS_FILE,
    MODEL_FILE,
)
from lstm_compile.tasks import loss_name
from lstm_compile.training.backend import settle_backend
from lstm_compile.training.feeding import within_reach
from lstm_compile.training.job import Job, Parts
from lstm_compile.training.loop import Epoch, Fit, fit, predict_all, refit, threads_of
from lstm_compile.training.text import score_text, window_of
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


def run(job: Job, on_epoch: Callable[[Epoch], None] = lambda epoch: None) -> Outcome:
    """Train, keep the best weights in the run folder at every moment, evaluate.

    Raises:
        RunError: the loss was not finite; the best weights so far stay in the folder.
        KeyboardInterrupt: Ctrl-C before the first epoch had ended; later it ends the run cleanly.
    """
    start, compiled = time.perf_counter(), compile_seconds()
    job, backend = _settled(job)
    fitted, final = _train(job, on_epoch)
    is_refitted = final is not fitted.params
    baselines = _baselines(job.parts)
    write_atomically(job.folder / BASELINES_FILE, save(to_tensors(baselines)))
    # without a test part the figures are of validation data, which refitted weights have seen
    shown = final if job.parts.tested_on == "test" else fitted.params
    with cpu_threads(job.training.threads):
        evaluation = _evaluation(job, shown, baselines)
    times = time.perf_counter() - start, compile_seconds() - compiled
    model = _save(job, final, _provenance(fitted, evaluation, job, times, is_refitted, backend))
    return Outcome(model, fitted, evaluation, job.parts.tested_on, *times, backend, is_refitted)


def fit_job(job: Job, after_epoch: Callable[[Epoch, Params], None]) -> Fit:
    """Train, and write nothing.

    Raises:
        RunError: the loss was not finite.
        KeyboardInterrupt: Ctrl-C before the first epoch had ended; later `stopped` says so.
    """
    job, _ = _settled(job)
    return _fit(job, _start(job, job.parts.train), after_epoch)


def _settled(job: Job) -> tuple[Job, str]:
    """The job with the threads and the backend it keeps from here on, and why that backend."""
    threads = threads_of(job.config, job.training)
    job = job._replace(training=replace(job.training, threads=threads))
    if isinstance(job.parts.train, Corpus):
        if job.training.backend != "auto":
            return job, f"{job.training.backend}, as asked for"
        training = replace(job.training, backend="vendor")
        return job._replace(training=training), "vendor, as rows of text are equally long"
    with cpu_threads(threads):
        device = find_device(job.training.device)
        training, why = settle_backend(job.config, job.training, job.parts.train, device)
    return job._replace(training=training), f"{training.backend}, {why}"


def _baselines(parts: Parts) -> dict[str, Baseline]:
    known, train, validation = parts.known, parts.train, parts.validation
    if isinstance(known, Windows):
        assert isinstance(train, Windows)
        assert validation is None or isinstance(validation, Windows)
        return fit_forecast_baselines(known, train, validation)
    return fit_text_baselines(known) if isinstance(known, Corpus) else fit_baselines(known)


def _evaluation(job: Job, params: Params, baselines: dict[str, Baseline]) -> Evaluation:
    where, test = find_device(job.training.device), job.parts.test
    if isinstance(test, Corpus):
        window = window_of(job.config, job.training.unroll)
        options = job.training.backend, job.training.chunk, window
        scores = score_text(params, job.config, test, *options)
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


def _train(job: Job, on_epoch: Callable[[Epoch], None]) -> tuple[Fit, Params]:
    """The fit, and the weights to keep: its best, or those of the refit after it."""
    lines: list[str] = []

    def after_epoch(epoch: Epoch, params: Params) -> None:
        if not lines:  # a run stopped before this leaves its folder empty, free for another try
            write_atomically(job.folder / CONFIG_FILE, settings_text(job).encode())
        if epoch.best:
            _save(job, params, {"epochs": epoch.epoch, "validation": epoch.validation})
        record(epoch)

    def record(epoch: Epoch, **more: bool) -> None:
        lines.append(to_json({**epoch._asdict(), **more}) + "\n")
        write_atomically(job.folder / METRICS_FILE, "".join(lines).encode())
        on_epoch(epoch)

    # before the threads are cut: the rounding of orthogonal weights depends on their number
    start, restart = (_start(job, data) for data in (job.parts.train, job.parts.everything))
    fitted = _fit(job, start, after_epoch)
    if not job.training.refit or fitted.stopped == "interrupt":
        return fitted, fitted.params
    try:
        return fitted, _refit(job, restart, fitted, partial(record, refit=True))
    except KeyboardInterrupt:
        return fitted._replace(stopped="interrupt"), fitted.params


def _start(job: Job, data: Examples | Corpus) -> Params:
    params = initial_params(job.config, job.training.seed, data, job.warm)
    return to_device(params, find_device(job.training.device))


def _fit(job: Job, start: Params, after_epoch: Callable[[Epoch, Params], None]) -> Fit:
    where, parts = find_device(job.training.device), job.parts
    fitted = fit(
        start,
        job.config,
        job.training,
        _near(parts.train, where),
        None if parts.validation is None else _near(parts.validation, where),
        after_epoch,
        parts.train_rows,
    )
    _require_an_epoch(fitted)
    return fitted


def _near(data: Sequences | Windows | Corpus, device: torch.device) -> Examples | Corpus:
    """Where batches are cut: text stays in its file."""
    return data if isinstance(data, Corpus) else within_reach(data, device)


def _refit(job: Job, start: Params, fitted: Fit, on_epoch: Callable[[Epoch], None]) -> Params:
    everything = _near(job.parts.everything, find_device(job.training.device))
    return refit(start, job.config, job.training, everything, fitted, on_epoch)


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
        **({"table": _table(job)} if _table(job) else {}),
        **_of_forecast(job),
        **({"unroll": job.training.unroll} if job.config.task == LM else {}),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
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


def settings_text(job: Job) -> str:
    """The resolved settings as TOML; `train --config` reads them back."""
    model = {k: v for k, v in job.config.to_dict().items() if k not in DERIVED}
    task = None if job.config.task in ("classify", "regress") else job.config.task
    sources = {"task": task, "data": job.data, "test": job.test}
    lines = [f"{name} = {_toml_value(path)}" for name, path in sources.items() if path is not None]
    # means are those of the data, which whoever reads this file reads again
    table = {name: value for name, value in _table(job).items() if name != "means"}
    sections = {"model": model, "training": asdict(job.training), "table": table}
    for title, values in sections.items():
        if not values:
            continue
        lines += ["", f"[{title}]"]
        lines += [f"{name} = {_toml_value(value)}" for name, value in values.items()]
    return "\n".join(lines) + "\n"


def _table(job: Job) -> dict[str, Any]:
    """The columns of a long table that the run reads, those that were inferred too."""
    roles = job.parts.train.roles
    found = asdict(roles.options) if roles else {}
    return {name: value for name, value in found.items() if value not in (None, ())}


def _toml_value(value: Any) -> str:
    # JSON's notation is TOML's but for surrogate pairs and for DEL, which TOML wants escaped
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
