"""A study: trials of settings in a database that processes share and that survives them.

A trial is a training run that writes nothing; its value is the best validation figure. If a process
is killed, the same command continues the study: the trial of the dead process sends no heartbeat
any more, the next process marks it as failed, and its settings are tried again.

Source: https://optuna.readthedocs.io/en/stable/
"""

import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from filelock import FileLock

from lstm_compile.config import CELLS
from lstm_compile.errors import InputError, RunError, reason
from lstm_compile.files import write_atomically
from lstm_compile.model.run_folder import REPORT_FILE as REPORT_FILE
from lstm_compile.tasks import find_task
from lstm_compile.training.defaults import resolve
from lstm_compile.tuning.space import OneOf, Range, Space, default_space, section_of

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

    from lstm_compile.training.job import Job
    from lstm_compile.training.state import Epoch

Pruner = Literal["median", "hyperband", "none"]
DATABASE, BEST_FILE = "study.db", "best.toml"
NAME = "lstm-compile"
PASSWORD = re.compile("//[^/@]*@")
TRIES = 3  # of settings whose process was killed
WAIT = 60  # seconds for a database that another process writes to


class StudyPlan(NamedTuple):
    """What is tuned, the same for every process of a study."""

    data: str
    space: Space
    model: dict[str, Any]  # fixed fields of ModelConfig
    training: dict[str, Any]  # fixed fields of TrainingConfig
    table: dict[str, Any]  # fixed fields of TableOptions
    task: str
    metric: str  # of the validation part
    test: str | None = None  # goes into best.toml
    validated: int = 0  # rows of the validation part; no part of what must be the same

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """`maximize` or `minimize`."""
        return "maximize" if self.metric in find_task(self.task).rising else "minimize"

    def to_json(self) -> str:
        """The plan as text; processes of a study must have the same."""
        space = {name: asdict(part) for name, part in self.space.items()}
        own = {"cells": self._own_cells()} if self._own_cells() else {}
        plan = {name: value for name, value in self._asdict().items() if name != "validated"}
        return json.dumps({**plan, "space": space, **own}, sort_keys=True)

    def _own_cells(self) -> dict[str, str]:
        """The sha256 of each cell from a file that is tried, by its name."""
        tried = self.space.get("cell")
        names = list(tried.values) if isinstance(tried, OneOf) else [self.model.get("cell", "lstm")]
        if set(names) <= set(CELLS):
            return {}
        from lstm_compile.recurrence.cell_file import sha256_of

        return {name: sha256_of(name) for name in names if sha256_of(name)}


class Tuned(NamedTuple):
    """A study after a process has left it."""

    folder: Path
    study: "Study"
    plan: StudyPlan

    @property
    def best(self) -> "FrozenTrial":
        """The trial with the best value."""
        return self.study.best_trial

    @property
    def complete(self) -> list["FrozenTrial"]:
        """The complete trials."""
        return [trial for trial in self.study.trials if trial.state.name == "COMPLETE"]

    @property
    def ranked(self) -> list["FrozenTrial"]:
        """The complete trials, from the best to the worst."""
        sign = -1.0 if self.plan.direction == "maximize" else 1.0
        return sorted(self.complete, key=lambda trial: sign * (trial.value or 0.0))

    @property
    def counts(self) -> dict[str, int]:
        """The number of trials by state: `complete`, `pruned`, `fail`, `running`, `waiting`."""
        return dict(sorted(Counter(t.state.name.lower() for t in self.study.trials).items()))


def plan_of(
    data: str,
    space: Space | None = None,
    *,
    task: str | None = None,
    model: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    table: dict[str, Any] | None = None,
    metric: str | None = None,
    test: str | None = None,
) -> StudyPlan:
    """Read the data once, to check the fixed settings against them and to find the task.

    `model`, `training` and `table` are fixed fields of ModelConfig, TrainingConfig and
    TableOptions; the others are as in `StudyPlan`. None takes the task that the data are good for,
    the space of the task without the fixed settings, and the first metric of the task.

    Raises:
        InputError: anything wrong with the data or the settings, a setting is both fixed and tried,
            or the task has no such metric.
    """
    from lstm_compile.tasks.metrics import tuned_metrics

    fixed = {**(model or {}), **(training or {})}
    if both := sorted(set(fixed) & set(space or {})):
        raise InputError(f"{', '.join(both)} cannot be both fixed and in the space; leave one out")
    kept = {"model": model or {}, "training": training or {}, "table": table or {}}
    job = _job(data, task, kept)
    config, validated = job.config, len(job.parts.validation or ())
    found, known = config.task, tuned_metrics(config)
    if metric not in (None, *known):
        raise InputError(f"metric must be one of {', '.join(known)}; got {metric!r}")
    space = default_space(found, fixed) if space is None else space
    return StudyPlan(
        data, space, **kept, task=found, metric=metric or known[0], test=test, validated=validated
    )


def tune(
    plan: StudyPlan,
    folder: Path,
    *,
    trials: int = 20,
    pruner: Pruner = "median",
    storage: str | None = None,
    heartbeat: int = 30,
    seed: int = 0,
    on_trial: Callable[["Study", "FrozenTrial"], None] = lambda study, trial: None,
) -> Tuned:
    """Add trials to the study in `folder`, until enough of them are complete or pruned.

    Args:
        plan: what to try; an existing study must have the same plan.
        folder: of the study; holds the database, `best.toml` and `report.html`.
        trials: how many complete or pruned trials all processes make together.
        pruner: ends trials that do worse than earlier ones.
        storage: URL of a database that several machines reach; None is a file in `folder`.
        heartbeat: seconds between two heartbeats of a trial. A trial without one for twice as long
            is marked as failed, and its settings are tried again.
        seed: of the random settings; each process of a study draws its own.
        on_trial: called with each trial of this process as it ends.

    Raises:
        InputError: optuna is not installed, or the study in `folder` has another plan.
        RunError: no trial was completed.
    """
    study = _open_study(plan, folder, pruner, storage, heartbeat, seed)
    from optuna.storages import fail_stale_trials
    from optuna.study import MaxTrialsCallback
    from optuna.trial import TrialState

    with _quiet():
        fail_stale_trials(study)
    done = (TrialState.COMPLETE, TrialState.PRUNED)
    enough, tuned = MaxTrialsCallback(trials, done), Tuned(folder, study, plan)
    try:
        if len(study.get_trials(deepcopy=False, states=done)) < trials:
            with _quiet():
                study.optimize(lambda t: _value(t, plan), callbacks=[enough, on_trial])
    finally:
        _write(tuned)
    if not tuned.complete:
        raise RunError(f"{folder}: no trial was completed; widen the space or lower its rates")
    return tuned


def require_optuna() -> None:
    """Check that optuna is there, before any work is done.

    Raises:
        InputError: optuna is not installed.
    """
    if find_spec("optuna") is None:
        raise InputError("tune needs optuna; pip install 'lstm-compile[tune]'")


def _open_study(
    plan: StudyPlan, folder: Path, pruner: str, storage: str | None, heartbeat: int, seed: int
) -> "Study":
    require_optuna()
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    number = _process_number(folder)
    pruners = {
        "median": optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1),
        "hyperband": optuna.pruners.HyperbandPruner(),
        "none": optuna.pruners.NopPruner(),
    }
    # two processes must not make the tables at the same time
    with _quiet(), FileLock(folder / ".lock"):
        study = optuna.create_study(
            study_name=NAME,
            storage=_storage(storage or f"sqlite:///{folder / DATABASE}", heartbeat),
            sampler=optuna.samplers.TPESampler(seed=seed + number, constant_liar=True),
            pruner=pruners[pruner],
            direction=plan.direction,
            load_if_exists=True,
        )
        if study.user_attrs.get("plan", plan.to_json()) != plan.to_json():
            raise InputError(
                f"{folder}: holds a study of other data, settings or space; name another --output"
            )
        study.set_user_attr("plan", plan.to_json())
    return study


def _storage(url: str, heartbeat: int) -> Any:
    from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback

    try:
        return RDBStorage(
            url,
            engine_kwargs={"connect_args": {"timeout": WAIT}} if url.startswith("sqlite") else {},
            heartbeat_interval=heartbeat,
            grace_period=2 * heartbeat,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=TRIES),
        )
    except Exception as error:  # whatever the database's driver raises
        shown = PASSWORD.sub("//...@", url)
        raise InputError(f"{shown}: no such database ({reason(error)}); give its URL") from error


def _process_number(folder: Path) -> int:
    """0 for the first process of a study, then 1, 2, ...: the order in which they join it."""
    places = folder / "processes"
    try:
        places.mkdir(parents=True, exist_ok=True)
        for number in range(1 << 20):
            try:
                (places / str(number)).touch(exist_ok=False)
            except FileExistsError:
                continue
            return number
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be made ({error.strerror}); name another --output"
        ) from error
    raise InputError(f"{places}: holds too many files; name another --output")


@contextmanager
def _quiet() -> Iterator[None]:
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def _job(data: str, task: str | None, fixed: dict[str, dict[str, Any]]) -> "Job":
    from lstm_compile.training.prepare import JobRequest, plan_job

    task, model, training, table = resolve(data, task, **fixed)
    return plan_job(JobRequest(data, model, training, table=table, task=task))


def _value(trial: "Trial", plan: StudyPlan) -> float:
    """Train once, and return the best validation figure."""
    from optuna import TrialPruned

    from lstm_compile.training.config_file import to_toml
    from lstm_compile.training.run import fit_job

    drawn = {name: _draw(trial, name, part) for name, part in plan.space.items()}
    asked = {"model": {**plan.model}, "training": {**plan.training}, "table": plan.table}
    for name, value in drawn.items():
        asked[section_of(name)][name] = value
    values: list[float] = []

    def after_epoch(epoch: "Epoch", _: Any) -> None:
        values.append({**epoch.validation, "loss": epoch.validation_loss}[plan.metric])
        trial.report(values[-1], epoch.epoch)
        if trial.should_prune():
            raise TrialPruned

    try:
        job = _job(plan.data, plan.task, asked)
        trial.set_user_attr("config", to_toml(job._replace(test=plan.test)))
        fitted = fit_job(job, after_epoch)
    except (InputError, RunError) as error:  # wrong settings for the data, or it diverged
        trial.set_user_attr("reason", str(error))
        raise TrialPruned(str(error)) from error
    if fitted.stopped == "interrupt":
        raise KeyboardInterrupt
    return max(values) if plan.direction == "maximize" else min(values)


def _draw(trial: "Trial", name: str, part: Range | OneOf) -> Any:
    if isinstance(part, OneOf):
        keys = [json.dumps(value) for value in part.values]  # optuna takes no lists
        return part.values[keys.index(trial.suggest_categorical(name, keys))]
    if part.whole:
        return trial.suggest_int(name, int(part.low), int(part.high), log=part.log)
    return trial.suggest_float(name, part.low, part.high, log=part.log)


def _write(tuned: Tuned) -> None:
    from lstm_compile.tuning.study_report import report

    if tuned.complete:
        text = tuned.best.user_attrs["config"]
        write_atomically(tuned.folder / BEST_FILE, text.encode())
    write_atomically(tuned.folder / REPORT_FILE, report(tuned))
