"""What is measured: sizes, lengths and precision. Loads no torch."""

import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal, get_args

from lstm_compile.config import option, validate
from lstm_compile.errors import InputError

Mode = Literal["inference", "training"]
Precision = Literal["fp32", "tf32", "bf16"]

MODES: tuple[Mode, ...] = get_args(Mode)
SIZES = (  # batch, time, input, hidden
    (1, 64, 16, 64),
    (32, 32, 10, 64),
    (32, 64, 32, 128),
    (64, 128, 64, 256),
    (128, 512, 64, 128),
)
WIDE = ((64, 128, 64, 512), (64, 128, 64, 1024))  # on CUDA, where they fit
LARGEST = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Case:
    """One LSTM and one batch; each field with a help text is a flag of `bench`.

    Attributes:
        batch: sequences.
        time: steps that the batch is padded to.
        input: features a step.
        hidden: width of the state of one layer and direction.
        layers: stacked layers.
        bidirectional: both directions.
        lengths: `full`, `uniform` (1 to time, the longest row made full) or a file of lengths.
        precision: `fp32` (TF32 off), `tf32` (CUDA) or `bf16` (autocast; weights stay in fp32).

    Raises:
        InputError: a value is of the wrong type or out of range.
    """

    batch: int = option(32, "Sequences of an own case.", 1, LARGEST)
    time: int = option(64, "Steps that its batch is padded to.", 1, LARGEST)
    input: int = option(32, "Its features a step.", 1, LARGEST)
    hidden: int = option(128, "Its width of one layer's state.", 1, LARGEST)
    layers: int = option(1, "Its stacked layers.", 1, 64)
    bidirectional: bool = option(False, "Whether it reads in both directions.")
    lengths: str = option("uniform", "Its lengths: uniform, full, or a file with one a line.")
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        validate(self)

    @property
    def name(self) -> str:
        """All of it in one short line, `B32 T64 D32 H128 L1 forward uniform fp32`."""
        direction = "both" if self.bidirectional else "forward"
        sizes = f"B{self.batch} T{self.time} D{self.input} H{self.hidden} L{self.layers}"
        return f"{sizes} {direction} {Path(self.lengths).name} {self.precision}"

    @property
    def recurrent_steps(self) -> int:
        """Steps that have to wait for each other, or at least for their layer."""
        return self.time * self.layers * (2 if self.bidirectional else 1)


def grid(
    device_type: str, *, quick: bool = False, precision: Precision | None = None
) -> list[Case]:
    """The cases that are measured where none is asked for.

    Args:
        device_type: `cpu`, or `cuda`: wider layers and every precision.
        quick: a subset that takes about a minute.
        precision: this one only.
    """
    if quick:
        kinds = ("uniform", "full")
        return [Case(lengths=lengths, precision=precision or "fp32") for lengths in kinds]
    on_cuda = device_type == "cuda"
    default: tuple[Precision, ...] = get_args(Precision) if on_cuda else ("fp32",)
    sizes = (*SIZES, *WIDE) if on_cuda else SIZES
    return list(_product(sizes, (precision,) if precision else default))


def _product(
    sizes: Sequence[tuple[int, int, int, int]], precisions: tuple[Precision, ...]
) -> Iterator[Case]:
    kinds = product((1, 2), (False, True), ("full", "uniform"), precisions)
    for (batch, time, width, hidden), kind in product(sizes, list(kinds)):
        layers, bidirectional, lengths, precision = kind
        yield Case(
            batch=batch, time=time, input=width, hidden=hidden, layers=layers,
            bidirectional=bidirectional, lengths=lengths, precision=precision,
        )  # fmt: skip


def own_case(case: Case, given: Collection[str]) -> Case:
    """`case`, with batch and time of its file of lengths where they are not `given`.

    Raises:
        InputError: the file cannot be read, or holds no lengths.
    """
    if case.lengths in ("full", "uniform"):
        return case
    found = read_lengths(case.lengths)
    batch = case.batch if "batch" in given else len(found)
    return replace(case, batch=batch, time=case.time if "time" in given else max(found))


def lengths_of(case: Case, seed: int) -> list[int]:
    """The length of each row.

    The longest of `uniform` is `time`: batches are trimmed to their longest row. From a file as
    many are drawn as the batch has rows, unless it has as many.

    Raises:
        InputError: the case's file cannot be read, or a length in it is beyond `time`.
    """
    draw = random.Random(seed)
    if case.lengths == "full":
        return [case.time] * case.batch
    if case.lengths == "uniform":
        drawn = [draw.randint(1, case.time) for _ in range(case.batch)]
        drawn[drawn.index(max(drawn))] = case.time
        return drawn
    found = read_lengths(case.lengths)
    if max(found) > case.time:
        raise InputError(
            f"{case.lengths}: the longest length is {max(found)}, beyond --time {case.time}; "
            "give a larger --time"
        )
    return found if len(found) == case.batch else draw.choices(found, k=case.batch)


def read_lengths(path: str) -> list[int]:
    """The lengths in a text file, one whole number a line; blank lines are left out.

    Raises:
        InputError: not a readable file, a line that is no whole number from 1, or no line.
    """
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"lengths must be uniform, full or a file with one length a line; {path!r} cannot be "
            f"read ({getattr(error, 'strerror', None) or 'not text'})"
        ) from error
    found = [_length(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise InputError(f"{path}: no lengths; expected one whole number a line")
    return found


def _length(path: str, number: int, line: str) -> int:
    text = line.strip()
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:9]) <= LARGEST:
        raise InputError(
            f"{path}, line {number}: expected a whole number from 1 to {LARGEST}, found {text!r}"
        )
    return int(text)
