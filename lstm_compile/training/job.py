"""A training run before it begins: data read and parted, settings checked, a folder made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lstm_compile.config import ModelConfig
from lstm_compile.data.batches import stratified_split
from lstm_compile.data.bundled import BUNDLED, load_dataset
from lstm_compile.data.sequences import Sequences, fingerprint
from lstm_compile.devices import find_device
from lstm_compile.errors import InputError
from lstm_compile.runs import new_run_folder
from lstm_compile.tasks import loss_name
from lstm_compile.training.config import TrainingConfig


class Parts(NamedTuple):
    """Who learns from what."""

    train: Sequences  # what the weights are fitted on
    validation: Sequences  # what stops training and picks the weights
    test: Sequences  # what the final figures are of: the test part, else the validation part
    known: Sequences  # what the baselines are fitted on: all that is not `test`
    tested_on: str  # "test" or "validation"
    train_rows: Tensor  # int64, where the sequences of `train` stand in the data


class Job(NamedTuple):
    """A run about to begin: everything checked, nothing written but its empty folder."""

    data: str
    test: str | None
    folder: Path
    config: ModelConfig
    training: TrainingConfig
    parts: Parts
    fingerprint: str  # of all the data that training saw, validation included


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
    find_device(training.device)
    everything = load_dataset(data, "train")
    config = ModelConfig(
        task=everything.task,
        input_size=len(everything.features),
        output_size=len(everything.classes or everything.targets),
        **hyper_parameters,
    )
    loss_name(config.task, training.loss)
    parts = _split(data, everything, test, training)
    digest = fingerprint(parts.known)
    return Job(data, test, new_run_folder(data, output), config, training, parts, digest)


def _split(data: str, everything: Sequences, test: str | None, training: TrainingConfig) -> Parts:
    generator = torch.Generator().manual_seed(training.seed)
    try:
        kept, held_out = stratified_split(everything.y, training.validation, generator)
    except InputError as error:
        raise InputError(f"{data}: {error}") from error
    train, validation = everything.select(kept), everything.select(held_out)
    if test is None and data not in BUNDLED:
        return Parts(train, validation, validation, train, "validation", kept)
    tested = load_dataset(test or data, "test", schema=everything.schema)
    return Parts(train, validation, tested, everything, "test", kept)
