"""A training run as values: what it is asked for, what it learns from, what it leaves behind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from lstm_compile.config import ModelConfig
from lstm_compile.data.corpus import Corpus
from lstm_compile.data.sequences import Sequences
from lstm_compile.data.series.windows import Windows
from lstm_compile.data.stream import Stream
from lstm_compile.data.tables.columns import TableOptions
from lstm_compile.evaluation.evaluate import Evaluation
from lstm_compile.model.checkpoint import Model
from lstm_compile.model.run_folder import LAST_FILE, METRICS_FILE, MODEL_FILE
from lstm_compile.training.resume import SavedRun
from lstm_compile.training.settings import TrainingConfig
from lstm_compile.training.state import Fit
from lstm_compile.training.warm_start import WarmStart

Held = TypeVar("Held", Sequences, Windows, Corpus)


class JobRequest(NamedTuple):
    """What a training run is asked for.

    `data` is the name of a bundled data set, or the path of a `.ts` or `.npz` file, of text, or of
    a long table: a file, a folder or a glob.
    """

    data: str
    hyper_parameters: Mapping[str, Any]  # fields of ModelConfig, without those the data decide
    training: TrainingConfig
    test: str | None = None  # a file of held-out data; a bundled data set has its own
    table: TableOptions | None = None  # the columns of a long table; None infers them
    task: str | None = None  # what to learn; None takes what the data are good for
    progress: Callable[[int, int], None] | None = None  # takes a table's rows done, and in all


class Parts(NamedTuple):
    """The data of a run."""

    train: Sequences | Windows | Stream | Corpus  # what the weights are fitted on
    validation: Sequences | Windows | Corpus | None  # what stops training and chooses the weights
    test: Sequences | Windows | Corpus  # what the figures are of: this or the validation part
    tested_on: str  # "test" or "validation"
    known: Sequences | Windows | Corpus  # what the baselines are fitted on: all but `test`
    train_rows: Tensor  # int64, the rows of `train` in the data
    everything: Sequences | Windows | Stream | Corpus  # what a refit learns from: all but `test`
    note: str = ""  # what the data decided


class Job(NamedTuple):
    """A run about to begin: everything is checked, nothing written but its empty folder."""

    data: str
    test: str | None
    folder: Path  # of the run; `Path()` where nothing is to be written
    config: ModelConfig
    training: TrainingConfig
    parts: Parts
    fingerprint: str  # the sha256 of all data that training sees, validation included
    asked: str | None = None  # the task that was asked for; None: the data decided
    warm: WarmStart | None = None  # the weights that --init gives
    saved: SavedRun | None = None  # the saved state that a resumed run continues
    stamp: object = None  # what `stamp_of` gave when the job was prepared


@dataclass(frozen=True)
class Outcome:
    """What a finished run left behind."""

    model: Model
    fit: Fit
    evaluation: Evaluation
    tested_on: str
    seconds: float
    compile_seconds: float  # of `seconds`
    backend: str = ""  # which backend computed the recurrence, and why
    refitted: bool = False  # whether the model learned from the validation data as well


def stamp_of(folder: Path) -> object:
    """A value that differs once a run has written to the folder."""
    files = (folder / name for name in (MODEL_FILE, LAST_FILE, METRICS_FILE))
    return [(stat.st_mtime_ns, stat.st_size) for f in files if f.exists() for stat in [f.stat()]]
