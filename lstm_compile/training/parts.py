"""Who learns from what in a training run."""

from typing import NamedTuple

from torch import Tensor

from lstm_compile.data.corpus import Corpus
from lstm_compile.data.sequences import Sequences
from lstm_compile.forecast.windows import Windows


class Parts(NamedTuple):
    """The data of a run: sequences, windows of series, or text."""

    train: Sequences | Windows | Corpus  # what the weights are fitted on
    validation: Sequences | Windows | Corpus  # what stops training and picks the weights
    test: (
        Sequences | Windows | Corpus
    )  # what the figures are of: the test part, else the validation part
    known: Sequences | Windows | Corpus  # what the baselines are fitted on: all that is not `test`
    tested_on: str  # "test" or "validation"
    train_rows: Tensor  # int64, where the rows of `train` stand in the data
    everything: Sequences | Windows | Corpus  # what a refit learns from: all but `test`
