"""What a run writes into its folder: settings, figures, the best weights, how they came about."""

import platform
from collections.abc import Callable
from typing import Any

import torch

from lstm_compile.data.series.windows import Windows
from lstm_compile.errors import InputError
from lstm_compile.evaluation.evaluate import Evaluation
from lstm_compile.files import to_json, write_atomically
from lstm_compile.model.checkpoint import Model, load_model, save_model
from lstm_compile.model.model import Params
from lstm_compile.model.run_folder import CONFIG_FILE, METRICS_FILE, MODEL_FILE
from lstm_compile.tasks.losses import loss_name
from lstm_compile.tasks.series_scaler import target_deviation, target_mean
from lstm_compile.training.config_file import table_of, to_toml
from lstm_compile.training.loop import Epoch, Fit, threads_of
from lstm_compile.training.prepare import Job
from lstm_compile.training.resume import settings_of
from lstm_compile.training.state import Progress


def write_settings(job: Job) -> None:
    """Write `config.toml`."""
    write_atomically(job.folder / CONFIG_FILE, to_toml(job).encode())


def about_run(job: Job, backend: str) -> dict[str, Any]:
    """What a run must be that goes on from this one's state."""
    return {
        "data_fingerprint": job.fingerprint,
        "backend": backend,
        "threads": threads_of(job.config, job.training),
        "versions": versions(),
        **settings_of(job.config, job.training),
    }


def tell_changes(before: dict[str, Any], now: dict[str, Any], note: Callable[[str], None]) -> None:
    """Note what is no longer as it was when the state was saved, and moves what follows."""
    for name in ("versions", "threads"):
        if before.get(name) != now[name]:
            note(
                f"{name} were {before.get(name)} and are {now[name]}: the run goes on, but not bit "
                "for bit as it would have"
            )


def catch_up(job: Job, last: Progress) -> None:
    """Bring the other files to where `last` is: they may be older, newer, or gone."""
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


def save_best(job: Job, params: Params, epoch: Epoch) -> None:
    """Write the model file after an epoch, while training goes on."""
    model = model_of(job, params, {"epochs": epoch.epoch, "validation": epoch.validation})
    save_model(job.folder / MODEL_FILE, *model)


def write_metrics(job: Job, progress: Progress) -> None:
    """Write `metrics.jsonl`, a line an epoch, those of a refit last."""
    lines = [epoch._asdict() for epoch in progress.epochs]
    lines += [{**epoch._asdict(), "refit": True} for epoch in progress.again or ()]
    text = "".join(to_json(line) + "\n" for line in lines)
    write_atomically(job.folder / METRICS_FILE, text.encode())


def model_of(job: Job, params: Params, training: dict[str, Any]) -> Model:
    """What the model file holds; `training` is added to what is known of the run."""
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


def provenance_of(
    fitted: Fit,
    evaluation: Evaluation,
    job: Job,
    times: tuple[float, float],
    is_refitted: bool,
    backend: str,
) -> dict[str, Any]:
    """How the weights came about and what they are worth, for the model file."""
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


def loss_of(job: Job) -> str:
    """The name of what is minimised."""
    return loss_name(job.config.task, job.training.loss, job.config.quantiles)


def about_series(job: Job) -> dict[str, Any]:
    """What evaluating a forecasting model takes besides the model."""
    parts = job.parts
    if not isinstance(parts.test, Windows) or not isinstance(parts.train, Windows):
        return {}
    is_same = parts.test.table is parts.train.table
    return {
        "loss": loss_of(job),
        "test_from": parts.test.table.split.test if is_same else None,
        "target_mean": target_mean(parts.train).tolist(),
        "target_deviation": target_deviation(parts.train).tolist(),
    }
