"""Who learns from what in a training run."""

from typing import NamedTuple, TypeVar

from torch import Tensor

from lstm_compile.data.corpus import Corpus
from lstm_compile.data.sequences import Sequences
from lstm_compile.data.series.windows import Windows
from lstm_compile.data.stream import Stream
from lstm_compile.errors import InputError

Held = TypeVar("Held", Sequences, Windows, Corpus)


class Parts(NamedTuple):
    """The data of a run: sequences, in memory or not, windows of series, or text."""

    train: Sequences | Windows | Stream | Corpus  # what the weights are fitted on
    validation: Sequences | Windows | Corpus | None  # what stops training and picks the weights
    test: (
        Sequences | Windows | Corpus
    )  # what the figures are of: the test part, else the validation part
    known: Sequences | Windows | Corpus  # what the baselines are fitted on: all that is not `test`
    tested_on: str  # "test" or "validation"
    train_rows: Tensor  # int64, where the rows of `train` stand in the data
    everything: Sequences | Windows | Stream | Corpus  # what a refit learns from: all but `test`


def in_place_of_test(data: str, validation: Held | None) -> Held:
    """What the figures are of where there is no test part.

    Raises:
        InputError: there is no validation part either.
    """
    if validation is None:
        raise InputError(
            f"{data}: nothing is held out to measure on; take a --validation above 0, or name a "
            "--test file"
        )
    return validation
