"""A training run from a data set to a run folder: model, config, metrics and baselines."""

import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save

from lstm_compile.baselines import fit_baselines, to_tensors
from lstm_compile.checkpoint import Model, save_model, to_device
from lstm_compile.config import ModelConfig
from lstm_compile.data.batches import stratified_split
from lstm_compile.data.bundled import BUNDLED, load_dataset
from lstm_compile.data.sequences import Sequences, fingerprint
from lstm_compile.errors import InputError, RunError
from lstm_compile.evaluation import Evaluation, evaluate
from lstm_compile.files import write_atomically
from lstm_compile.model import Params, init_params
from lstm_compile.runs import (
    BASELINES_FILE,
    CONFIG_FILE,
    METRICS_FILE,
    MODEL_FILE,
    new_run_folder,
)
from lstm_compile.scaling import fit_scaler
from lstm_compile.tasks import loss_name
from lstm_compile.training.config import TrainingConfig
from lstm_compile.training.loop import Epoch, Fit, fit, predict_all


class Parts(NamedTuple):
    """Who learns from what."""

    train: Sequences  # what the weights are fitted on
    validation: Sequences  # what stops training and picks the weights
    test: Sequences  # what the final figures are of: the test part, else the validation part
    known: Sequences  # what the baselines are fitted on: all that is not `test`
    tested_on: str  # "test" or "validation"


class Job(NamedTuple):
    """A run about to begin: everything checked, nothing written but its empty folder."""

    data: str
    test: str | None
    folder: Path
    config: ModelConfig
    training: TrainingConfig
    parts: Parts


@dataclass(frozen=True)
class Outcome:
    """What a finished run left behind."""

    model: Model
    fit: Fit
    evaluation: Evaluation
    tested_on: str
    seconds: float


def prepare(
    data: str,
    hyper_parameters: Mapping[str, Any],
    training: TrainingConfig,
    *,
    test: str | None = None,
    output: Path | None = None,
) -> Job:
    """Read and check everything, then make the run folder.

    Args:
        data: name of a bundled data set, or path of a `.ts` or `.npz` file.
        hyper_parameters: fields of ModelConfig but task, input_size and output_size, which the
            data decide.
        training: how to train.
        test: a file of held-out sequences; a bundled data set brings its own.
        output: the run folder; runs/DATA-N if None.

    Raises:
        InputError: anything wrong with the data, the settings or the folder; nothing is written.
    """
    device(training)
    everything = load_dataset(data, "train")
    config = ModelConfig(
        task=everything.task,
        input_size=len(everything.features),
        output_size=len(everything.classes or everything.targets),
        **hyper_parameters,
    )
    loss_name(config.task, training.loss)
    parts = _split(data, everything, test, training)
    return Job(data, test, new_run_folder(data, output), config, training, parts)


def run(job: Job, on_epoch: Callable[[Epoch], None] = lambda epoch: None) -> Outcome:
    """Train, keep the best weights in the run folder at every moment, evaluate.

    Raises:
        RunError: the loss was not finite; the best weights so far stay in the folder.
        KeyboardInterrupt: Ctrl-C before the first epoch had ended; later it ends the run cleanly.
    """
    start = time.perf_counter()
    where = device(job.training)
    write_atomically(job.folder / CONFIG_FILE, _toml(job).encode())
    params = _scaled(init_params(job.config, job.training.seed), job)

    def after_epoch(epoch: Epoch, params: Params) -> None:
        if epoch.best:
            _save(job, params, {"epochs": epoch.epoch, "validation": epoch.validation})
        with (job.folder / METRICS_FILE).open("a") as file:
            file.write(json.dumps(epoch._asdict()) + "\n")
        on_epoch(epoch)

    fitted = fit(
        to_device(params, where),
        job.config,
        job.training,
        job.parts.train.to(where),
        job.parts.validation.to(where),
        after_epoch,
    )
    _require_an_epoch(fitted)
    baselines = fit_baselines(job.parts.known)
    write_atomically(job.folder / BASELINES_FILE, save(to_tensors(baselines)))
    prediction = predict_all(
        fitted.params,
        job.config,
        job.parts.test.to(where),
        job.training.backend,
        job.training.chunk,
    )
    evaluation = evaluate(prediction.cpu(), job.config, job.parts.test, baselines)
    seconds = time.perf_counter() - start
    model = _save(job, fitted.params, _provenance(fitted, evaluation, job, seconds))
    return Outcome(model, fitted, evaluation, job.parts.tested_on, seconds)


def _require_an_epoch(fitted: Fit) -> None:
    if fitted.best is None and fitted.stopped == "interrupt":
        raise KeyboardInterrupt
    if fitted.best is None:
        raise RunError("no epoch gave a finite validation loss; lower --learning-rate")


def device(training: TrainingConfig) -> torch.device:
    """The device that `training.device` names; auto is CUDA where there is one.

    Raises:
        InputError: no such device here.
    """
    if training.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(training.device)
    except RuntimeError:
        where = None
    if where is None or where.type not in ("cpu", "cuda"):
        raise InputError(f"device must be cpu, cuda, cuda:N or auto; got {training.device!r}")
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {training.device} is not here: torch sees {torch.cuda.device_count()} CUDA "
            "devices; use --device cpu"
        )
    return where


def _split(data: str, everything: Sequences, test: str | None, training: TrainingConfig) -> Parts:
    generator = torch.Generator().manual_seed(training.seed)
    try:
        kept, held_out = stratified_split(everything.y, training.validation, generator)
    except InputError as error:
        raise InputError(f"{data}: {error}") from error
    train, validation = everything.select(kept), everything.select(held_out)
    if test is None and data not in BUNDLED:
        return Parts(train, validation, validation, train, "validation")
    tested = load_dataset(test or data, "test", schema=everything.schema)
    return Parts(train, validation, tested, everything, "test")


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
        "data_fingerprint": fingerprint(job.parts.known),
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
