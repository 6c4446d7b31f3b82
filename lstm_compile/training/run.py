"""A training run: from a prepared job to a run folder with model, config, metrics, baselines."""

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors.torch import save

from lstm_compile.baselines import fit_baselines, to_tensors
from lstm_compile.checkpoint import Model, save_model, to_device
from lstm_compile.devices import cpu_threads, find_device, fitting_threads
from lstm_compile.errors import RunError
from lstm_compile.evaluation import Evaluation, evaluate
from lstm_compile.files import to_json, write_atomically
from lstm_compile.model import Params, init_params
from lstm_compile.runs import (
    BASELINES_FILE,
    CONFIG_FILE,
    METRICS_FILE,
    MODEL_FILE,
)
from lstm_compile.scaling import fit_scaler
from lstm_compile.training.job import Job
from lstm_compile.training.loop import Epoch, Fit, fit, predict_all


@dataclass(frozen=True)
class Outcome:
    """What a finished run left behind."""

    model: Model
    fit: Fit
    evaluation: Evaluation
    tested_on: str
    seconds: float


def run(job: Job, on_epoch: Callable[[Epoch], None] = lambda epoch: None) -> Outcome:
    """Train, keep the best weights in the run folder at every moment, evaluate.

    Raises:
        RunError: the loss was not finite; the best weights so far stay in the folder.
        KeyboardInterrupt: Ctrl-C before the first epoch had ended; later it ends the run cleanly.
    """
    start = time.perf_counter()
    where = find_device(job.training.device)
    params = _scaled(init_params(job.config, job.training.seed), job)

    lines: list[str] = []

    def after_epoch(epoch: Epoch, params: Params) -> None:
        if not lines:  # a run stopped before this leaves its folder empty, free for another try
            write_atomically(job.folder / CONFIG_FILE, _toml(job).encode())
        if epoch.best:
            _save(job, params, {"epochs": epoch.epoch, "validation": epoch.validation})
        lines.append(to_json(epoch._asdict()) + "\n")
        write_atomically(job.folder / METRICS_FILE, "".join(lines).encode())
        on_epoch(epoch)

    threads = job.training.threads or fitting_threads(
        job.training.batch_size, job.config.hidden_size
    )
    with cpu_threads(threads):
        fitted = fit(
            to_device(params, where),
            job.config,
            job.training,
            job.parts.train.to(where),
            job.parts.validation.to(where),
            after_epoch,
            job.parts.train_rows,
        )
        _require_an_epoch(fitted)
        prediction = predict_all(
            fitted.params,
            job.config,
            job.parts.test.to(where),
            job.training.backend,
            job.training.chunk,
        )
    baselines = fit_baselines(job.parts.known)
    write_atomically(job.folder / BASELINES_FILE, save(to_tensors(baselines)))
    evaluation = evaluate(prediction.cpu(), job.config, job.parts.test, baselines)
    seconds = time.perf_counter() - start
    model = _save(job, fitted.params, _provenance(fitted, evaluation, job, seconds))
    return Outcome(model, fitted, evaluation, job.parts.tested_on, seconds)


def _require_an_epoch(fitted: Fit) -> None:
    if fitted.best is None and fitted.stopped == "interrupt":
        raise KeyboardInterrupt
    if fitted.best is None:
        raise RunError("no epoch gave a finite validation loss; lower --learning-rate")


def _scaled(params: Params, job: Job) -> Params:
    """The parameters with scalers fitted on the training part, over valid steps only."""
    fitted = {"scaler": fit_scaler(job.parts.train.x, job.config.scaling)}
    if job.config.task == "regress":
        fitted["target_scaler"] = fit_scaler(job.parts.train.y, job.config.target_scaling)
    statistics = {
        f"{name}.{part}": value
        for name, scaler in fitted.items()
        for part, value in scaler._asdict().items()
    }
    return {**params, **statistics}


def _save(job: Job, params: Params, training: dict[str, Any]) -> Model:
    provenance = {
        "data": job.data,
        "data_fingerprint": job.fingerprint,
        "seed": job.training.seed,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        **training,
    }
    model = Model(params, job.config, job.parts.train.schema, provenance)
    save_model(job.folder / MODEL_FILE, *model)
    return model


def _provenance(fitted: Fit, evaluation: Evaluation, job: Job, seconds: float) -> dict[str, Any]:
    best = fitted.best
    return {
        "epochs": best.epoch if best else 0,
        "stopped": fitted.stopped,
        "validation": best.validation if best else {},
        job.parts.tested_on: evaluation.metrics,
        "baselines": evaluation.baselines,
        "seconds": round(seconds, 1),
    }


def _toml(job: Job) -> str:
    """The resolved settings; `train --config` reads them back."""
    derived = ("task", "input_size", "output_size")
    model = {k: v for k, v in asdict(job.config).items() if k not in derived}
    sources = {"data": job.data, "test": job.test}
    lines = [f"{name} = {_toml_value(path)}" for name, path in sources.items() if path is not None]
    for title, values in (("model", model), ("training", asdict(job.training))):
        lines += ["", f"[{title}]"]
        lines += [f"{name} = {_toml_value(value)}" for name, value in values.items()]
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    # JSON's notation is TOML's but for surrogate pairs and for DEL, which TOML wants escaped
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
